"""What the node's inner parts work on, made without a network: received objects and setups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from node import bundle as bundles
from node.dicom.scp import Received
from node.domain.stage import unobserved
from node.engine import Engine
from node.outputs import Output
from node.outputs.seg import Seg
from node.outputs.sr import Sr
from node.pipeline import Setup, Tools
from node.runtimes.onnx import Onnx
from node.spool import Spool
from tests.acceptance.hospital import tiny_engine

OUTPUTS: Mapping[str, Output] = {"seg": Seg(), "sr": Sr()}


def received(dataset: Dataset, peer: str = "modality") -> Received:
    """A data set as the receiver hands it over: its bytes and what the request said."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, dataset)
    return Received(
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        peer=peer,
        calling_ae="MODALITY",
        called_ae="AINODE",
        address="127.0.0.1",
        dataset=stream.getvalue(),
    )


def tiny_setup(directory: Path, **changes: Any) -> Setup:
    """The tiny engine of the acceptance tests, loaded."""
    bundle = bundles.read(tiny_engine(directory))
    options: dict[str, Any] = {
        "bundle": bundle,
        "engine": Engine.load(bundle, Onnx(threads=1)),
        "outputs": OUTPUTS,
        "destinations": ("pacs",),
        "config_digest": "c",
    }
    return Setup(**(options | changes))


def tools(spool: Spool) -> Tools:
    """Tools with a stopwatch that stands still."""
    return Tools(spool, lambda: 0.0, unobserved)
