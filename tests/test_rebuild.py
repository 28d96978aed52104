"""A lost or damaged ledger is made anew from the spool: nothing lost, nothing made twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.domain.errors import InferenceError
from node.domain.job import JobState
from node.ledger import Ledger
from node.rebuild import opened, rebuild
from node.reconciler import Reconciler
from tests.acceptance.hospital import SPEC, small_study
from tests.conftest import Clock
from tests.ward import Bench, at_work, failing, received


@pytest.fixture
def bench(tmp_path: Path, clock: Clock) -> Iterator[Bench]:
    with at_work(tmp_path, clock) as bench:
        yield bench
    for aside in tmp_path.glob("*.broken-*"):
        aside.unlink()  # the search for patients' names opens every ledger that it finds


def path_of(bench: Bench) -> Path:
    return bench.ledger._path


def lose(path: Path) -> None:
    for each in path.parent.glob("ledger.sqlite*"):
        each.unlink()


def fill_with_noise(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096])


def damage_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:-4096] = b"\xa5" * (len(content) - 8192)
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [lose, fill_with_noise, cut_off, damage_the_middle, empty]


def recover(bench: Bench) -> None:
    """What a start of the node does: open the ledger, and let the loops turn."""
    bench.ledger.close()
    bench.ledger = opened(path_of(bench), bench.spool, bench.clock.now)
    bench.complete()
    Reconciler(bench.room, bench.spool, lambda: {"worker"}).step(bench.clock.now)


def known(bench: Bench) -> dict[str, str]:
    with bench.ledger.read() as books:
        study = books.arrivals.study(SPEC.study_uid)
    assert all(instance.path.is_file() for instance in study.instances)
    return {instance.sop_instance_uid: instance.sha256 for instance in study.instances}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_nothing_is_lost_with_the_ledger_and_nothing_is_computed_again(
    bench: Bench, damage: Callable[[Path], None]
) -> None:
    bench.receive()
    bench.work()
    before, results = known(bench), bench.frozen()
    (job,) = bench.jobs()
    bench.ledger.close()
    damage(path_of(bench))
    recover(bench)
    bench.work(failing(bench, *[InferenceError("computed again")] * 9))
    assert known(bench) == before
    (again,) = bench.jobs()
    assert (again.job.id, again.job.state) == (job.job.id, JobState.DONE)
    assert bench.frozen() == results
    with bench.ledger.read() as books:
        due = books.deliveries.due("pacs", bench.clock.now)
        alarm = books.events.latest("alarm")
    assert [row.result.kind for row in due] == ["seg", "sr"]
    assert alarm is not None
    assert "6 objects" in alarm.words


def test_a_study_that_was_waiting_for_its_result_gets_it(bench: Bench) -> None:
    bench.receive()
    lose(path_of(bench))
    recover(bench)
    assert bench.work()
    assert bench.jobs()[0].job.state is JobState.DONE


def test_the_broken_file_is_kept(bench: Bench) -> None:
    bench.receive()
    bench.ledger.close()
    fill_with_noise(path_of(bench))
    broken = path_of(bench).read_bytes()
    recover(bench)
    (aside,) = path_of(bench).parent.glob("ledger.sqlite.broken-*")
    assert aside.read_bytes() == broken


def test_a_sound_ledger_and_a_first_start_are_left_alone(bench: Bench, tmp_path: Path) -> None:
    bench.receive()
    bench.work()
    before = bench.jobs(), bench.kinds()
    bench.ledger.close()
    bench.ledger = opened(path_of(bench), bench.spool, bench.clock.now)
    assert (bench.jobs(), bench.kinds()) == before
    fresh = Bench(
        opened(
            tmp_path / "fresh" / "ledger.sqlite",
            bench.spool.__class__(tmp_path / "s", Clock()),
            0.0,
        ),
        bench.spool,
        bench.setup,
        bench.clock,
    )
    with fresh.ledger.read() as books:
        assert books.events.head().id == 0
    fresh.ledger.close()


def test_no_study_is_complete_while_its_instances_wait_to_be_entered_again(bench: Bench) -> None:
    """The horizon: silence is judged up to the oldest arrival that is not entered."""
    bench.receive()
    bench.clock.advance(3600.0)
    for dataset in small_study():
        bench.spool.keep(received(dataset))
    waiting = min(float(path.name[:16]) / 1e6 for path in bench.spool.arrivals())
    assert bench.spool.horizon(bench.clock.advance(600.0)) == waiting == bench.clock.now - 600.0
    bench.complete()
    assert bench.spool.horizon(bench.clock.now) == bench.clock.now


def test_what_was_quarantined_is_in_quarantine_still(bench: Bench) -> None:
    (dataset, *_) = small_study()
    bench.receive(datasets=[dataset])
    dataset.SeriesDescription = "CHANGED"
    bench.receive(datasets=[dataset])
    lose(path_of(bench))
    recover(bench)
    with bench.ledger.read() as books:
        (entry,) = books.quarantine.rows()
    assert entry.path.is_file()
    assert "other bytes" in entry.reason


@pytest.mark.parametrize("stage", range(3))
def test_a_rebuild_that_was_cut_short_is_taken_up_again(
    bench: Bench, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.receive()
    bench.work()
    before = known(bench)
    bench.ledger.close()
    fill_with_noise(path_of(bench))
    moves = [0]
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        moves[0] += 1
        if moves[0] == (2, 6, 7)[stage]:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        rebuild(path_of(bench), bench.spool, bench.clock.now, "test")
    monkeypatch.undo()
    recover(bench)
    assert known(bench) == before
    bench.work()
    assert [row.job.state for row in bench.jobs()] == [JobState.DONE]


def test_results_that_were_half_frozen_are_not_taken_for_results(bench: Bench) -> None:
    bench.receive()
    (row,) = bench.jobs()
    bench.spool.freeze(row.job.id, "seg", b"half", ("2.25.1", "1.2.840.10008.5.1.4.1.1.66.4"))
    lose(path_of(bench))
    recover(bench)
    with bench.ledger.read() as books:
        assert books.deliveries.due("pacs", bench.clock.now) == ()
    assert bench.work()
    assert b"half" not in bench.frozen().values()


def test_two_parts_that_start_together_make_one_ledger(bench: Bench) -> None:
    from concurrent.futures import ThreadPoolExecutor

    bench.receive()
    bench.ledger.close()
    fill_with_noise(path_of(bench))
    with ThreadPoolExecutor(3) as pool:
        ledgers: list[Ledger] = list(
            pool.map(lambda _: opened(path_of(bench), bench.spool, bench.clock.now), range(3))
        )
    assert len(list(path_of(bench).parent.glob("ledger.sqlite.broken-*[0-9]"))) == 1
    for ledger in ledgers:
        with ledger.write() as books:
            books.events.note(1.0, "started", "here")
        ledger.close()
