"""``echo``, ``send``, ``pull``, ``jobs`` and ``why`` against a node and an archive that run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.config import load
from node.daemon import Node
from node.site import Watcher
from node.testing.archive import Archive
from node.testing.series import save
from tests.acceptance.hospital import AE_TITLE, SPEC, Lookout, Plan, ended, small_study, tiny_engine
from tests.cli.conftest import Said

Command = Callable[..., Said]


@dataclass(frozen=True)
class Site:
    """A running node, its configuration, its archive, and a folder with a study."""

    node: Node
    config: Path
    archive: Archive
    lookout: Lookout
    study: Path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    lookout = Lookout()
    with Archive() as archive:
        plan = Plan(tiny_engine(tmp_path), archive.port)
        with Node(load(plan.write(tmp_path / "node")), Watcher(reached=lookout.reached)) as node:
            archive.destinations[AE_TITLE] = ("127.0.0.1", node.port)
            own = f'[[peer]]\nname = "self"\nae_title = "{AE_TITLE}"\nhost = "127.0.0.1"\n'
            # The commands call from our own AE title: the node must know itself to answer it.
            config = Plan(plan.engine, archive.port, node.port, extra=own).write(tmp_path / "node")
            save(small_study(), tmp_path / "study")
            yield Site(node, config, archive, lookout, tmp_path / "study")


def test_echo_says_how_a_peer_answers_and_what_it_would_take(site: Site, ai_node: Command) -> None:
    said = ai_node("echo", "archive", "--config", site.config)
    assert said.code == 0
    assert "archive answers in" in said.out
    assert "Segmentation Storage" in said.out
    report = ai_node("echo", "archive", "--config", site.config, "--json").json
    assert report["latency_ms"] > 0


def test_echo_to_an_unknown_peer_lists_the_known_ones(site: Site, ai_node: Command) -> None:
    said = ai_node("echo", "archiv", "--config", site.config)
    assert said.code == 2
    assert "modality, archive" in said.err


def test_echo_to_a_peer_that_is_down_says_so(site: Site, ai_node: Command) -> None:
    site.archive.stop()
    said = ai_node("echo", "archive", "--config", site.config)
    assert said.code == 1
    assert str(site.archive.port) in said.err


def test_send_takes_a_folder_to_a_peer(site: Site, ai_node: Command) -> None:
    said = ai_node("send", site.study, "--to", "archive", "--config", site.config)
    assert (said.code, len(site.archive.stored)) == (0, 6)
    assert "6 of 6 taken by archive" in said.out


def test_send_of_a_folder_without_dicom_says_so(
    site: Site, ai_node: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = ai_node("send", tmp_path / "empty", "--config", site.config)
    assert said.code == 1
    assert "holds no DICOM file" in said.err


def test_a_pulled_study_is_processed_and_explained(site: Site, ai_node: Command) -> None:
    for dataset in small_study():
        site.archive.hold(dataset)
    said = ai_node("pull", SPEC.accession_number, "--from", "archive", "--config", site.config)
    assert said.code == 0, said.err
    assert "6 instances" in said.out
    assert site.lookout.wait_for(lambda: ended(site.node))

    (job,) = ai_node("jobs", "--config", site.config, "--json").json
    assert job["job"]["state"] == "done"
    listed = ai_node("jobs", "--config", site.config)
    assert "done" in listed.out
    result = site.archive.stored[0]
    for number in (SPEC.accession_number, SPEC.study_uid, SPEC.series_uid, result):
        page = ai_node("why", number, "--config", site.config)
        assert page.code == 0, page.err
        for line in ("received", "by quiet period", "taken", "seg to archive: sent", "Volume"):
            assert line in page.out


def test_pull_of_an_unknown_accession_number_says_so(site: Site, ai_node: Command) -> None:
    said = ai_node("pull", "NONE", "--from", "archive", "--config", site.config)
    assert said.code == 1
    assert "no study with this accession number" in said.err


def test_why_of_an_unknown_number_says_where_to_look(site: Site, ai_node: Command) -> None:
    said = ai_node("why", "1.2.3.4", "--config", site.config)
    assert said.code == 1
    assert "1.2.3.4" in said.err
    assert "echo" in said.err


def test_jobs_before_the_first_run_says_that_there_is_no_ledger(
    ai_node: Command, tmp_path: Path
) -> None:
    config = Plan(tiny_engine(tmp_path), 104).write(tmp_path / "other")
    said = ai_node("jobs", "--config", config)
    assert said.code == 1
    assert "has not run yet" in said.err


def test_engine_list_names_the_shipped_engines(ai_node: Command) -> None:
    names = [engine["name"] for engine in ai_node("engine", "list", "--json").json]
    assert "mr-brain-lesion" in names
    said = ai_node("engine", "list")
    assert "mr-brain-lesion" in said.out
