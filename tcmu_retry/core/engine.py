"""The retry engine of one LUN: what happened comes in, what is to be done goes out.

Theory of operation
-------------------
The driver reports (a command arrived, its I/O ended, a person wants something, time passed) and carries out the actions
that come back, in order. There is no clock and no I/O here: `now` is CLOCK_MONOTONIC seconds and never goes back.

While the pump's gate is open the engine hears nothing. From the moment it closes (`gate_closed`) until `Gate(open)`
every command passes through here. The gate opens again when nothing is held, nothing is fenced, no COMPARE AND WRITE is
about, and both directions are online.

What comes in is here; what it means is in `keeper.py`.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence

from tcmu_retry.core import events
from tcmu_retry.core.actions import Action, Complete, Emit, Token, Verdict
from tcmu_retry.core.hold import Entry, Stage
from tcmu_retry.core.initiators import Profile
from tcmu_retry.core.keeper import Keeper
from tcmu_retry.core.outage import Outage, State, Trigger
from tcmu_retry.core.policy import Budgets, Policy, flatten
from tcmu_retry.scsi.request import Direction, Request


class Engine:
    """One LUN's engine. random: uniform in 0..1, for jitter."""

    def __init__(self, policy: Policy, budgets: Budgets, random: Callable[[], float]) -> None:
        self._keeper = Keeper(policy, budgets, random)

    # ---- looking

    @property
    def held_count(self) -> int:
        return self._keeper.commands.held + self.late_count

    @property
    def late_count(self) -> int:
        """Held commands that were aborted and whose answer is put off."""
        return len(self._keeper.late)

    @property
    def held_bytes(self) -> int:
        return self._keeper.commands.held_bytes + sum(entry.weight for entry in self._keeper.late.all())

    @property
    def in_flight(self) -> int:
        """Commands whose I/O is out, as far as the engine was told."""
        return len(self._keeper.commands) - self._keeper.commands.held

    @property
    def held_by(self) -> str:
        """A person's reason, "" if no person holds the LUN."""
        return self._keeper.held_by

    def state(self, side: Direction) -> State:
        return State.STOPPED if self._keeper.held_by else self._keeper.outages[side].state

    def outage(self, side: Direction) -> Outage:
        """For reading only."""
        return self._keeper.outages[side]

    def held(self) -> list[Entry]:
        """Held commands, oldest first; for reading only."""
        entries = [*self._keeper.late.all(), *self._keeper.commands.held_entries()]
        return sorted(entries, key=lambda entry: entry.token)

    def holds(self, token: Token) -> bool:
        """Whether a command is held, or out for another try; then it can be named."""
        entry = self._keeper.commands.get(token)
        held = entry is not None and entry.stage is not Stage.FENCE and entry.held_at is not None
        return held or self._keeper.late.get(token) is not None

    def waits_for(self, entry: Entry) -> str:
        """retry, probe, overlap, resume or drain; abort: for nothing but the answer to task management."""
        if entry.late:
            return "abort"
        if self._keeper.draining:
            return "drain"
        if not self._keeper.free(entry.direction):
            return "resume"
        if entry.blockers:
            return "overlap"
        return "probe" if self._keeper.outages[entry.direction].state in (State.DOWN, State.FAILED) else "retry"

    def next_try(self, entry: Entry) -> float | None:
        """When it is tried, or answered, by itself; None while an event or a person ends the wait."""
        match self.waits_for(entry):
            case "abort":
                return entry.answer_at
            case "retry":
                return entry.due
            case "probe":
                return self._keeper.outages[entry.direction].next_probe
        return None

    def expires(self, entry: Entry, now: float) -> float | None:
        """When its time-out comes; None without one, or while its clock stands still."""
        expiry = None if entry.late else self._keeper.expiry(entry)
        return None if expiry is None else self._keeper.outages[entry.direction].real(expiry, now)

    def deadline(self) -> float | None:
        """When `tick` wants to be called; None if only an event can change anything."""
        answers = [*self._keeper.soon.values(), *self._keeper.late.all()]
        times = [entry.answer_at for entry in answers if entry.answer_at is not None]
        for side in Direction:
            times += self._keeper.next_times(side)
        if (limit := self._keeper.too_old()) is not None:
            times.append(limit)
        return min(times, default=None)

    # ---- commands

    def arrived(self, token: Token, request: Request, now: float, since: float | None = None) -> list[Action]:
        """A command that the pump does not run by itself. since: when it came, if not now."""
        entry = Entry(token, request, now if since is None else since)
        if self._keeper.stopping:
            self._keeper.say(Complete(token, Verdict.BUSY))
            return self._keeper.turn(now)
        self._keeper.commands.add(entry, ordered=True)
        refusal = self._keeper.refusal(entry.direction)
        if refusal is not None:
            self._keeper.finish(entry, refusal)
        elif entry.blockers or not self._keeper.may_try(entry.direction) or self._keeper.parks(entry.direction):
            self._keeper.park(entry, now)
        else:
            self._keeper.let_out(entry)
        return self._keeper.turn(now)

    def adopted(
        self, token: Token, request: Request, since: float, failure: tuple[int, int, float], now: float
    ) -> list[Action]:
        """A command that came to an earlier process and failed there: attempts, last errno, time of the first one.

        It keeps its age and its attempts, and is tried at once.
        """
        entry = Entry(token, request, since)
        self._keeper.commands.add(entry, ordered=True)
        self._keeper.hold_on(entry, failure, now)
        return self._keeper.turn(now)

    def gate_closed(self, running: Sequence[tuple[Token, Request, float]], now: float) -> list[Action]:
        """The pump closed its gate while these ran on its own account, since then. Comes before what made it close."""
        if self._keeper.gate_open:
            self._keeper.gate_open = False
            self._keeper.late.answered = now
        for token, request, since in running:
            if self._keeper.commands.get(token) is None:
                self._keeper.commands.add(Entry(token, request, since), ordered=False)
        return self._keeper.take()

    def finished(
        self, token: Token, request: Request, error: int, now: float, since: float | None = None
    ) -> list[Action]:
        """A command's I/O came back. error 0: the pump has answered GOOD; ECANCELED: it was answered and never ran.

        since: when the command came, if not now.
        """
        entry = self._keeper.commands.get(token)
        if entry is None:
            if error in (0, errno.ECANCELED):
                return []
            entry = Entry(token, request, now if since is None else since)
            self._keeper.commands.add(entry, ordered=False)
        side = entry.direction
        probed, entry.probe = entry.probe, False
        if probed:
            self._keeper.outages[side].out -= 1
        if entry.stage is Stage.FENCE:
            self._keeper.forget(entry)
        elif not error:
            self._keeper.forget(entry)
            self._keeper.succeeded(side, probed, now)
        elif entry.late:
            self._keeper.put_off(entry)
        elif entry.answer_at is not None:
            self._keeper.finish(entry, entry.answer)
        elif self._keeper.stopping:
            self._keeper.finish(entry, Verdict.BUSY)
        else:
            self._keeper.failed(entry, error, probed, now)
        return self._keeper.turn(now)

    def probed(self, side: Direction, error: int, now: float) -> list[Action]:
        """The end of a Probe."""
        self._keeper.idle_probe = False
        outage = self._keeper.outages[side]
        outage.out -= 1
        if error:
            outage.error = error
            self._keeper.lost_file(error)
            outage.probe_ended(False)
        elif side is Direction.WRITE:  # a read says nothing of writes, but it is worth to have one sent again and tried
            outage.next_probe = now
            self._keeper.answered(now)
        else:
            self._keeper.succeeded(side, True, now)
        return self._keeper.turn(now)

    def reopened(self, error: int, now: float) -> list[Action]:
        """The end of a Reopen; error: it failed, or the storage there is another."""
        self._keeper.reopening = False
        self._keeper.needs_reopen = bool(error)
        if not error:
            self._keeper.answered(now)
        for side, outage in self._keeper.outages.items():
            if outage.state not in (State.DOWN, State.FAILED):
                continue
            if error:
                outage.error = error
                outage.probe_ended(False)
            else:
                outage.next_probe = now
                outage.answers = True
                if not self._keeper.failing[side]:
                    self._keeper.recover(side, now)
        return self._keeper.turn(now)

    def storage_lost(self, error: int, now: float) -> list[Action]:
        """The storage is not open; both directions wait for it."""
        self._keeper.gate_open = False
        self._keeper.needs_reopen = True
        self._keeper.lose(error, now)
        return self._keeper.turn(now)

    def ring_lost(self, now: float) -> list[Action]:
        """Everything that was open went with its ring: the kernel has answered it, and none of its I/O is out."""
        keeper = self._keeper
        keeper.gate_open = False
        keeper.idle_probe = False
        keeper.drop_late(math.inf)
        for entry in keeper.commands:
            entry.probe = False
            keeper.forget(entry)
        for outage in keeper.outages.values():
            outage.out = 0
        return keeper.turn(now)

    def aborted(self, tokens: Sequence[Token], now: float, kind: int = 0) -> list[Action]:
        """Task management names these: held ones are answered now, running ones by the end of the grace.

        kind: TCMU's number of what named them. Some are answered late, if the initiator's profile has it: `late.py`.
        """
        named = self._keeper.known(tokens)
        delay = self._keeper.late.delay(kind, named, now)
        for entry in named:
            self._keeper.answer_soon(entry, Verdict.ABORTED, now, delay)
        return self._keeper.turn(now)

    def hurry(self, now: float) -> list[Action]:
        """Answer now what is put off."""
        self._keeper.hurry(now)
        return self._keeper.turn(now)

    def tick(self, now: float) -> list[Action]:
        """Time passed."""
        return self._keeper.turn(now)

    # ---- persons

    def kick(self, now: float, tokens: Sequence[Token] = ()) -> list[Action]:
        """Try now: these, or whatever an outage holds. What is stopped or drained stays so."""
        self._keeper.hurry(now)
        for outage in self._keeper.outages.values():
            if outage.state in (State.DOWN, State.FAILED):
                outage.next_probe = now
        for entry in self._keeper.known(tokens) if tokens else self._keeper.commands:
            if entry.stage is Stage.HELD and not entry.blockers and self._keeper.may_try(entry.direction):
                if tokens and not self._keeper.needs_reopen:
                    self._keeper.let_out(entry)
                elif not self._keeper.by_probes(entry.direction):
                    self._keeper.due(entry, now)
        return self._keeper.turn(now)

    def fail(self, now: float, tokens: Sequence[Token] = ()) -> list[Action]:
        """Answer held commands with the sense of `report`: these, or all. One that is out is answered when it fails."""
        self._keeper.hurry(now)
        for entry in self._keeper.known(tokens) if tokens else self._keeper.commands:
            if entry.stage is Stage.HELD:
                self._keeper.finish(entry, self._keeper.sense(entry))
            elif entry.stage is Stage.RUNNING and entry.held_at is not None:
                entry.doomed = True
        return self._keeper.turn(now)

    def release(self, now: float) -> list[Action]:
        """Answer BUSY to everything that is open; what runs, when it returns or the grace ends.

        In this outage nothing is answered late any more: maybe that was what ended somebody's patience.
        """
        self._keeper.late.prompt = True
        self._keeper.hurry(now)
        for entry in self._keeper.commands:
            self._keeper.answer_soon(entry, Verdict.BUSY, now)
        return self._keeper.turn(now)

    def hold(self, now: float, reason: str) -> list[Action]:
        """Try nothing until `resume`."""
        self._keeper.gate_open = False
        self._keeper.held_by = reason
        self._keeper.say(Emit(events.HELD, None, {"reason": reason}))
        return self._keeper.turn(now)

    def hold_over(self, now: float) -> list[Action]:
        """A person's hold has lasted its time. What a fallback stopped stays so, and that is said again."""
        self._keeper.hurry(now)
        if self._keeper.held_by:
            self._keeper.held_by = ""
            self._keeper.say(Emit(events.RESUMED))
            for side, fallback in self._keeper.stopped_by.items():
                self._keeper.say(Emit(events.STOPPED, side, {"fallback": fallback.value}))
        return self._keeper.turn(now)

    def resume(self, now: float) -> list[Action]:
        """End a person's hold and every `stop`, `readonly` and `offline`; time-outs of a stop start anew."""
        self._keeper.hurry(now)
        if self._keeper.held_by or self._keeper.stopped_by:
            self._keeper.say(Emit(events.RESUMED))
        self._keeper.held_by = ""
        for side in list(self._keeper.stopped_by):
            del self._keeper.stopped_by[side]
            self._keeper.stand_still(now)
            outage = self._keeper.outages[side]
            outage.began = outage.clock(now)
            waiting = bool(self._keeper.failing[side])
            outage.move(Trigger.RESUME if waiting else Trigger.RESUME_EMPTY)
            outage.window, outage.failures, outage.next_probe = 1, 0, now
            for entry in self._keeper.commands:
                if entry.direction is side and entry.since is not None:
                    entry.since = outage.began
            self._keeper.rebuild(side)
        return self._keeper.turn(now)

    def drain(self, now: float) -> list[Action]:
        """Start nothing more; what runs ends."""
        self._keeper.gate_open = False
        self._keeper.draining = True
        return self._keeper.turn(now)

    def undrain(self, now: float) -> list[Action]:
        self._keeper.draining = False
        return self._keeper.turn(now)

    def stopping(self, now: float) -> list[Action]:
        """The end: everything is answered BUSY at once, and so is whatever still arrives."""
        self._keeper.gate_open = False
        self._keeper.stopping = True
        self._keeper.hurry(now)
        for entry in self._keeper.commands:
            if entry.stage is Stage.HELD:
                self._keeper.finish(entry, Verdict.BUSY)
            elif entry.stage is Stage.RUNNING:
                self._keeper.fence(entry, Verdict.BUSY)
        return self._keeper.turn(now)

    def set_budgets(self, budgets: Budgets) -> None:
        """They count for what is to be held from now on."""
        self._keeper.budgets = budgets

    def set_initiator(self, profile: Profile) -> None:
        """How late it may be answered, from now on. By default nothing is answered late."""
        self._keeper.late.initiator = profile

    def set_policy(self, policy: Policy, now: float) -> list[Action]:
        """Takes effect on what is held: waits and time-outs are reckoned by the new values from the old beginnings."""
        before = flatten(self._keeper.policy)
        changes = [f"{key}={value}" for key, value in flatten(policy).items() if before.get(key) != value]
        self._keeper.policy = policy
        for side, outage in self._keeper.outages.items():
            longest = policy.of(side).retry_max_interval * (1 + policy.of(side).retry_jitter)
            outage.next_probe = min(outage.next_probe, now + longest)
            for entry in self._keeper.commands:
                if entry.direction is side and entry.stage is Stage.HELD and entry.attempts:
                    soonest = now + self._keeper.settings(entry).delay(entry.attempts, self._keeper.random())
                    entry.due = min(entry.due, soonest)
            self._keeper.rebuild(side)
            self._keeper.end_unwanted(side, now)
        self._keeper.say(Emit(events.POLICY_CHANGED, None, {"changes": " ".join(changes)}))
        return self._keeper.turn(now)
