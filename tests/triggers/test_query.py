"""The query trigger: nothing missed, nothing fetched twice."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from node.domain.errors import PeerError, StatusError
from node.domain.peer import Network, Peer
from node.testing.archive import Archive, Faults
from node.testing.series import SeriesSpec
from node.triggers.query import Query, pull
from tests.conftest import Clock
from tests.dicom.callers import archive_at, images
from tests.triggers.memory import MemoryRoom

DAY = 86400.0
QUERY = Query("pacs", modality="MR")


@dataclass
class Site:
    """A PACS, and in the node's place another archive that counts what it gets."""

    pacs: Archive
    node: Archive
    clock: Clock
    room: MemoryRoom

    def arrive(self, name: str, images_: int = 1, days_ago: int = 0, **spec: Any) -> str:
        """A study appears at the PACS; its Study Instance UID."""
        day = datetime.date.fromtimestamp(self.clock.now) - datetime.timedelta(days=days_ago)
        made = SeriesSpec(study=name, study_date=f"{day:%Y%m%d}", accession_number=name, **spec)
        for image in images(images_, made):
            self.pacs.hold(image)
        return made.study_uid

    def fire(self, query: Query = QUERY) -> None:
        query.fire(self.room, self.clock.now)

    @property
    def moved(self) -> list[str]:
        return self.pacs.moved


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Archive, Archive]]:
    with Archive("PACS") as pacs, Archive("NODE") as node:
        pacs.destinations["NODE"] = ("127.0.0.1", node.port)
        yield pacs, node


@pytest.fixture
def site(machines: tuple[Archive, Archive], clock: Clock) -> Iterator[Site]:
    pacs, node = machines
    pacs.forget()
    node.forget()
    network = Network("NODE", {"pacs": archive_at(pacs)}, 2.0, 5.0)
    yield Site(pacs, node, clock, MemoryRoom(network))
    pacs.faults = node.faults = Faults()


def test_a_new_study_is_fetched_to_our_own_ae_title(site: Site) -> None:
    study = site.arrive("one", images_=3)
    site.fire()
    assert site.moved == [study]
    assert len(site.node.stored) == 3
    assert site.room.pulls.states() == {study: "pulled"}


def test_a_study_is_fetched_once_though_windows_overlap(site: Site) -> None:
    study = site.arrive("one")
    for _ in range(3):
        site.fire()
        site.clock.advance(300.0)
    assert site.moved == [study]


def test_the_first_question_reaches_back_the_configured_days(site: Site) -> None:
    near, _ = site.arrive("near", days_ago=2), site.arrive("far", days_ago=3)
    site.fire()
    assert site.moved == [near]


def test_later_questions_reach_back_to_the_last_answer_and_its_overlap(site: Site) -> None:
    site.fire()
    site.clock.advance(5 * DAY)  # the node was off
    inside = site.arrive("inside", days_ago=6)
    site.arrive("outside", days_ago=7)
    site.fire()
    assert site.moved == [inside]


def test_no_answer_moves_no_mark_so_that_no_day_is_missed(site: Site) -> None:
    site.fire()
    site.pacs.faults = Faults(refuse=True)
    for _ in range(4):
        site.clock.advance(DAY)
        site.fire()
    study = site.arrive("one", days_ago=4)
    site.pacs.faults = Faults()
    site.fire()
    assert site.moved == [study]


def test_a_clock_that_was_set_back_does_not_lose_today(site: Site) -> None:
    site.clock.advance(3 * DAY)
    site.fire()
    site.clock.advance(-3 * DAY)
    study = site.arrive("one")
    site.fire()
    assert site.moved == [study]


def test_only_what_was_asked_for_is_fetched(site: Site) -> None:
    brain = site.arrive("brain", study_description="MR Brain")
    site.arrive("knee", study_description="MR Knee")
    site.arrive("ct", study_description="CT Brain", modality="CT")
    site.fire(replace(QUERY, description="*Brain*"))
    assert site.moved == [brain]


