"""A small PACS: C-ECHO, C-STORE, C-FIND, C-MOVE and storage commitment.

The demo has nowhere to send its results without one, and the tests plan its bad days with
``Faults``. It is no product: everybody may call, and what it holds is gone when it stops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_ACTION_RSP
from pynetdicom.dimse_primitives import C_MOVE, C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import ThreadedAssociationServer

from node.dicom import contexts
from node.dicom.commitment import STORAGE_COMMITMENT
from node.dicom.contexts import Label
from node.dicom.wire import MAXIMUM_PDU, close, read_alone, reject, tuning
from node.testing.commitment import Asked, asked_of, report_on, tell, tell_at

_SERVICES = (
    contexts.VERIFICATION,
    contexts.STUDY_ROOT_FIND,
    contexts.STUDY_ROOT_MOVE,
    STORAGE_COMMITMENT,
)
_SILENCE_S = 60.0
_RETURNED = {
    "STUDY": ("StudyInstanceUID", "AccessionNumber", "StudyDate", "StudyTime", "StudyDescription"),
    "SERIES": ("StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber"),
    "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"),
}
_IDENTITY = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


@dataclass(frozen=True, slots=True)
class Faults:
    """The archive's bad day.

    ``statuses`` maps the number of a C-STORE, from 1, to its answer; at number ``abort_at`` the
    association is aborted instead. ``find_status`` answers every C-FIND that is not 0, and
    ``ignored`` are the keywords of keys that it does not look at. ``unmovable`` are studies whose
    C-MOVE fails, ``dropped`` those at whose C-MOVE the association is aborted; with ``leaves`` the
    archive refuses everybody after that.

    C-STOREs whose number is in ``unkept`` are answered with success and not kept. ``unsupported``
    are SOP classes that are not accepted. ``commitment_status`` answers every N-ACTION; what is
    ``uncommitted`` is reported as failed. The report comes on the ``same`` association, on
    ``another``, or ``later``, when ``Archive.report`` is called.
    """

    refuse: bool = False
    statuses: Mapping[int, int] = field(default_factory=dict)
    abort_at: int = 0
    find_status: int = 0
    ignored: frozenset[str] = frozenset()
    unmovable: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    leaves: bool = False
    unkept: frozenset[int] = frozenset()
    unsupported: frozenset[str] = frozenset()
    commitment_status: int = 0
    uncommitted: frozenset[str] = frozenset()
    reports: Literal["same", "another", "later"] = "another"


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """An object in the archive; with a ``path``, ``dataset`` is its header only."""

    dataset: Dataset
    path: Path | None = None

    def read(self) -> Dataset:
        """The whole object."""
        return dcmread(self.path) if self.path else self.dataset


class Archive:
    """A PACS. Safe to use from several threads; ``faults`` may be changed at any time."""

    def __init__(
        self,
        ae_title: str = "ARCHIVE",
        directory: Path | None = None,
        port: int = 0,
        destinations: Mapping[str, tuple[str, int]] | None = None,
        faults: Faults | None = None,
    ) -> None:
        """Objects go to ``directory``, or stay in memory.

        ``destinations`` are the AE titles that C-MOVE may name, and to which reports go, with
        host and port.
        """
        self.ae_title = ae_title
        self.faults = faults or Faults()
        self.destinations = dict(destinations or {})
        self.stored: list[str] = []
        """SOP Instance UID of every accepted C-STORE in order; one sent twice is here twice."""
        self.moved: list[str] = []
        """Study Instance UID of every C-MOVE in order."""
        self.asked: list[Asked] = []
        """Requests for storage commitment on which nothing was reported yet."""
        self.answers: list[int | None] = []
        """The status with which each report was answered; None without an answer."""
        self._directory = directory
        self._held: dict[str, Held] = {}
        self._offered = 0
        self._changed = threading.Condition()
        self._port = port
        self._ae = AE(ae_title)
        self._ae.maximum_pdu_size = MAXIMUM_PDU
        self._server: ThreadedAssociationServer | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; the same one after a stop and a start."""
        return self._port

    @property
    def instances(self) -> tuple[Held, ...]:
        """What it holds, in order of arrival; an object stored again replaces itself."""
        with self._changed:
            return tuple(self._held.values())

    def start(self) -> None:
        """Listen on the loopback interface, in threads of its own."""
        self._server = self._ae.start_server(
            ("127.0.0.1", self._port),
            block=False,
            contexts=[contexts.plain(contexts.VERIFICATION)],
            evt_handlers=[
                tuning(_SILENCE_S),
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_C_FIND, self._on_find),
                (evt.EVT_C_MOVE, self._on_move),
                (evt.EVT_N_ACTION, self._on_action),
                (evt.EVT_DIMSE_SENT, self._on_sent),
            ],
        )
        self._port = cast(ThreadedAssociationServer, self._server).server_address[1]

    def stop(self) -> None:
        """Stop listening and abort what is open. What is held stays until the archive is gone."""
        if self._server is not None:
            close(self._server)
            self._ae.shutdown()
            self._server = None

    def __enter__(self) -> Archive:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def hold(self, dataset: Dataset) -> None:
        """Put an object with file meta information into the archive without a network."""
        stream = BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        with self._changed:
            self._hold(stream.getvalue(), str(dataset.SOPInstanceUID))

    def forget(self) -> None:
        """Be empty again."""
        with self._changed:
            self._held.clear()
            self.stored.clear()
            self.moved.clear()
            self.asked.clear()
            self.answers.clear()
            self._offered = 0

    def wait_for(self, predicate: Callable[[Archive], bool], timeout_s: float) -> bool:
        """Wait until the predicate holds, looking after each change; False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: predicate(self), timeout_s)

    def report(self, association: Association | None = None) -> None:
        """Report on what was asked, on an open association or on new ones."""
        with self._changed:
            asked, self.asked[:] = list(self.asked), []
            held = set(self._held)
        for request in asked:
            information = report_on(request, held, self.faults.uncommitted)
            if association is not None:
                answer = tell(association, information)
            else:
                place = self.destinations[request.ae_title]
                answer = tell_at(place, request.ae_title, self.ae_title, information)
            with self._changed:
                self.answers.append(answer)
                self._changed.notify_all()

    def _hold(self, content: bytes, uid: str) -> None:
        if self._directory is None:
            self._held[uid] = Held(dcmread(BytesIO(content)))
        else:
            # Names are counted, never taken from the wire.
            earlier = self._held.get(uid)
            path = earlier.path if earlier else None
            path = path or self._directory / f"{len(self._held):06d}.dcm"
            path.write_bytes(content)
            self._held[uid] = Held(dcmread(path, stop_before_pixels=True), path)
        self._changed.notify_all()

    def _on_requested(self, event: Event) -> None:
        if self.faults.refuse:
            reject(event.assoc, 2, 1, 1)
            return
        request = cast(A_ASSOCIATE, event.assoc.requestor.primitive)
        event.assoc.acceptor.supported_contexts = [
            context
            for context in contexts.acceptable(
                request.presentation_context_definition_list, _SERVICES
            )
            if context.abstract_syntax not in self.faults.unsupported
        ]

    def _on_store(self, event: Event) -> int:
        with self._changed:
            self._offered += 1
            number = self._offered
        if number == self.faults.abort_at:
            event.assoc.abort()
            return 0xC000
        status = self.faults.statuses.get(number, 0x0000)
        # The warnings of PS3.4 B.2.3 say that the object was stored.
        if status == 0x0000 or status >> 12 == 0xB:
            uid = str(cast(C_STORE, event.request).AffectedSOPInstanceUID)
            with self._changed:
                self.stored.append(uid)
                if number not in self.faults.unkept:
                    self._hold(event.encoded_dataset(), uid)
        return status

    def _on_action(self, event: Event) -> tuple[int, None]:
        status = self.faults.commitment_status
        if status == 0x0000:
            with self._changed:
                title = str(event.assoc.requestor.ae_title)
                self.asked.append(asked_of(event.action_information, title))
                self._changed.notify_all()
        return status, None

    def _on_sent(self, event: Event) -> None:
        """Report only after the N-ACTION was answered, and not in the association's thread."""
        way = self.faults.reports
        if isinstance(event.message, N_ACTION_RSP) and way != "later" and self.asked:
            association = event.assoc if way == "same" else None
            threading.Thread(target=self.report, args=(association,), daemon=True).start()

    def _on_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        keys = event.identifier
        level = str(keys.get("QueryRetrieveLevel", ""))
        if self.faults.find_status or level not in _RETURNED:
            yield self.faults.find_status or 0xA900, None
            return
        for record in _records(self.instances, level):
            if _matches(record, keys, self.faults.ignored):
                yield 0xFF00, _answer(record, keys)

    def _on_move(self, event: Event) -> Iterator[Any]:
        study = str(event.identifier.StudyInstanceUID)
        destination = self.destinations.get(cast(str, cast(C_MOVE, event.request).MoveDestination))
        with self._changed:
            self.moved.append(study)
            self._changed.notify_all()
        if study in self.faults.dropped:
            self.faults = replace(self.faults, refuse=self.faults.leaves)
            event.assoc.abort()
        if destination is None:
            yield None, None
            return
        datasets = [h.read() for h in self.instances if h.dataset.StudyInstanceUID == study]
        yield (
            *destination,
            {"contexts": _proposals(datasets), "evt_handlers": _SENDING},
        )
        if study in self.faults.unmovable:
            yield 1
            yield 0xA702, None
            return
        yield len(datasets)
        for dataset in datasets:
            yield 0xFF00, dataset


