"""Who gets a place when there are more callers than places."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.dicom.lobby import Limits, Lobby, Visit


class Guests:
    """Connections by name, and those that were told to end."""

    def __init__(self, **limits: int) -> None:
        self.lobby = Lobby(Limits(**limits))
        self.ended: list[str] = []

    def enter(self, name: str, address: str = "a") -> Visit | None:
        return self.lobby.enter(address, lambda: self.ended.append(name))


def test_everybody_enters_while_there_is_room() -> None:
    guests = Guests(total=4, per_address=4, waiting=4)
    assert all(guests.enter(str(number)) for number in range(4))
    assert (len(guests.lobby), guests.ended) == (4, [])


def test_the_oldest_that_waits_makes_room() -> None:
    guests = Guests(waiting=2)
    for name in "xyz":
        assert guests.enter(name) is not None
    assert guests.ended == ["x"]


def test_an_association_is_never_pushed_out() -> None:
    guests = Guests(per_address=2, waiting=2)
    for name in "xy":
        visit = guests.enter(name)
        assert visit is not None
        visit.seat()
    assert guests.enter("z") is None
    assert guests.enter("other", "b") is not None
    assert (guests.ended, guests.lobby.seated) == ([], 2)


def test_who_has_most_connections_waiting_loses_one() -> None:
    guests = Guests(waiting=4)
    guests.enter("first", "b")
    for name in "xyz":
        guests.enter(name, "a")
    assert guests.enter("new", "c") is not None
    assert guests.ended == ["x"]


def test_a_place_that_is_left_is_free_again() -> None:
    guests = Guests(total=1, per_address=1, waiting=1)
    visit = guests.enter("x")
    assert visit is not None
    visit.leave()
    visit.leave()
    assert guests.enter("y") is not None
    assert guests.ended == []


def test_a_closed_lobby_lets_nobody_in_and_knows_who_is_inside() -> None:
    guests = Guests()
    inside = guests.enter("x")
    assert guests.lobby.close() == [inside]
    assert guests.enter("y") is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), min_size=1, max_size=80
    )
)
def test_no_history_of_callers_breaks_a_limit(history: list[tuple[str, bool, bool]]) -> None:
    guests = Guests(total=8, per_address=5, waiting=3)
    inside: list[tuple[str, Visit]] = []
    for address, seats, leaves in history:
        visit = guests.enter("", address)
        if visit is not None:
            inside.append((address, visit))
            if seats:
                visit.seat()
        if leaves and inside:
            inside.pop(0)[1].leave()
        present = list(guests.lobby._visits)
        assert len(present) <= 8
        assert sum(not visit.seated for visit in present) <= 3
        assert all(sum(v.address == one for v in present) <= 5 for one in "abc")