def test_another_filter_has_a_mark_of_its_own(site: Site) -> None:
    site.fire()
    site.clock.advance(2 * DAY)
    site.fire()
    older = site.arrive("ct", days_ago=2, modality="CT")
    site.fire(Query("pacs", modality="CT"))
    assert site.moved == [older]


def test_a_study_that_has_grown_is_fetched_again(site: Site) -> None:
    study = site.arrive("one", images_=1)
    site.fire()
    site.arrive("one", images_=2)
    site.fire()
    site.fire()
    assert site.moved == [study, study]
    assert len(site.node.instances) == 2


def test_a_study_that_the_peer_cannot_send_does_not_stop_the_others(site: Site) -> None:
    first, stuck, last = (site.arrive(name) for name in ("one", "two", "three"))
    site.pacs.faults = Faults(unmovable=frozenset({stuck}))
    site.fire()
    assert site.moved == [first, stuck, last]
    assert site.room.pulls.states() == {first: "pulled", stuck: "due", last: "pulled"}


def test_a_failed_fetch_waits_longer_each_time_and_ends(site: Site) -> None:
    stuck = site.arrive("one")
    site.pacs.faults = Faults(unmovable=frozenset({stuck}))
    query = replace(QUERY, attempts=3)
    waits = []
    for _ in range(3):
        site.fire(query)
        (entry,) = site.room.pulls.entries.values()
        waits.append(entry.due_at - site.clock.now)
        site.fire(query)  # not due yet
        site.clock.advance(max(waits[-1], 0.0))
    assert waits[:2] == [60.0, 120.0]
    assert len(site.moved) == 3
    assert site.room.pulls.states() == {stuck: "given up"}
    assert "could not send to NODE" in next(iter(site.room.pulls.entries.values())).reason


def test_a_fetch_of_which_a_part_failed_is_tried_again(site: Site) -> None:
    study = site.arrive("one", images_=3)
    site.node.faults = Faults(statuses={2: 0xA700})
    site.fire()
    assert site.room.pulls.states() == {study: "due"}
    site.clock.advance(60.0)
    site.fire()
    assert site.room.pulls.states() == {study: "pulled"}
    assert len(site.node.instances) == 3


def test_a_peer_that_is_down_leaves_everything_due_and_uncounted(site: Site) -> None:
    study = site.arrive("one")
    site.pacs.faults = Faults(unmovable=frozenset({study}))
    site.fire()
    (before,) = site.room.pulls.entries.values()
    site.clock.advance(3600.0)
    down = Peer("pacs", "PACS", "127.0.0.1", 1)
    QUERY.fire(
        MemoryRoom(Network("NODE", {"pacs": down}, 1.0, 1.0), site.room.pulls), site.clock.now
    )
    assert list(site.room.pulls.entries.values()) == [before]


def test_a_peer_that_goes_down_while_fetching_leaves_the_rest_due(site: Site) -> None:
    studies = [site.arrive(name) for name in ("one", "two")]
    site.pacs.faults = Faults(dropped=frozenset(studies), leaves=True)
    site.fire()
    assert site.moved == studies[:1]
    assert site.room.pulls.states() == {studies[0]: "due", studies[1]: "due"}
    assert [entry.attempts for entry in site.room.pulls.entries.values()] == [0, 0]


def test_a_study_at_which_the_peer_breaks_off_each_time_does_not_stop_the_others(
    site: Site,
) -> None:
    broken, whole = site.arrive("one"), site.arrive("two")
    site.pacs.faults = Faults(dropped=frozenset({broken}))
    site.fire()
    assert site.room.pulls.states() == {broken: "due", whole: "pulled"}
    assert site.room.pulls.entries["pacs", broken].attempts == 1


