"""An outage of one direction of a LUN: its states, its clocks and its breaker.

Two rules. Everything that decides which state follows is in `TABLE`; `Outage.move` applies it and nothing else does.
And this file does not know commands: the engine tells it what happened to them, and asks it what may be tried.

States
  online    nothing is wrong.
  retrying  something failed; each failed command is tried again by its own clock and all others are tried as they come,
            for a bad sector must not stop the LUN.
  down      the storage is taken to be away: new commands are parked untried, and one command at a time, the probe, is
            let out per interval. A success doubles the window of commands that may be out at once, a failure sets it
            back to one.
  failed    the outage has lasted `retry_timeout`: new commands are tried once and get the fallback on error; probing
            goes on.
  stopped   nothing is tried and clocks stand still until a person resumes.

Clocks. `clock` is CLOCK_MONOTONIC less the time in which nothing could be tried (stopped, or held by a person);
deadlines are kept in it, so that they stand still too without being touched.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from tcmu_retry.core.policy import DirectionPolicy


class State(enum.Enum):
    """Where a direction of a LUN stands."""

    ONLINE = "online"
    RETRYING = "retrying"
    DOWN = "down"
    FAILED = "failed"
    STOPPED = "stopped"


class Trigger(enum.Enum):
    """What can change a state."""

    FAILURE = "a command failed and is held"
    LOST = "path or storage lost, or 3 LBAs fail in a row"
    RECOVERED = "the last held command succeeded"
    SUCCESS = "a command succeeded"
    TIMEOUT = "the outage lasted retry_timeout"
    GIVEN_UP = "the storage is gone and the policy does not hold"
    STOP = "fallback stop, readonly or offline"
    RESUME = "a person resumes, commands are held"
    RESUME_EMPTY = "a person resumes, nothing is held"


TABLE: dict[tuple[State, Trigger], State] = {
    (State.ONLINE, Trigger.FAILURE): State.RETRYING,
    (State.ONLINE, Trigger.GIVEN_UP): State.FAILED,
    (State.ONLINE, Trigger.STOP): State.STOPPED,
    (State.RETRYING, Trigger.LOST): State.DOWN,
    (State.RETRYING, Trigger.RECOVERED): State.ONLINE,
    (State.RETRYING, Trigger.GIVEN_UP): State.FAILED,
    (State.RETRYING, Trigger.STOP): State.STOPPED,
    (State.DOWN, Trigger.RECOVERED): State.ONLINE,
    (State.DOWN, Trigger.TIMEOUT): State.FAILED,
    (State.DOWN, Trigger.STOP): State.STOPPED,
    (State.FAILED, Trigger.SUCCESS): State.ONLINE,
    (State.FAILED, Trigger.STOP): State.STOPPED,
    (State.STOPPED, Trigger.RESUME): State.DOWN,
    (State.STOPPED, Trigger.RESUME_EMPTY): State.ONLINE,
}

WIDEST = 1024  # more than the initiators of one LUN have open
EVIDENCE = 3  # commands at different LBAs failing with no success between: the storage, not a sector


@dataclass(slots=True)
class Outage:
    """One direction. Times in seconds of CLOCK_MONOTONIC but for `began`, which is in `clock` time."""

    state: State = State.ONLINE
    began: float = 0.0  # first failure, in clock time
    began_at: float = 0.0  # first failure
    error: int = 0  # errno of the last failure
    window: int = 1  # commands that may be out while down
    out: int = 0  # probes out
    probes: int = 0  # in this outage
    failures: int = 0  # probes failed in a row
    next_probe: float = 0.0
    held_most: int = 0
    answers: bool = False  # a command succeeded since the last failure
    evidence: dict[int, int] = field(default_factory=dict)  # first byte -> token of commands that failed
    stood: float = 0.0  # seconds the clock has stood still since it exists
    _still_since: float | None = None

    def clock(self, now: float) -> float:
        """Time that does not pass while nothing may be tried."""
        return (now if self._still_since is None else self._still_since) - self.stood

    def real(self, clock: float, now: float) -> float | None:
        """When the clock will show this; None while it stands still."""
        return None if self._still_since is not None else now + clock - self.clock(now)

    def stand_still(self, still: bool, now: float) -> None:
        """Stop the clock, or let it go on."""
        if still and self._still_since is None:
            self._still_since = now
        elif not still and self._still_since is not None:
            self.stood += now - self._still_since
            self._still_since = None

    def stood_still(self, now: float) -> float:
        """Seconds of this outage in which nothing was tried."""
        return (now - self.began_at) - (self.clock(now) - self.began)

    def move(self, trigger: Trigger) -> bool:
        """Apply the table; False where the trigger means nothing in this state."""
        following = TABLE.get((self.state, trigger))
        if following is None:
            return False
        self.state = following
        return True

    def begin(self, now: float) -> None:
        """The first failure."""
        self.began, self.began_at = self.clock(now), now
        self.probes = self.failures = self.held_most = 0

    def go_down(self, policy: DirectionPolicy, chance: Callable[[], float], now: float) -> None:
        """The breaker opens: one probe, an interval from now."""
        self.window, self.failures = 1, 0
        self.next_probe = now + policy.delay(1, chance())

    def seen(self, place: int, token: int) -> bool:
        """Note a failure that may be the storage's; True if there is evidence that it is."""
        if len(self.evidence) < EVIDENCE and token not in self.evidence.values():
            self.evidence[place] = token
        return len(self.evidence) >= EVIDENCE

    def probing(self, policy: DirectionPolicy, chance: Callable[[], float], now: float) -> None:
        """A probe goes out now; the next may follow an interval later, whatever comes of this one."""
        self.probes += 1
        self.next_probe = now + policy.delay(self.failures + 1, chance())

    def probe_ended(self, good: bool) -> None:
        """A probe, or a held command let out while the window was wider, came back."""
        self.window = min(self.window * 2, WIDEST) if good else 1
        self.failures = 0 if good else self.failures + 1

    def room(self, now: float) -> int:
        """How many more commands may be let out now."""
        if self.state is State.FAILED or self.window == 1:
            return 1 if self.out == 0 and now >= self.next_probe else 0
        return max(self.window - self.out, 0)
