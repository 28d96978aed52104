"""What the node's inner parts work on, made without a network: received objects and setups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from node import bundle as bundles
from node.dicom.scp import Received
from node.domain.job import BackOff
from node.domain.peer import Network
from node.domain.stage import Reached, unobserved
from node.engine import Engine
from node.indexer import Indexer
from node.ledger import Ledger
from node.ledger.jobs import JobRow
from node.outputs import Output
from node.outputs.seg import Seg
from node.outputs.sr import Sr
from node.pipeline import Setup, Tools
from node.queues.embedded import Embedded
from node.room import EngineIdentity, Room, Terms
from node.runtimes.onnx import Onnx
from node.spool import Spool
from node.testing.series import SeriesSpec
from node.triggers.push import Push
from node.worker import Patience, Worker
from tests.acceptance.hospital import SPEC, small_study, tiny_engine
from tests.conftest import Clock

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


@dataclass
class Bench:
    """One node without its network."""

    ledger: Ledger
    spool: Spool
    setup: Setup
    clock: Clock
    terms: Terms = field(default_factory=Terms)
    reached: Reached = unobserved

    @property
    def engine(self) -> EngineIdentity:
        """The tiny engine as jobs name it."""
        return EngineIdentity("tiny", self.setup.bundle.digest, self.setup.config_digest)

    @property
    def room(self) -> Room:
        """What the triggers get."""
        network = Network("AINODE")
        return Room(
            self.ledger, network, (self.engine,), 0.0, lambda: None, self.reached, self.terms
        )

    def receive(self, spec: SeriesSpec = SPEC, datasets: Sequence[Dataset] | None = None) -> None:
        """A study, or some instances of it, arrive and are complete."""
        for dataset in small_study(spec) if datasets is None else datasets:
            self.spool.keep(received(dataset))
        self.complete()

    def complete(self) -> None:
        """What is in the spool is entered, and complete after a while."""
        indexer = Indexer(self.spool, self.ledger, self.clock)
        while indexer.step():
            pass
        Push().fire(self.room, self.clock.advance(10.0))

    def work(self, setup: Setup | None = None, name: str = "worker") -> bool:
        """One step of a worker that was just started."""
        worker = self.worker(setup, name)
        worked = worker.step(self.clock)
        worker.close()
        return worked

    def worker(self, setup: Setup | None = None, name: str = "worker") -> Worker:
        """A worker that tries three times."""
        patience = Patience(attempts=3, back_off=BackOff(first=30.0))
        setups = {"tiny": setup or self.setup}
        given = replace(tools(self.spool), reached=self.reached)
        return Worker(self.ledger, Embedded(self.ledger), setups, given, patience, name)

    def jobs(self, study_uid: str = SPEC.study_uid) -> tuple[JobRow, ...]:
        """The jobs of a study."""
        with self.ledger.read() as books:
            return books.jobs.of_study(study_uid)

    def kinds(self) -> list[str]:
        """The kinds of the study's events, in order."""
        with self.ledger.read() as books:
            return [event.kind for event in books.events.of_study(SPEC.study_uid)]

    def frozen(self) -> dict[str, bytes]:
        """The results on disk by file name."""
        return {
            path.name: path.read_bytes() for path in (self.spool.root / "results").rglob("*.dcm")
        }


@contextmanager
def at_work(directory: Path, clock: Clock) -> Iterator[Bench]:
    """A bench in a directory, with the tiny engine loaded."""
    ledger = Ledger.open(directory / "ledger.sqlite")
    setup = tiny_setup(directory)
    bench = Bench(ledger, Spool(directory / "spool", clock), setup, clock)
    try:
        yield bench
    finally:
        setup.engine.close()
        bench.ledger.close()


class Failing:
    """An engine that fails so many times before it works."""

    def __init__(self, setup: Setup, errors: list[Exception]) -> None:
        self._setup = setup
        self._errors = errors

    def examine(self, *arguments: object) -> object:
        """The engine's own findings, or the next error."""
        if self._errors:
            raise self._errors.pop(0)
        return self._setup.engine.examine(*arguments)  # type: ignore[arg-type]


def failing(bench: Bench, *errors: Exception) -> Setup:
    """The bench's engine, failing first with these errors."""
    return replace(bench.setup, engine=Failing(bench.setup, list(errors)))  # type: ignore[arg-type]