def _read_alone(event: Event) -> None:
    """Handler of EVT_ESTABLISHED for the C-STOREs of a C-MOVE."""
    read_alone(event.assoc)
    event.assoc.start = _stay  # type: ignore[method-assign]


def _stay() -> None:
    """In place of the start of the association's thread."""


_SENDING = [tuning(_SILENCE_S), (evt.EVT_ESTABLISHED, _read_alone)]


def _proposals(datasets: list[Dataset]) -> list[Any]:
    labels = (
        Label(d.SOPClassUID, d.SOPInstanceUID, d.file_meta.TransferSyntaxUID) for d in datasets
    )
    return contexts.proposals(labels) or [contexts.plain(contexts.VERIFICATION)]


def _records(held: tuple[Held, ...], level: str) -> list[Dataset]:
    """One data set per entity, with the counts that PS3.4 C.3.4 allows to be asked."""
    groups: dict[str, list[Dataset]] = {}
    for instance in held:
        uid = str(instance.dataset.get(_IDENTITY[level], ""))
        groups.setdefault(uid, []).append(instance.dataset)
    return [_record(members, level) for members in groups.values()]


def _record(members: list[Dataset], level: str) -> Dataset:
    record = Dataset()
    for keyword in ("SpecificCharacterSet", *_RETURNED[level], "Modality"):
        if keyword in members[0]:
            record[keyword] = members[0][keyword]
    if level == "STUDY":
        del record.Modality
        record.ModalitiesInStudy = sorted({str(member.Modality) for member in members})
        record.NumberOfStudyRelatedInstances = len(members)
    elif level == "SERIES":
        record.NumberOfSeriesRelatedInstances = len(members)
    return record


