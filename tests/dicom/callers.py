"""Peers and senders for the tests of the wire, good ones and bad ones."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from node.dicom import contexts
from node.dicom.requestor import associated
from node.dicom.scp import Outcome, Received, Scp, ScpOptions
from node.dicom.wire import close
from node.domain.peer import Network, Peer
from node.testing.archive import Archive
from node.testing.series import SeriesSpec, make

SCANNER = Peer("scanner", "SCANNER", "127.0.0.1")
PATIENT_FOR_5_S = Network("SCANNER", answer_timeout_s=5.0)
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"


def images(count: int = 3, spec: SeriesSpec | None = None) -> list[Dataset]:
    """Small MR images, each with pixels of its own."""
    voxels = np.arange(count * 40 * 40, dtype=np.uint16).reshape(count, 40, 40)
    return make(spec or SeriesSpec(), voxels)


@dataclass
class Shelf:
    """A ``keep`` that remembers, and fails when it is told to."""

    received: list[Received] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    failure: Exception | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def keep(self, received: Received) -> None:
        with self.changed:
            if self.failure is not None:
                raise self.failure
            self.received.append(received)
            self.changed.notify_all()

    def wait_for(self, count: int, timeout_s: float = 10.0) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.received) >= count, timeout_s)


@contextmanager
def listening(shelf: Shelf, peers: Iterable[Peer] = (SCANNER,), **options: Any) -> Iterator[Scp]:
    """A receiver called NODE on a free port of the loopback interface."""
    chosen = {"ae_title": "NODE", "bind": "127.0.0.1", "port": 0, **options}
    scp = Scp(ScpOptions(**chosen), peers, shelf.keep, shelf.outcomes.append)
    scp.start()
    try:
        yield scp
    finally:
        scp.stop()


def node_at(port: int, ae_title: str = "NODE") -> Peer:
    """The receiver as a peer of whoever calls it."""
    return Peer("node", ae_title, "127.0.0.1", port)


def archive_at(archive: Archive) -> Peer:
    """An archive as a peer of whoever calls it."""
    return Peer("pacs", archive.ae_title, "127.0.0.1", archive.port)


@contextmanager
def calling(port: int, sop_class_uid: str = MR) -> Iterator[Association]:
    """An association of the scanner with one storage context."""
    proposed = [contexts.plain(sop_class_uid), contexts.plain(contexts.VERIFICATION)]
    with associated(PATIENT_FOR_5_S, node_at(port), proposed) as association:
        yield association


def store_request(sop_class_uid: str, sop_instance_uid: str, content: bytes | None) -> C_STORE:
    """A C-STORE-RQ in which everything may be wrong; None: it announces no data set."""
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = sop_class_uid
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.Priority = 0
    request.DataSet = None if content is None else BytesIO(content)
    return request


def named(sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """The least data set that names an instance, in Explicit VR Little Endian."""
    uids = {
        0x00080016: sop_class_uid,
        0x00080018: sop_instance_uid,
        0x0020000D: "1.2",
        0x0020000E: "1.3",
    }
    content = b""
    for tag, uid in uids.items():
        value = uid.encode() + b"\0" * (len(uid) % 2)
        content += struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"UI", len(value)) + value
    return content


def answer_to(association: Association, request: C_STORE, context_id: int = 1) -> Any:
    """Send a request as it is, and give the response primitive; None when none comes."""
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


@contextmanager
def misbehaving(*handlers: Any) -> Iterator[Peer]:
    """A storage server whose handlers do what no storage server should."""
    entity = AE("ODD")
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        contexts=[contexts.plain(MR), contexts.plain(contexts.VERIFICATION)],
        evt_handlers=list(handlers),
    )
    assert server is not None
    try:
        yield Peer("odd", "ODD", "127.0.0.1", server.server_address[1])
    finally:
        close(server)
        entity.shutdown()
