"""The retry engine of one LUN: what happened comes in, what is to be done goes out.

Theory of operation
-------------------
The driver reports (a command arrived, its I/O ended, a person wants something, time passed) and carries out the actions
that come back, in order. There is no clock and no I/O here: `now` is CLOCK_MONOTONIC seconds and never goes back.

While the pump's gate is open the engine hears nothing. From the moment it closes (`gate_closed`) until `Gate(open)`
every command passes through here. The gate opens again when nothing is held, nothing is fenced, no COMPARE AND WRITE is
about, and both directions are online.

Every input ends in `_turn`: let out what may be tried, note what is over, open the gate if that can be.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Callable, Iterable, Sequence

from tcmu_retry.core import events
from tcmu_retry.core.actions import Action, Complete, Dispatch, Emit, Gate, Probe, Reopen, Token, Verdict
from tcmu_retry.core.errors import ErrorClass, classify, report
from tcmu_retry.core.hold import Commands, Entry, Stage
from tcmu_retry.core.outage import Outage, State, Trigger
from tcmu_retry.core.policy import Budgets, DirectionPolicy, Fallback, Policy
from tcmu_retry.scsi.request import Direction, Request
from tcmu_retry.scsi.sense import LUN_NOT_ACCESSIBLE, WRITE_PROTECTED, Sense

ABORT_GRACE = 0.5  # s an aborted command's I/O gets to return before it is answered over its head (KEEP_BUF)
LOSING = (ErrorClass.TRANSPORT, ErrorClass.GONE)
LOCAL = (ErrorClass.RESOURCE, ErrorClass.MEDIUM, ErrorClass.PERMANENT, ErrorClass.RESERVATION)


class Engine:
    """One LUN's engine. random: uniform in 0..1, for jitter."""

    def __init__(self, policy: Policy, budgets: Budgets, random: Callable[[], float]) -> None:
        self._policy = policy
        self._budgets = budgets
        self._random = random
        self._commands = Commands()
        self._outages = {side: Outage() for side in Direction}
        self._stopped_by: dict[Direction, Fallback] = {}
        self._dues: dict[Direction, list[tuple[float, Token]]] = {side: [] for side in Direction}
        self._ready: dict[Direction, list[tuple[int, Token]]] = {side: [] for side in Direction}
        self._deadlines: dict[Direction, list[tuple[float, Token]]] = {side: [] for side in Direction}
        self._failing: dict[Direction, set[Token]] = {side: set() for side in Direction}  # held or out, for an outage
        self._soon: dict[Token, Entry] = {}  # to be answered before long, even if their I/O does not return
        self._ignoring = False
        self._idle_probe = False
        self._needs_reopen = False
        self._reopening = False
        self._gate_open = True
        self._held_by = ""
        self._draining = False
        self._stopping = False
        self._shedding = False
        self._actions: list[Action] = []

    # ---- looking

    @property
    def held_count(self) -> int:
        return self._commands.held

    @property
    def held_bytes(self) -> int:
        return self._commands.held_bytes

    @property
    def in_flight(self) -> int:
        """Commands whose I/O is out, as far as the engine was told."""
        return len(self._commands) - self._commands.held

    @property
    def held_by(self) -> str:
        """A person's reason, "" if no person holds the LUN."""
        return self._held_by

    def state(self, side: Direction) -> State:
        return State.STOPPED if self._held_by else self._outages[side].state

    def outage(self, side: Direction) -> Outage:
        """For reading only."""
        return self._outages[side]

    def held(self) -> list[Entry]:
        """Held commands, oldest first; for reading only."""
        return self._commands.held_entries()

    def waits_for(self, entry: Entry) -> str:
        """retry, probe, overlap, resume or drain."""
        if self._draining:
            return "drain"
        if not self._free(entry.direction):
            return "resume"
        if entry.blockers:
            return "overlap"
        return "probe" if self._outages[entry.direction].state in (State.DOWN, State.FAILED) else "retry"

    def next_try(self, entry: Entry) -> float | None:
        """When it is tried by itself; None while an event or a person ends the wait."""
        match self.waits_for(entry):
            case "retry":
                return entry.due
            case "probe":
                return self._outages[entry.direction].next_probe
        return None

    def expires(self, entry: Entry, now: float) -> float | None:
        """When its time-out comes; None without one, or while its clock stands still."""
        expiry = self._expiry(entry)
        return None if expiry is None else self._outages[entry.direction].real(expiry, now)

    def deadline(self) -> float | None:
        """When `tick` wants to be called; None if only an event can change anything."""
        times = [entry.answer_at for entry in self._soon.values() if entry.answer_at is not None]
        for side in Direction:
            times += self._next(side)
        return min(times, default=None)

    def _next(self, side: Direction) -> Iterable[float]:
        if self._draining or self._stopping or not self._free(side):
            return
        outage = self._outages[side]
        if outage.state in (State.DOWN, State.FAILED):
            if not outage.out and not self._reopening and self._probe_due(side):
                yield outage.next_probe
            timeout = self._policy.of(side).retry_timeout
            if outage.state is State.DOWN and timeout:
                yield outage.began + timeout + outage.stood
        elif (due := self._first_due(side)) is not None:
            yield due[0]
        if (expiry := self._first_expiry(side)) is not None:
            yield expiry[0] + outage.stood

    # ---- commands

    def arrived(self, token: Token, request: Request, now: float) -> list[Action]:
        """A command that the pump does not run by itself."""
        entry = Entry(token, request, now)
        if self._stopping:
            self._say(Complete(token, Verdict.BUSY))
            return self._turn(now)
        self._commands.add(entry, ordered=True)
        outage = self._outages[entry.direction]
        refusal = self._refusal(entry.direction)
        if refusal is not None:
            self._finish(entry, refusal)
        elif entry.blockers or not self._may_try(entry.direction) or outage.state is State.DOWN:
            self._park(entry, now)
        else:
            self._let_out(entry)
        return self._turn(now)

    def gate_closed(self, running: Sequence[tuple[Token, Request]], now: float) -> list[Action]:
        """The pump closed its gate while these ran on its own account. Comes before what made it close."""
        self._gate_open = False
        for token, request in running:
            if self._commands.get(token) is None:
                self._commands.add(Entry(token, request, now), ordered=False)
        return self._take()

    def finished(self, token: Token, request: Request, error: int, now: float) -> list[Action]:
        """A command's I/O came back. error 0: the pump has answered GOOD; ECANCELED: it was answered and never ran."""
        entry = self._commands.get(token)
        if entry is None:
            if error in (0, errno.ECANCELED):
                return []
            entry = Entry(token, request, now)
            self._commands.add(entry, ordered=False)
        side = entry.direction
        probed, entry.probe = entry.probe, False
        if probed:
            self._outages[side].out -= 1
        if entry.stage is Stage.FENCE:
            self._forget(entry)
        elif not error:
            self._forget(entry)
            self._succeeded(side, probed, now)
        elif entry.answer_at is not None:
            self._finish(entry, entry.answer)
        elif self._stopping:
            self._finish(entry, Verdict.BUSY)
        else:
            self._failed(entry, error, probed, now)
        return self._turn(now)

    def probed(self, side: Direction, error: int, now: float) -> list[Action]:
        """The end of a Probe."""
        self._idle_probe = False
        outage = self._outages[side]
        outage.out -= 1
        if error:
            outage.error = error
            self._lost_file(error)
            outage.probe_ended(False)
        else:
            self._succeeded(side, True, now)
        return self._turn(now)

    def reopened(self, error: int, now: float) -> list[Action]:
        """The end of a Reopen; error: it failed, or the storage there is another."""
        self._reopening = False
        self._needs_reopen = bool(error)
        for side, outage in self._outages.items():
            if outage.state not in (State.DOWN, State.FAILED):
                continue
            if error:
                outage.error = error
                outage.probe_ended(False)
            else:
                outage.next_probe = now
                outage.answers = True
                if not self._failing[side]:
                    self._recover(side, now)
        return self._turn(now)

    def storage_lost(self, error: int, now: float) -> list[Action]:
        """The storage is not open; both directions wait for it."""
        self._gate_open = False
        self._needs_reopen = True
        self._lose(error, now)
        return self._turn(now)

    def aborted(self, tokens: Sequence[Token], now: float) -> list[Action]:
        """Task management names these: held ones are answered now, running ones by the end of the grace."""
        for entry in self._known(tokens):
            self._answer_soon(entry, Verdict.ABORTED, now)
        return self._turn(now)

    def tick(self, now: float) -> list[Action]:
        """Time passed."""
        return self._turn(now)

    # ---- persons

    def kick(self, now: float, tokens: Sequence[Token] = ()) -> list[Action]:
        """Try now: these, or whatever an outage holds. What is stopped or drained stays so."""
        for outage in self._outages.values():
            if outage.state in (State.DOWN, State.FAILED):
                outage.next_probe = now
        for entry in self._known(tokens) if tokens else self._commands:
            if entry.stage is Stage.HELD and not entry.blockers and self._may_try(entry.direction):
                if tokens and not self._needs_reopen:
                    self._let_out(entry)
                elif not self._by_probes(entry.direction):
                    self._due(entry, now)
        return self._turn(now)

    def fail(self, now: float, tokens: Sequence[Token] = ()) -> list[Action]:
        """Answer held commands with the sense of `report`: these, or all. One that is out is answered when it fails."""
        for entry in self._known(tokens) if tokens else self._commands:
            if entry.stage is Stage.HELD:
                self._finish(entry, self._sense(entry))
            elif entry.stage is Stage.RUNNING and entry.attempts:
                entry.doomed = True
        return self._turn(now)

    def release(self, now: float) -> list[Action]:
        """Answer BUSY to everything that is open; what runs, when it returns or the grace ends."""
        for entry in self._commands:
            self._answer_soon(entry, Verdict.BUSY, now)
        return self._turn(now)

    def hold(self, now: float, reason: str) -> list[Action]:
        """Try nothing until `resume`."""
        self._gate_open = False
        self._held_by = reason
        self._say(Emit(events.HELD, None, {"reason": reason}))
        return self._turn(now)

    def resume(self, now: float) -> list[Action]:
        """End a person's hold and every `stop`, `readonly` and `offline`; time-outs of a stop start anew."""
        if self._held_by or self._stopped_by:
            self._say(Emit(events.RESUMED))
        self._held_by = ""
        for side in list(self._stopped_by):
            del self._stopped_by[side]
            self._stand_still(now)
            outage = self._outages[side]
            outage.began = outage.clock(now)
            waiting = bool(self._failing[side])
            outage.move(Trigger.RESUME if waiting else Trigger.RESUME_EMPTY)
            outage.window, outage.failures, outage.next_probe = 1, 0, now
            for entry in self._commands:
                if entry.direction is side and entry.since is not None:
                    entry.since = outage.began
            self._rebuild(side)
        return self._turn(now)

    def drain(self, now: float) -> list[Action]:
        """Start nothing more; what runs ends."""
        self._gate_open = False
        self._draining = True
        return self._turn(now)

    def undrain(self, now: float) -> list[Action]:
        self._draining = False
        return self._turn(now)

    def stopping(self, now: float) -> list[Action]:
        """The end: everything is answered BUSY at once, and so is whatever still arrives."""
        self._gate_open = False
        self._stopping = True
        for entry in self._commands:
            if entry.stage is Stage.HELD:
                self._finish(entry, Verdict.BUSY)
            elif entry.stage is Stage.RUNNING:
                self._fence(entry, Verdict.BUSY)
        return self._turn(now)

    def set_policy(self, policy: Policy, now: float) -> list[Action]:
        """Takes effect on what is held: waits and time-outs are reckoned by the new values from the old beginnings."""
        self._policy = policy
        for side, outage in self._outages.items():
            longest = policy.of(side).retry_max_interval * (1 + policy.of(side).retry_jitter)
            outage.next_probe = min(outage.next_probe, now + longest)
            for entry in self._commands:
                if entry.direction is side and entry.stage is Stage.HELD and entry.attempts:
                    soonest = now + self._settings(entry).delay(entry.attempts, self._random())
                    entry.due = min(entry.due, soonest)
            self._rebuild(side)
        self._say(Emit(events.POLICY_CHANGED))
        return self._turn(now)

    # ---- what a failure and a success mean

    def _failed(self, entry: Entry, error: int, probed: bool, now: float) -> None:
        side = entry.direction
        outage = self._outages[side]
        first = not entry.attempts
        entry.attempts += 1
        entry.error, entry.group = error, classify(error)
        settings = self._settings(entry)
        self._lost_file(error)
        outage.answers = False
        if entry.since is None:
            entry.since = outage.clock(now)
            entry.held_at = now
        if probed:
            outage.error = error
            outage.probe_ended(False)
        if entry.group is ErrorClass.GONE:
            self._lose(error, now)
        if entry.group is ErrorClass.RESERVATION:
            self._finish(entry, Verdict.RESERVATION_CONFLICT)
        elif entry.doomed:
            self._finish(entry, self._sense(entry))
        elif outage.state is State.FAILED or not settings.retry or self._spent(entry, settings, now):
            self._fall_back(entry, settings, now)
        elif self._hold(entry, now):
            self._begin(side, error, now)
            if entry.group in LOSING or (first and entry.group not in LOCAL and outage.seen(entry.place, entry.token)):
                self._go_down(side, now)

    def _spent(self, entry: Entry, settings: DirectionPolicy, now: float) -> bool:
        clock = self._outages[entry.direction].clock(now)
        timed_out = settings.retry_timeout and entry.since is not None and clock - entry.since >= settings.retry_timeout
        return bool(timed_out or (settings.attempts and entry.attempts >= settings.attempts))

    def _succeeded(self, side: Direction, probed: bool, now: float) -> None:
        outage = self._outages[side]
        outage.evidence.clear()
        outage.answers = True
        if outage.state is State.FAILED:
            self._recover(side, now)
        elif probed and outage.state is State.DOWN:
            outage.probe_ended(True)
            for other in self._outages.values():  # the way is open again: the other direction need not wait its turn
                if other is not outage and other.state in (State.DOWN, State.FAILED) and not other.out:
                    other.next_probe = now
            if not self._failing[side]:
                self._recover(side, now)

    def _recover(self, side: Direction, now: float) -> None:
        outage = self._outages[side]
        if outage.move(Trigger.RECOVERED) or outage.move(Trigger.SUCCESS):
            outage.evidence.clear()
            fields = {
                "seconds": round(now - outage.began_at, 3),
                "stopped": round(outage.stood_still(now), 3),
                "held_most": outage.held_most,
                "probes": outage.probes,
            }
            self._say(Emit(events.RECOVERED if outage.answers else events.GAVE_UP, side, fields))
            self._ignoring = False
            self._rebuild(side)

    def _begin(self, side: Direction, error: int, now: float) -> None:
        outage = self._outages[side]
        outage.error = error
        if outage.move(Trigger.FAILURE):
            outage.begin(now)
            self._say(Emit(events.OUTAGE_BEGAN, side, {"errno": errno.errorcode.get(error, str(error))}))

    def _go_down(self, side: Direction, now: float) -> None:
        outage = self._outages[side]
        if outage.move(Trigger.LOST):
            outage.go_down(self._policy.of(side), self._random, now)
            self._rebuild(side)
            self._say(Emit(events.DOWN, side, {"errno": errno.errorcode.get(outage.error, str(outage.error))}))

    def _lost_file(self, error: int) -> None:
        if classify(error) is ErrorClass.GONE:
            self._needs_reopen = True

    def _lose(self, error: int, now: float) -> None:
        """The open file is of no use: that concerns both directions, each by its own policy."""
        for side, outage in self._outages.items():
            outage.answers = False
            if self._policy.of(side).of(ErrorClass.GONE).retry:
                self._begin(side, error, now)
                self._go_down(side, now)
            else:
                if outage.state is State.ONLINE:
                    outage.begin(now)
                outage.error = error
                if outage.move(Trigger.GIVEN_UP):
                    outage.go_down(self._policy.of(side), self._random, now)
                    self._rebuild(side)

    def _fall_back(self, entry: Entry, settings: DirectionPolicy, now: float) -> None:
        match settings.fallback:
            case Fallback.IGNORE:
                if not self._ignoring:
                    self._ignoring = True
                    self._say(Emit(events.IGNORED, entry.direction))
                self._finish(entry, Verdict.IGNORED)
            case Fallback.BUSY:
                self._finish(entry, Verdict.BUSY)
            case Fallback.READONLY | Fallback.OFFLINE as fallback:
                self._stop(entry.direction, fallback, now)
                refusal = self._refusal(entry.direction)
                assert refusal is not None
                if entry.stage is Stage.RUNNING:  # a held one was answered with all others
                    self._finish(entry, refusal)
            case Fallback.STOP:
                self._stop_with(entry, now)
            case Fallback.ENOSPC if entry.group is ErrorClass.SPACE:
                self._stop_with(entry, now)
            case _:
                self._finish(entry, self._sense(entry))

    def _stop_with(self, entry: Entry, now: float) -> None:
        if entry.stage is Stage.HELD or self._hold(entry, now):
            outage = self._outages[entry.direction]
            if outage.state is State.ONLINE:
                outage.begin(now)
                outage.error = entry.error
            self._stop(entry.direction, Fallback.STOP, now)

    def _stop(self, side: Direction, fallback: Fallback, now: float) -> None:
        """Until a person resumes. `offline` takes both directions; what it refuses, it refuses to the held ones too."""
        for each in Direction if fallback is Fallback.OFFLINE else (side,):
            if self._outages[each].move(Trigger.STOP):
                self._stopped_by[each] = fallback
                self._say(Emit(events.STOPPED, each, {"fallback": fallback.value}))
                refusal = self._refusal(each)
                if refusal is not None:
                    for entry in self._commands:
                        if entry.direction is each and entry.stage is Stage.HELD:
                            self._finish(entry, refusal)
        self._stand_still(now)

    def _refusal(self, side: Direction) -> Sense | None:
        """What a stopped direction answers untried; None: it parks."""
        match self._stopped_by.get(side):
            case Fallback.READONLY:
                return WRITE_PROTECTED
            case Fallback.OFFLINE:
                return LUN_NOT_ACCESSIBLE
        return None

    # ---- one command's way

    def _hold(self, entry: Entry, now: float) -> bool:
        """False: over budget, and answered BUSY."""
        commands = self._commands
        if commands.held >= self._budgets.held or commands.held_bytes + entry.request.length > self._budgets.held_bytes:
            if not self._shedding:
                self._shedding = True
                self._say(Emit(events.SHED, entry.direction, {"held": commands.held, "bytes": commands.held_bytes}))
            self._finish(entry, Verdict.BUSY)
            return False
        commands.stage(entry, Stage.HELD)
        side = entry.direction
        outage = self._outages[side]
        outage.held_most = max(outage.held_most, commands.held)
        self._failing[side].add(entry.token)
        self._schedule(entry)
        delay = self._settings(entry).delay(entry.attempts, self._random()) if entry.attempts else 0.0
        self._due(entry, now + delay)
        return True

    def _park(self, entry: Entry, now: float) -> None:
        """Held without having been tried; an outage's clock is its own."""
        outage = self._outages[entry.direction]
        entry.held_at = now
        if outage.state is not State.ONLINE:
            entry.since = outage.began
        if self._hold(entry, now) and outage.state is State.ONLINE:
            self._failing[entry.direction].discard(entry.token)

    def _schedule(self, entry: Entry) -> None:
        expiry = self._expiry(entry)
        if expiry is not None:
            heapq.heappush(self._deadlines[entry.direction], (expiry, entry.token))

    def _expiry(self, entry: Entry) -> float | None:
        """When its time-out comes, in its direction's clock; None without one."""
        timeout = self._settings(entry).retry_timeout
        return entry.since + timeout if timeout and entry.since is not None else None

    def _due(self, entry: Entry, when: float) -> None:
        entry.due = when
        if entry.blockers:
            return
        if self._by_probes(entry.direction):
            heapq.heappush(self._ready[entry.direction], (entry.turn, entry.token))
        else:
            heapq.heappush(self._dues[entry.direction], (when, entry.token))

    def _by_probes(self, side: Direction) -> bool:
        """Whether its held commands are let out as probes, in turn, rather than each by its own clock."""
        return self._outages[side].state not in (State.ONLINE, State.RETRYING)

    def _let_out(self, entry: Entry) -> None:
        self._commands.stage(entry, Stage.RUNNING)
        entry.turn += 1
        if self._by_probes(entry.direction):
            entry.probe = True
            self._outages[entry.direction].out += 1
        self._say(Dispatch(entry.token))

    def _finish(self, entry: Entry, answer: Sense | Verdict) -> None:
        self._say(Complete(entry.token, answer))
        self._forget(entry)

    def _fence(self, entry: Entry, answer: Verdict) -> None:
        self._soon.pop(entry.token, None)
        self._failing[entry.direction].discard(entry.token)
        self._commands.stage(entry, Stage.FENCE)
        self._say(Complete(entry.token, answer, keep_buffer=True))

    def _forget(self, entry: Entry) -> None:
        self._failing[entry.direction].discard(entry.token)
        self._soon.pop(entry.token, None)
        for freed in self._commands.remove(entry):
            self._due(freed, freed.due)

    def _answer_soon(self, entry: Entry, answer: Verdict, now: float) -> None:
        if entry.stage is Stage.HELD:
            self._finish(entry, answer)
        elif entry.stage is Stage.RUNNING and entry.answer_at is None:
            entry.answer, entry.answer_at = answer, now + ABORT_GRACE
            self._soon[entry.token] = entry

    # ---- the end of every input

    def _turn(self, now: float) -> list[Action]:
        self._stand_still(now)
        for entry in list(self._soon.values()):
            if entry.answer_at is not None and entry.answer_at <= now:
                self._fence(entry, entry.answer)
        for side in Direction:
            if self._may_try(side):
                self._time_out(side, now)
        for side in Direction:
            if self._may_try(side):
                self._try(side, now)
            self._settle(side, now)
        if not self._commands.held:
            self._shedding = False
        self._open_gate()
        return self._take()

    def _time_out(self, side: Direction, now: float) -> None:
        outage = self._outages[side]
        settings = self._policy.of(side)
        # In real time, as `deadline` gives it: a difference of clocks may be off by the last bit, and never come true.
        over = outage.began + settings.retry_timeout + outage.stood
        if outage.state is State.DOWN and settings.retry_timeout and over <= now:
            seconds = round(now - outage.began_at, 3)
            self._say(Emit(events.TIMED_OUT, side, {"seconds": seconds, "fallback": settings.fallback.value}))
            if settings.fallback in (Fallback.READONLY, Fallback.OFFLINE, Fallback.STOP):
                self._stop(side, settings.fallback, now)
            else:
                outage.move(Trigger.TIMEOUT)
        while self._free(side) and (top := self._first_expiry(side)) is not None and top[0] + outage.stood <= now:
            heapq.heappop(self._deadlines[side])
            entry = top[1]
            self._fall_back(entry, self._settings(entry), now)

    def _try(self, side: Direction, now: float) -> None:
        outage = self._outages[side]
        if outage.state not in (State.DOWN, State.FAILED):
            while (due := self._first_due(side)) is not None and due[0] <= now:
                heapq.heappop(self._dues[side])
                self._let_out(due[1])
            return
        if self._needs_reopen:
            if not self._reopening and now >= outage.next_probe and not outage.out:
                self._reopening = True
                outage.probing(self._policy.of(side), self._random, now)
                self._say(Reopen())
            return
        room = outage.room(now)
        single = outage.window == 1 or outage.state is State.FAILED
        while room:
            entry = self._first_ready(side)
            if entry is None:
                if single and side is Direction.READ and not self._idle_probe:
                    outage.probing(self._policy.of(side), self._random, now)
                    outage.out += 1
                    self._idle_probe = True
                    self._say(Probe(side))
                return
            heapq.heappop(self._ready[side])
            if single:
                outage.probing(self._policy.of(side), self._random, now)
            self._let_out(entry)
            room -= 1

    def _settle(self, side: Direction, now: float) -> None:
        outage = self._outages[side]
        if outage.state is State.RETRYING:
            over = not self._failing[side]
        else:
            # The storage answers and all that it held is out again; under load something always is, so that nobody
            # waits for that. What still waits, waits for the other direction's commands.
            over = outage.state is State.DOWN and outage.window > 1 and self._first_ready(side) is None
        if over:
            self._recover(side, now)

    def _open_gate(self) -> None:
        if self._gate_open or self._commands.held or self._held_by or self._draining or self._stopping:
            return
        if any(outage.state is not State.ONLINE for outage in self._outages.values()):
            return
        if self._commands.closing:
            return
        self._gate_open = True
        self._say(Gate(True))

    # ---- small things

    def _say(self, action: Action) -> None:
        self._actions.append(action)

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def _settings(self, entry: Entry) -> DirectionPolicy:
        settings = self._policy.of(entry.direction)
        return settings.of(entry.group) if entry.attempts else settings

    def _sense(self, entry: Entry) -> Sense:
        code = entry.error or self._outages[entry.direction].error or errno.EIO
        return report(code, entry.direction, self._settings(entry).report_as)

    def _free(self, side: Direction) -> bool:
        """Whether commands of this direction may be tried, as far as people and stops are concerned."""
        return not self._held_by and side not in self._stopped_by

    def _may_try(self, side: Direction) -> bool:
        return self._free(side) and not self._draining and not self._stopping

    def _stand_still(self, now: float) -> None:
        for side, outage in self._outages.items():
            outage.stand_still(not self._free(side), now)

    def _probe_due(self, side: Direction) -> bool:
        """Whether there is something to probe with: a held command, a read of our own, or a reopen."""
        return self._needs_reopen or side is Direction.READ or self._first_ready(side) is not None

    def _known(self, tokens: Iterable[Token]) -> list[Entry]:
        return [entry for token in tokens if (entry := self._commands.get(token)) is not None]

    # The tops of the heaps, less what is stale: answered, out, waiting for another, or pushed again since.

    def _first_due(self, side: Direction) -> tuple[float, Entry] | None:
        heap = self._dues[side]
        while heap:
            when, token = heap[0]
            entry = self._commands.get(token)
            if entry is not None and entry.stage is Stage.HELD and not entry.blockers and entry.due == when:
                return when, entry
            heapq.heappop(heap)
        return None

    def _first_ready(self, side: Direction) -> Entry | None:
        heap = self._ready[side]
        while heap:
            turn, token = heap[0]
            entry = self._commands.get(token)
            if entry is not None and entry.stage is Stage.HELD and not entry.blockers and entry.turn == turn:
                return entry
            heapq.heappop(heap)
        return None

    def _first_expiry(self, side: Direction) -> tuple[float, Entry] | None:
        heap = self._deadlines[side]
        while heap:
            clock, token = heap[0]
            entry = self._commands.get(token)
            if entry is not None and entry.stage is Stage.HELD and clock == self._expiry(entry):
                return clock, entry
            heapq.heappop(heap)
        return None

    def _rebuild(self, side: Direction) -> None:
        """After a change of policy or of beginnings: the heaps anew."""
        self._dues[side], self._ready[side], self._deadlines[side] = [], [], []
        for entry in self._commands:
            if entry.direction is side and entry.stage is Stage.HELD:
                self._schedule(entry)
                self._due(entry, entry.due)