def test_a_query_that_is_refused_still_fetches_what_was_found_before(site: Site) -> None:
    study = site.arrive("one")
    site.pacs.faults = Faults(unmovable=frozenset({study}))
    site.fire()
    site.clock.advance(3600.0)
    mark = dict(site.room.pulls.marks)
    site.pacs.faults = Faults(find_status=0xA700)
    site.fire()
    assert site.room.pulls.states() == {study: "pulled"}
    assert site.room.pulls.marks == mark


def test_an_unknown_peer_is_a_clear_error(site: Site) -> None:
    with pytest.raises(PeerError, match="no peer is named 'other'"):
        site.fire(Query("other"))


@settings(
    max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.lists(
        st.sampled_from(["arrive", "grow", "fire", "refuse", "recover", "day"]),
        min_size=4,
        max_size=14,
    )
)
def test_in_whatever_order_things_happen_all_is_fetched_in_the_end(
    site: Site, events: list[str]
) -> None:
    site.pacs.forget()
    site.node.forget()
    room, arrived = MemoryRoom(site.room.network), 0
    # A week without any answer fits into the first window.
    query = replace(QUERY, days=7)
    for event in [*events, "recover", "fire", "fire"]:
        if event == "arrive":
            arrived += 1
            site.arrive(f"study {arrived}")
        elif event == "grow" and arrived:
            site.arrive(f"study {arrived}", images_=2)
        elif event == "fire":
            query.fire(room, site.clock.now)
        elif event in ("refuse", "recover"):
            site.pacs.faults = Faults(refuse=event == "refuse")
        elif event == "day":
            site.clock.advance(DAY / 2)
    assert uids(site.node) == uids(site.pacs)
    assert set(room.pulls.states().values()) <= {"pulled"}
    assert len(site.moved) <= arrived + events.count("grow")


def uids(archive: Archive) -> set[str]:
    return {str(held.dataset.SOPInstanceUID) for held in archive.instances}


# By hand


def test_pull_fetches_the_study_with_the_accession_number(site: Site) -> None:
    study, _ = site.arrive("ACC7", images_=2), site.arrive("ACC70")
    ((match, moved),) = pull(site.room.network, archive_at(site.pacs), "ACC7")
    assert (match.study_uid, moved.completed) == (study, 2)
    assert site.moved == [study]


def test_pull_of_what_is_not_there_is_a_clear_error_without_the_number(site: Site) -> None:
    with pytest.raises(PeerError, match="has no study with this accession number") as caught:
        pull(site.room.network, archive_at(site.pacs), "ACC404")
    assert "ACC404" not in str(caught.value)


@pytest.mark.parametrize("accession", ["", "*", "ACC?"])
def test_pull_fetches_no_archive_by_wildcard(site: Site, accession: str) -> None:
    site.arrive("ACC1")
    with pytest.raises(PeerError, match="without wildcards"):
        pull(site.room.network, archive_at(site.pacs), accession)
    assert site.moved == []


def test_pull_says_when_the_peer_does_not_know_us(site: Site) -> None:
    site.arrive("ACC1")
    network = replace(site.room.network, ae_title="STRANGER")
    with pytest.raises(StatusError, match="enter this AE title there"):
        pull(network, archive_at(site.pacs), "ACC1")


# Options


def test_the_schedule_is_the_interval_unless_a_crontab_line_is_given() -> None:
    interval = Query("pacs", interval_s=90.0).schedule()
    assert isinstance(interval, IntervalTrigger)
    assert interval.interval == datetime.timedelta(seconds=90)
    assert isinstance(Query("pacs", cron="*/5 7-19 * * 1-5").schedule(), CronTrigger)


@pytest.mark.parametrize(
    "options",
    [
        {"cron": "every morning"},
        {"cron": "61 * * * *"},
        {"interval_s": 0},
        {"days": -1},
        {"overlap_days": -1},
        {"attempts": 0},
        {"peers": "pacs"},
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Query).validate_python({"peer": "pacs", **options})
