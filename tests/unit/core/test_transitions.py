"""Every transition of the outage table in a time line of its own, and every change of the table caught by it.

A time line compares what the initiator, the storage and a person would notice. So a table with one entry changed or
missing is no other spelling of the same behaviour, and the scenario named after the entry says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tcmu_retry.core import outage
from tcmu_retry.core.outage import TABLE, Outage, State, Trigger
from tests.unit.core.play import play

ONLINE, RETRYING, DOWN, FAILED, STOPPED = State
Entry = tuple[State, Trigger]
Move = tuple[State, Trigger, State]


@dataclass(frozen=True)
class Scenario:
    """line: what happens, for people; script: the same for `play`."""

    line: str
    script: str
    policy: str = ""


SCENARIOS: dict[Entry, Scenario] = {
    # A bad sector or a passing fault. Nobody else is stopped, and the failed one is tried by its own clock.
    (ONLINE, Trigger.FAILURE): Scenario(
        "0 s a write fails: held    0.5 s another is tried    1 s tried again    2.9 s given up by its own time-out",
        """
        0    ran w1@0 EIO  -> outage_began write
        0.5  w2@1          -> try 2
        0.6  io 2 0        ->
        1    wake          -> try 1
        1    io 1 EIO      ->
        2.9  wake          -> 1=02/04/03, gave_up write, open
        """,
        "retry_timeout=2900ms",
    ),
    # Nobody wants it held: what fails is reported, and reopening goes on behind the scenes.
    (ONLINE, Trigger.GIVEN_UP): Scenario(
        "0 s the device is gone: reported    0.5 s tried once, reported    1 s reopened    back",
        """
        0    ran w1@0 ENODEV -> 1=02/04/03
        0.5  w2@1          -> try 2
        0.5  io 2 ENODEV   -> 2=02/04/03
        1    wake          -> reopen
        1.5  reopen 0      -> recovered read, recovered write, open
        """,
        "classes.gone.retry=false",
    ),
    # werror=stop: not even one retry. The first failure holds everything of its direction.
    (ONLINE, Trigger.STOP): Scenario(
        "0 s a write fails: stopped    1 s new ones wait, reads pass    3600 s resume: tried one by one",
        """
        0    ran w1@0 EIO  -> stopped write
        1    w2@1          ->
        1    state write   -> stopped
        2    r3@9          -> try 3
        2.1  io 3 0        ->
        3600 idle          ->
        3600 resume        -> resumed, try 1
        3601 io 1 0        -> try 2, recovered write, open
        """,
        "write.retry=false write.fallback=stop",
    ),
    # What seemed a sector is the storage (a lost path says so at once). From now on one command at a time asks it.
    (RETRYING, Trigger.LOST): Scenario(
        "0 s three places fail    0.5 s a write is parked    1 s one probe, alone    it succeeds: two more, then all",
        """
        0    gate w1@0 w2@1 w3@2 ->
        0    io 1 EIO      -> outage_began write
        0    io 2 EIO      ->
        0    io 3 EIO      -> down write
        0.5  w4@9          ->
        1    wake          -> try 1
        1    idle          ->
        2    io 1 0        -> try 2, try 3
        2.1  io 2 0        -> try 4, recovered write, open
        """,
    ),
    (RETRYING, Trigger.RECOVERED): Scenario(
        "0 s a write fails    1 s tried again, well: the gate opens    a second outage is a new one",
        """
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1.5  io 1 0        -> recovered write, open
        9    ran w2@0 EIO  -> outage_began write
        10   wake          -> try 2
        10   io 2 0        -> recovered write, open
        """,
    ),
    # The kind of error changes under way, and the policy for the new kind is not to hold.
    (RETRYING, Trigger.GIVEN_UP): Scenario(
        "0 s EIO: held    1 s the retry finds the device gone: reported    2 s reopening, new ones are tried    back",
        """
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1    io 1 ENODEV   -> 1=02/04/03
        2    wake          -> reopen
        2.1  w2@1          -> try 2
        2.5  reopen 0      -> recovered read, recovered write, open
        2.6  io 2 0        ->
        """,
        "classes.gone.retry=false",
    ),
    (RETRYING, Trigger.STOP): Scenario(
        "0 s a write fails    1 s and again    2 s time-out: stopped    3 s new ones wait    resume: tried one by one",
        """
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1    io 1 EIO      ->
        2    wake          -> stopped write
        3    w2@9          ->
        3    state write   -> stopped
        3600 idle          ->
        3601 resume        -> resumed, try 2
        3602 io 2 EIO      -> try 1
        3602.5 io 1 0      -> try 2, recovered write, open
        """,
        "write.retry_timeout=2s write.fallback=stop",
    ),
    # Back: what was held is out again, commands run unasked, and the next fault is judged anew.
    (DOWN, Trigger.RECOVERED): Scenario(
        "0 s the path is lost    1 s the probe is well    everything goes on    9 s one bad place stops nobody",
        """
        0    ran w1@0 ENOLINK -> outage_began write, down write
        1    wake          -> try 1
        1.1  io 1 0        -> recovered write, open
        9    ran w2@0 EIO  -> outage_began write
        9.5  w3@1          -> try 3
        9.6  io 3 0        ->
        10   wake          -> try 2
        10   io 2 0        -> recovered write, open
        """,
    ),
    # Held ones were answered, so nothing is held for new ones either; the storage is still asked.
    (DOWN, Trigger.TIMEOUT): Scenario(
        "0 s the path is lost    1.5 s time-out: reported    2 s a read of our own probes    3 s new ones: tried once",
        """
        0    ran r1@0 ENOLINK -> outage_began read, down read
        1    wake          -> try 1
        1    io 1 ENOLINK  ->
        1.5  wake          -> timed_out read, 1=02/04/03
        2    wake          -> probe
        2    probe read ENOLINK ->
        3    r2@4          -> try 2
        3.1  io 2 ENOLINK  -> 2=02/04/03
        4    tick          -> probe
        5    probe read 0  -> recovered read, open
        """,
        "retry_timeout=1500ms",
    ),
    (DOWN, Trigger.STOP): Scenario(
        "0 s the path is lost    2 s time-out: stopped, unasked for an hour    resume: one probe at once, and then all",
        """
        0    ran w1@0 ENOLINK -> outage_began write, down write
        0.5  w2@1          ->
        1    wake          -> try 1
        1    io 1 ENOLINK  ->
        2    wake          -> timed_out write, stopped write
        3    w3@2          ->
        3    state write   -> stopped
        3600 idle          ->
        3600 resume        -> resumed, try 2
        3601 io 2 0        -> try 3, try 1, recovered write, open
        """,
        "write.retry_timeout=2s write.fallback=stop",
    ),
    # Any success ends it, also that of a command which came long after the time-out.
    (FAILED, Trigger.SUCCESS): Scenario(
        "0 s the path is lost    2 s reported    3 s a write is tried once, well: over    4 s the next fault is held",
        """
        0    ran w1@0 ENOLINK -> outage_began write, down write
        2    tick          -> timed_out write, 1=02/04/03
        3    w2@1          -> try 2
        3.1  io 2 0        -> recovered write, open
        4    ran w3@2 EIO  -> outage_began write
        5    wake          -> try 3
        5    io 3 0        -> recovered write, open
        """,
        "retry_timeout=2s",
    ),
    # The other direction's `offline` takes this one along, wherever it stands.
    (FAILED, Trigger.STOP): Scenario(
        "0 s both lost    1 s reads are given up    2 s writes go offline: reads too    resume: both are asked anew",
        """
        0    gate r1@0 w2@1 ->
        0    io 1 ENOLINK  -> outage_began read, down read
        0    io 2 ENOLINK  -> outage_began write, down write
        1    wake          -> timed_out read, 1=02/04/03, probe, try 2
        1.1  probe read ENOLINK ->
        1.2  io 2 ENOLINK  ->
        1.3  state read    -> failed
        2    wake          -> timed_out write, stopped read, stopped write, 2=02/04/03
        2.1  state read    -> stopped
        2.5  r3@0          -> 3=02/04/03
        3600 idle          ->
        3600 resume        -> resumed, open
        3601 ran r4@0 EIO  -> outage_began read
        """,
        "read.retry_timeout=1s write.retry_timeout=2s write.fallback=offline",
    ),
    # Whether the storage is back is not known: one is let out, the rest and new ones wait for its word.
    (STOPPED, Trigger.RESUME): Scenario(
        "0 s stopped, two wait    9 s resume: one goes out    9.5 s new ones are parked    it fails: the next",
        """
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1    io 1 EIO      ->
        2    wake          -> stopped write
        3    w2@1          ->
        9    resume        -> resumed, try 2
        9.5  w3@2          ->
        9.6  io 2 EIO      ->
        10   wake          -> try 3
        10.1 io 3 0        -> try 1, try 2, recovered write, open
        """,
        "write.retry_timeout=2s write.fallback=stop",
    ),
    (STOPPED, Trigger.RESUME_EMPTY): Scenario(
        "0 s readonly: refused    6 s resume: the gate opens    7 s the next fault begins a new outage",
        """
        0    ran w1@0 EIO  -> outage_began write
        2    tick          -> stopped write, 1=07/27/00
        3    w2@5          -> 2=07/27/00
        6    resume        -> resumed, open
        7    ran w3@0 EIO  -> outage_began write
        7.5  w4@1          -> try 4
        7.6  io 4 0        ->
        8    wake          -> try 3
        8    io 3 0        -> recovered write, open
        """,
        "write.retry_timeout=2s write.fallback=readonly",
    ),
}


def named(entry: Entry) -> str:
    return f"{entry[0].name}-{entry[1].name}".lower()


MUTANTS = [
    pytest.param(entry, other, id=f"{named(entry)}-to-{other.value if other else 'nothing'}")
    for entry, following in TABLE.items()
    for other in (*State, None)
    if other is not following
]


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Move]]:
    """The transitions that were made."""
    made: list[Move] = []
    move = Outage.move

    def noted(self: Outage, trigger: Trigger) -> bool:
        before = self.state
        moved = move(self, trigger)
        if moved:
            made.append((before, trigger, self.state))
        return moved

    monkeypatch.setattr(Outage, "move", noted)
    yield made


def test_every_transition_has_a_scenario() -> None:
    assert set(SCENARIOS) == set(TABLE)


@pytest.mark.parametrize("entry", SCENARIOS, ids=named)
def test_a_scenario_makes_its_transition(entry: Entry, moves: list[Move]) -> None:
    """And nothing that is not in the table."""
    scenario = SCENARIOS[entry]
    play(scenario.script, scenario.policy)
    assert (*entry, TABLE[entry]) in moves
    assert all(TABLE[old, trigger] is new for old, trigger, new in moves)


@pytest.mark.parametrize(("entry", "other"), MUTANTS)
def test_a_changed_table_is_caught(entry: Entry, other: State | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry leads elsewhere, or is missing: its scenario goes another way."""
    if other is None:
        monkeypatch.delitem(outage.TABLE, entry)
    else:
        monkeypatch.setitem(outage.TABLE, entry, other)
    with pytest.raises(AssertionError):
        play(SCENARIOS[entry].script, SCENARIOS[entry].policy)