def _matches(record: Dataset, keys: Dataset, ignored: frozenset[str]) -> bool:
    return all(
        _like(record.get(key.keyword), str(key.value), key.VR)
        for key in keys
        if key.keyword not in ignored | {"QueryRetrieveLevel", "SpecificCharacterSet"}
        and not key.is_empty
    )


def _like(value: Any, pattern: str, vr: str) -> bool:
    """Range matching for dates, wildcard and list matching for the rest (PS3.4 C.2.2.2)."""
    if value is None or value == "":
        return vr == "DA"  # an archive cannot rule out what it does not know
    if vr == "DA" and "-" in pattern:
        first, _, last = pattern.partition("-")
        return first <= str(value) <= (last or "99999999")
    values = [value] if isinstance(value, str | int) else list(value)
    patterns = pattern.split("\\") if vr == "UI" else [pattern.replace("[", "[[]")]
    return any(fnmatchcase(str(v), p) for v in values for p in patterns)


def _answer(record: Dataset, keys: Dataset) -> Dataset:
    """What was asked for, as far as the record has it."""
    answer = Dataset()
    for key in keys:
        if key.keyword in record:
            answer[key.keyword] = record[key.keyword]
        elif key.keyword != "SpecificCharacterSet":
            setattr(answer, key.keyword, None)
    if "SpecificCharacterSet" in record:
        answer.SpecificCharacterSet = record.SpecificCharacterSet
    answer.QueryRetrieveLevel = keys.QueryRetrieveLevel
    return answer
