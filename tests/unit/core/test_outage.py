"""An outage: its table, its clock, its window and its evidence."""

from __future__ import annotations

import pytest

from tcmu_retry.core.outage import EVIDENCE, TABLE, WIDEST, Outage, State, Trigger
from tcmu_retry.core.policy import DirectionPolicy

POLICY = DirectionPolicy()


def half() -> float:
    return 0.5


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("trigger", list(Trigger))
def test_only_the_table_moves(state: State, trigger: Trigger) -> None:
    """A trigger that means nothing in a state leaves it, and says so."""
    outage = Outage(state)
    following = TABLE.get((state, trigger))
    assert outage.move(trigger) is (following is not None)
    assert outage.state is (following or state)


@pytest.mark.parametrize("state", list(State))
def test_every_state_can_be_reached_and_left(state: State) -> None:
    assert state in TABLE.values()
    assert any(origin is state and following is not state for (origin, _), following in TABLE.items())


def test_from_every_state_there_is_a_way_to_online() -> None:
    reaching = {State.ONLINE}
    for _ in State:
        reaching |= {origin for (origin, _), following in TABLE.items() if following in reaching}
    assert reaching == set(State)


def test_only_a_person_ends_a_stop() -> None:
    assert {trigger for origin, trigger in TABLE if origin is State.STOPPED} == {Trigger.RESUME, Trigger.RESUME_EMPTY}


def test_the_clock_stands_still() -> None:
    """t=100 … 160 nothing may be tried: the clock shows 100 all that time, and 60 s less from then on.

    A deadline at 130 of the clock comes at 190, and nobody knows when while it stands.
    """
    outage = Outage()
    assert (outage.clock(100), outage.real(130, 100)) == (100, 130)
    outage.stand_still(True, 100)
    outage.stand_still(True, 120)
    assert (outage.clock(150), outage.real(130, 150)) == (100, None)
    outage.stand_still(False, 160)
    outage.stand_still(False, 170)
    assert (outage.clock(160), outage.clock(200), outage.stood) == (100, 140, 60)
    assert outage.real(130, 170) == 190


def test_stood_time_is_counted_per_outage() -> None:
    """A hold before it began does not count; one within it does, also while it lasts."""
    outage = Outage()
    outage.stand_still(True, 10)
    outage.stand_still(False, 30)
    outage.begin(50)
    assert outage.stood_still(60) == 0
    outage.stand_still(True, 60)
    assert outage.stood_still(65) == 5
    outage.stand_still(False, 70)
    assert outage.stood_still(100) == 10


def test_a_new_outage_counts_anew() -> None:
    outage = Outage(probes=5, failures=3, held_most=9)
    outage.begin(7.0)
    assert (outage.began, outage.began_at, outage.probes, outage.failures, outage.held_most) == (7.0, 7.0, 0, 0, 0)


@pytest.mark.parametrize(
    ("ends", "window", "failures"),
    [
        ([], 1, 0),
        ([True], 2, 0),
        ([True, True, True], 8, 0),
        ([True] * 40, WIDEST, 0),
        ([True, True, False], 1, 1),
        ([False, False, False], 1, 3),
        ([False, False, True], 2, 0),
    ],
)
def test_window(ends: list[bool], window: int, failures: int) -> None:
    """Each success doubles it, a failure sets it back to one; it does not grow for ever."""
    outage = Outage(State.DOWN)
    for good in ends:
        outage.probe_ended(good)
    assert (outage.window, outage.failures) == (window, failures)


@pytest.mark.parametrize(
    ("state", "window", "out", "now", "room"),
    [
        (State.DOWN, 1, 0, 9.9, 0),
        (State.DOWN, 1, 0, 10.0, 1),
        (State.DOWN, 1, 1, 10.0, 0),
        (State.DOWN, 4, 1, 0.0, 3),
        (State.DOWN, 4, 6, 0.0, 0),
        (State.FAILED, 4, 0, 9.9, 0),
        (State.FAILED, 4, 0, 10.0, 1),
        (State.FAILED, 4, 2, 10.0, 0),
    ],
)
def test_room(state: State, window: int, out: int, now: float, room: int) -> None:
    """One probe per interval; with a wider window as many as it allows, at once. `failed` only probes."""
    assert Outage(state, window=window, out=out, next_probe=10.0).room(now) == room


def test_probes_come_at_growing_intervals() -> None:
    """Reckoned from when a probe goes out, so that one that takes long to fail pushes the next one back by nothing."""
    outage, waits = Outage(State.DOWN), []
    outage.go_down(POLICY, half, 0.0)
    now = outage.next_probe
    for _ in range(7):
        outage.probing(POLICY, half, now)
        outage.probe_ended(False)
        waits.append(outage.next_probe - now)
        now = outage.next_probe
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert outage.probes == 7


def test_going_down_starts_with_one_probe() -> None:
    outage = Outage(State.DOWN, window=64, failures=9)
    outage.go_down(POLICY, half, 100.0)
    assert (outage.window, outage.failures, outage.next_probe) == (1, 0, 101.0)


@pytest.mark.parametrize(
    ("failures", "down"),
    [
        ([(0, 1), (8, 2), (16, 3)], True),
        ([(0, 1), (8, 2)], False),
        ([(0, 1), (0, 2), (0, 3)], False),
        ([(0, 1), (0, 1), (0, 1)], False),
        ([(0, 1), (8, 1), (16, 1)], False),
        ([(-1, 1), (0, 2), (8, 3)], True),
    ],
)
def test_evidence(failures: list[tuple[int, int]], down: bool) -> None:
    """Three commands at three places; neither one command that comes again, nor one place that fails for all."""
    outage = Outage()
    assert [outage.seen(place, token) for place, token in failures][-1] is down
    assert EVIDENCE == 3
