"""What the engine keeps of one LUN, and what happens inside: a failure's meaning, a command's way, an input's end.

Only `engine.py` calls this. Every input ends in `turn`: answer what cannot wait, let out what may be tried, note what
is over, open the gate if that can be. Actions are collected and handed out by `take`.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterable

from tcmu_retry.core import events
from tcmu_retry.core.actions import Action, Complete, Dispatch, Emit, Gate, Probe, Reopen, Token, Verdict
from tcmu_retry.core.errors import ErrorClass, classify, report
from tcmu_retry.core.hold import Commands, Entry, Stage
from tcmu_retry.core.late import Late
from tcmu_retry.core.outage import Outage, State, Trigger
from tcmu_retry.core.policy import Budgets, DirectionPolicy, Fallback, Policy
from tcmu_retry.core.schedule import Schedule
from tcmu_retry.scsi.request import Direction
from tcmu_retry.scsi.sense import LUN_NOT_ACCESSIBLE, WRITE_PROTECTED, Sense

ABORT_GRACE = 0.5  # s an aborted command's I/O gets to return before it is answered over its head (KEEP_BUF)
LOSING = (ErrorClass.TRANSPORT, ErrorClass.GONE)
LOCAL = (ErrorClass.RESOURCE, ErrorClass.MEDIUM, ErrorClass.PERMANENT, ErrorClass.RESERVATION)


class Keeper:
    """The state of one LUN and its mechanics."""

    def __init__(self, policy: Policy, budgets: Budgets, random: Callable[[], float]) -> None:
        self.policy = policy
        self.budgets = budgets
        self.random = random
        self.commands = Commands()
        self.outages = {side: Outage() for side in Direction}
        self.stopped_by: dict[Direction, Fallback] = {}
        self.schedules = {side: Schedule(self.commands.get, self.expiry) for side in Direction}
        self.failing: dict[Direction, set[Token]] = {side: set() for side in Direction}  # held or out, for an outage
        self.soon: dict[Token, Entry] = {}  # running, and answered at a time that is known even if they run on
        self.late = Late()
        self.ignoring = False
        self.idle_probe = False
        self.needs_reopen = False
        self.reopening = False
        self.gate_open = True
        self.held_by = ""
        self.draining = False
        self.stopping = False
        self.shedding = False
        self.actions: list[Action] = []

    def next_times(self, side: Direction) -> Iterable[float]:
        if self.draining or self.stopping or not self.free(side):
            return
        outage = self.outages[side]
        if outage.state in (State.DOWN, State.FAILED):
            if not outage.out and not self.reopening and self.probe_due(side):
                yield outage.next_probe
            timeout = self.policy.of(side).retry_timeout
            if outage.state is State.DOWN and timeout:
                yield outage.began + timeout + outage.stood
        else:
            if (due := self.schedules[side].first_due()) is not None:
                yield due[0]
            if not self.idle_probe:
                yield from (entry.due for entry in self.late.of(side))
        if (expiry := self.schedules[side].first_end()) is not None:
            yield expiry[0] + outage.stood

    # ---- what a failure and a success mean

    def failed(self, entry: Entry, error: int, probed: bool, now: float) -> None:
        side = entry.direction
        outage = self.outages[side]
        first = not entry.attempts
        entry.attempts += 1
        entry.error, entry.group = error, classify(error)
        settings = self.settings(entry)
        self.lost_file(error)
        outage.answers = False
        if entry.since is None:
            entry.since = outage.clock(now)
            entry.held_at = now
        if probed:
            outage.error = error
            outage.probe_ended(False)
        if entry.group is ErrorClass.GONE:
            self.lose(error, now)
        if entry.group is ErrorClass.RESERVATION:
            self.finish(entry, Verdict.RESERVATION_CONFLICT)
        elif entry.doomed:
            self.finish(entry, self.sense(entry))
        elif (refusal := self.refusal(side)) is not None:
            self.finish(entry, refusal)
        elif outage.state is State.FAILED or not settings.retry or self.spent(entry, settings, now):
            self.fall_back(entry, settings, now)
        elif self.hold(entry, now):
            self.begin(side, error, now)
            if entry.group in LOSING or (first and entry.group not in LOCAL and outage.seen(entry.place, entry.token)):
                self.go_down(side, now)

    def spent(self, entry: Entry, settings: DirectionPolicy, now: float) -> bool:
        clock = self.outages[entry.direction].clock(now)
        timed_out = settings.retry_timeout and entry.since is not None and clock - entry.since >= settings.retry_timeout
        return bool(timed_out or (settings.attempts and entry.attempts >= settings.attempts))

    def succeeded(self, side: Direction, probed: bool, now: float) -> None:
        outage = self.outages[side]
        outage.evidence.clear()
        outage.answers = True
        self.answered(now)
        if outage.state is State.FAILED:
            self.recover(side, now)
        elif probed and outage.state is State.DOWN:
            outage.probe_ended(True)
            for other in self.outages.values():  # the way is open again: the other direction need not wait its turn
                if other is not outage and other.state in (State.DOWN, State.FAILED) and not other.out:
                    other.next_probe = now
            if not self.failing[side]:
                self.recover(side, now)

    def recover(self, side: Direction, now: float) -> None:
        outage = self.outages[side]
        if outage.move(Trigger.RECOVERED) or outage.move(Trigger.SUCCESS):
            outage.evidence.clear()
            self.hurry(now)
            fields = {
                "seconds": round(now - outage.began_at, 3),
                "stopped": round(outage.stood_still(now), 3),
                "held_most": outage.held_most,
                "probes": outage.probes,
            }
            self.say(Emit(events.RECOVERED if outage.answers else events.GAVE_UP, side, fields))
            self.late.prompt = self.late.prompt and not outage.answers
            self.ignoring = False
            self.rebuild(side)

    def begin(self, side: Direction, error: int, now: float) -> None:
        outage = self.outages[side]
        outage.error = error
        if outage.move(Trigger.FAILURE):
            outage.begin(now)
            for entry in self.commands:  # what waits since before has its end with the outage
                if entry.direction is side and entry.stage is Stage.HELD and entry.since is None:
                    entry.since = outage.began
                    self.schedules[side].ending(entry)
            self.say(Emit(events.OUTAGE_BEGAN, side, {"errno": errno.errorcode.get(error, str(error))}))

    def go_down(self, side: Direction, now: float) -> None:
        outage = self.outages[side]
        if outage.move(Trigger.LOST):
            outage.go_down(self.policy.of(side), self.random, now)
            self.rebuild(side)
            self.say(Emit(events.DOWN, side, {"errno": errno.errorcode.get(outage.error, str(outage.error))}))

    def lost_file(self, error: int) -> None:
        if classify(error) is ErrorClass.GONE:
            self.needs_reopen = True

    def lose(self, error: int, now: float) -> None:
        """The open file is of no use: that concerns both directions, each by its own policy."""
        for side, outage in self.outages.items():
            outage.answers = False
            if self.policy.of(side).of(ErrorClass.GONE).retry:
                self.begin(side, error, now)
                self.go_down(side, now)
            else:
                if outage.state is State.ONLINE:
                    outage.begin(now)
                outage.error = error
                if outage.move(Trigger.GIVEN_UP):
                    outage.go_down(self.policy.of(side), self.random, now)
                    self.rebuild(side)

    def fall_back(self, entry: Entry, settings: DirectionPolicy, now: float) -> None:
        match settings.fallback:
            case Fallback.IGNORE:
                if not self.ignoring:
                    self.ignoring = True
                    self.say(Emit(events.IGNORED, entry.direction))
                self.finish(entry, Verdict.IGNORED)
            case Fallback.BUSY:
                self.finish(entry, Verdict.BUSY)
            case Fallback.READONLY | Fallback.OFFLINE as fallback:
                self.stop(entry.direction, fallback, now)
                refusal = self.refusal(entry.direction)
                if entry.stage is not Stage.RUNNING:
                    return  # it was held, and answered with all others
                if refusal is None:  # `stop` came first, and goes on holding
                    self.hold(entry, now)
                else:
                    self.finish(entry, refusal)
            case Fallback.STOP:
                self.stop_with(entry, now)
            case Fallback.ENOSPC if entry.group is ErrorClass.SPACE:
                self.stop_with(entry, now)
            case _:
                self.finish(entry, self.sense(entry))

    def stop_with(self, entry: Entry, now: float) -> None:
        if entry.stage is Stage.HELD or self.hold(entry, now):
            outage = self.outages[entry.direction]
            if outage.state is State.ONLINE:
                outage.begin(now)
                outage.error = entry.error
            self.stop(entry.direction, Fallback.STOP, now)

    def stop(self, side: Direction, fallback: Fallback, now: float) -> None:
        """Until a person resumes. `offline` takes both directions; what it refuses, it refuses to the held ones too."""
        for each in Direction if fallback is Fallback.OFFLINE else (side,):
            if self.outages[each].move(Trigger.STOP):
                self.stopped_by[each] = fallback
                self.say(Emit(events.STOPPED, each, {"fallback": fallback.value}))
                refusal = self.refusal(each)
                if refusal is not None:
                    for entry in self.commands:
                        if entry.direction is each and entry.stage is Stage.HELD:
                            self.finish(entry, refusal)
        self.stand_still(now)

    def refusal(self, side: Direction) -> Sense | None:
        """What a stopped direction answers untried; None: it parks."""
        match self.stopped_by.get(side):
            case Fallback.READONLY:
                return WRITE_PROTECTED
            case Fallback.OFFLINE:
                return LUN_NOT_ACCESSIBLE
        return None

    # ---- one command's way

    def hold(self, entry: Entry, now: float) -> bool:
        """False: over budget, and answered BUSY."""
        commands, budgets = self.commands, self.budgets
        if 0 < budgets.held <= commands.held or 0 < budgets.held_bytes < commands.held_bytes + entry.weight:
            self.shed(entry)
            return False
        commands.stage(entry, Stage.HELD)
        side = entry.direction
        outage = self.outages[side]
        outage.held_most = max(outage.held_most, commands.held)
        self.failing[side].add(entry.token)
        self.schedules[entry.direction].ending(entry)
        self.due(entry, now + self.settings(entry).delay(entry.attempts, self.random()) if entry.attempts else now)
        return True

    def hold_on(self, entry: Entry, failure: tuple[int, int, float], now: float) -> None:
        """Held by an earlier process: its outage goes on. failure: as for `Engine.adopted`."""
        entry.attempts, entry.error, entry.held_at = failure
        entry.group = classify(entry.error)
        side = entry.direction
        outage = self.outages[side]
        age = max(now - entry.held_at, 0.0)
        entry.since = outage.clock(now) - age
        if (refusal := self.refusal(side)) is not None:
            self.finish(entry, refusal)
        elif self.hold(entry, now):
            self.begin(side, entry.error, now)
            outage.began, outage.began_at = min(outage.began, entry.since), min(outage.began_at, entry.held_at)
            self.due(entry, now)

    def park(self, entry: Entry, now: float) -> None:
        """Held without having been tried; an outage's clock is its own."""
        outage = self.outages[entry.direction]
        entry.held_at = now
        if outage.state in (State.DOWN, State.STOPPED):
            entry.since = outage.began
        elif outage.state is not State.ONLINE:
            entry.since = outage.clock(now)  # it only waits for another, and would be tried if it did not
        if self.hold(entry, now) and outage.state is State.ONLINE:
            self.failing[entry.direction].discard(entry.token)

    def expiry(self, entry: Entry) -> float | None:
        """When its time-out comes, in its direction's clock; None without one."""
        timeout = self.settings(entry).retry_timeout
        return entry.since + timeout if timeout and entry.since is not None else None

    def due(self, entry: Entry, when: float) -> None:
        entry.due = when
        if entry.blockers:
            return
        if self.by_probes(entry.direction):
            self.schedules[entry.direction].in_turn(entry)
        else:
            self.schedules[entry.direction].at(entry)

    def by_probes(self, side: Direction) -> bool:
        """Whether its held commands are let out as probes, in turn, rather than each by its own clock."""
        return self.outages[side].state not in (State.ONLINE, State.RETRYING)

    def let_out(self, entry: Entry) -> None:
        self.commands.stage(entry, Stage.RUNNING)
        entry.turn += 1
        if self.by_probes(entry.direction):
            entry.probe = True
            self.outages[entry.direction].out += 1
        self.say(Dispatch(entry.token))

    def finish(self, entry: Entry, answer: Sense | Verdict) -> None:
        self.say(Complete(entry.token, answer))
        self.forget(entry)

    def fence(self, entry: Entry, answer: Verdict) -> None:
        self.soon.pop(entry.token, None)
        self.failing[entry.direction].discard(entry.token)
        self.commands.stage(entry, Stage.FENCE)
        if entry.probe:  # what hangs must not keep the others from being tried
            entry.probe = False
            self.outages[entry.direction].out -= 1
            self.outages[entry.direction].probe_ended(False)
        self.say(Complete(entry.token, answer, keep_buffer=True))

    def forget(self, entry: Entry) -> None:
        self.failing[entry.direction].discard(entry.token)
        self.soon.pop(entry.token, None)
        for freed in self.commands.remove(entry):
            self.due(freed, freed.due)

    def answer_soon(self, entry: Entry, answer: Verdict, now: float, delay: float = 0.0) -> None:
        """delay: seconds by which the answer is put off; whatever the command waits for, it does not run any more."""
        if entry.stage is Stage.HELD and delay:
            entry.answer_at = now + delay
            self.put_off(entry)
        elif entry.stage is Stage.HELD:
            self.finish(entry, answer)
        elif entry.stage is Stage.RUNNING and entry.answer_at is None:
            entry.answer, entry.answer_at, entry.late = answer, now + (delay or ABORT_GRACE), bool(delay)
            self.soon[entry.token] = entry

    def put_off(self, entry: Entry) -> None:
        """Aborted, and no I/O of it is out: nobody waits for it any more but the initiator."""
        entry.late = True
        failing = entry.token in self.failing[entry.direction]
        self.forget(entry)
        self.late.add(entry)
        if failing:  # its outage is not over with it, and is found to be when a read of our own goes well
            self.failing[entry.direction].add(entry.token)

    def answered(self, now: float) -> None:
        """The storage did something."""
        self.late.answered = now
        self.hurry(now)

    def hurry(self, now: float) -> None:
        """Something suggests that waiting is over: what is put off is answered."""
        self.answer_late(math.inf)
        for entry in self.soon.values():
            if entry.late and entry.answer_at is not None:
                entry.late, entry.answer_at = False, min(entry.answer_at, now + ABORT_GRACE)

    def answer_late(self, now: float) -> None:
        for entry in self.drop_late(now):
            self.say(Complete(entry.token, entry.answer))

    def drop_late(self, now: float) -> list[Entry]:
        """Those whose wait is over then; they are forgotten, and so are their outages."""
        due = self.late.due(now)
        for entry in due:
            self.failing[entry.direction].discard(entry.token)
        return due

    # ---- the end of every input

    def turn(self, now: float) -> list[Action]:
        self.stand_still(now)
        self.answer_late(now)
        for entry in list(self.soon.values()):
            if entry.answer_at is not None and entry.answer_at <= now:
                self.fence(entry, entry.answer)
        self.end_over_age(now)
        for side in Direction:
            if self.may_try(side):
                self.time_out(side, now)
        for side in Direction:
            if self.may_try(side):
                self.try_held(side, now)
            self.settle(side, now)
        if not self.commands.held:
            self.shedding = False
        self.open_gate()
        return self.take()

    def parks(self, side: Direction) -> bool:
        """Whether new commands wait untried: while it is down, unless nobody wants them held."""
        return self.outages[side].state is State.DOWN and self.policy.of(side).retry

    def end_unwanted(self, side: Direction, now: float) -> None:
        """After a change of policy: what is not to be retried any more gets its fallback, or its one try."""
        for entry in self.commands:
            if entry.direction is side and entry.stage is Stage.HELD and self.may_try(side):
                settings = self.settings(entry)
                if settings.retry:
                    continue
                if entry.attempts:
                    self.fall_back(entry, settings, now)
                elif not entry.blockers:
                    self.let_out(entry)

    def too_old(self) -> float | None:
        """When the oldest held command exceeds the budget of age."""
        age = self.budgets.age
        if not age or not self.commands.held:
            return None
        return min(entry.arrived for entry in self.commands if entry.stage is Stage.HELD) + age

    def end_over_age(self, now: float) -> None:
        while (limit := self.too_old()) is not None and limit <= now:
            for entry in self.commands:
                if entry.stage is Stage.HELD and entry.arrived + self.budgets.age <= now:
                    self.shed(entry)

    def shed(self, entry: Entry) -> None:
        """Over a budget: BUSY."""
        if not self.shedding:
            self.shedding = True
            fields = {"held": self.commands.held, "bytes": self.commands.held_bytes}
            self.say(Emit(events.SHED, entry.direction, fields))
        self.finish(entry, Verdict.BUSY)

    def time_out(self, side: Direction, now: float) -> None:
        outage = self.outages[side]
        settings = self.policy.of(side)
        # In real time, as `deadline` gives it: a difference of clocks may be off by the last bit, and never come true.
        over = outage.began + settings.retry_timeout + outage.stood
        if outage.state is State.DOWN and settings.retry_timeout and over <= now:
            seconds = round(now - outage.began_at, 3)
            self.say(Emit(events.TIMED_OUT, side, {"seconds": seconds, "fallback": settings.fallback.value}))
            if settings.fallback in (Fallback.READONLY, Fallback.OFFLINE, Fallback.STOP):
                self.stop(side, settings.fallback, now)
            else:
                outage.move(Trigger.TIMEOUT)
        while (
            self.free(side) and (top := self.schedules[side].first_end()) is not None and top[0] + outage.stood <= now
        ):
            self.schedules[side].drop_end()
            entry = top[1]
            self.fall_back(entry, self.settings(entry), now)

    def try_held(self, side: Direction, now: float) -> None:
        outage = self.outages[side]
        if outage.state not in (State.DOWN, State.FAILED):
            while (due := self.schedules[side].first_due()) is not None and due[0] <= now:
                self.let_out(due[1])
            self.probe_for_late(side, now)
            return
        if self.needs_reopen:
            if not self.reopening and now >= outage.next_probe and not outage.out:
                self.reopening = True
                for each, other in self.outages.items():  # one reopen serves both
                    if other.state in (State.DOWN, State.FAILED):
                        other.probing(self.policy.of(each), self.random, now)
                self.say(Reopen())
            return
        room = outage.room(now)
        single = outage.window == 1 or outage.state is State.FAILED
        while room:
            entry = self.schedules[side].first_turn()
            if entry is None:
                if single and self.own_probe(side):
                    outage.probing(self.policy.of(side), self.random, now)
                    self.probe(side)
                return
            if single:
                outage.probing(self.policy.of(side), self.random, now)
            self.let_out(entry)
            room -= 1

    def probe_for_late(self, side: Direction, now: float) -> None:
        """When what was aborted would have been tried again, a block is read in its place."""
        overdue = [entry for entry in self.late.of(side) if entry.due <= now]
        if overdue and not self.idle_probe:
            for entry in overdue:
                entry.attempts += 1
                entry.due = now + self.settings(entry).delay(entry.attempts, self.random())
            self.probe(side)

    def probe(self, side: Direction) -> None:
        """By a read of our own."""
        self.outages[side].out += 1
        self.idle_probe = True
        self.say(Probe(side))

    def settle(self, side: Direction, now: float) -> None:
        outage = self.outages[side]
        if outage.state is State.RETRYING:
            over = not self.failing[side]
        else:
            # The storage answers and all that it held is out again; under load something always is, so that nobody
            # waits for that. What still waits, waits for the other direction's commands.
            over = outage.state is State.DOWN and outage.window > 1 and self.schedules[side].first_turn() is None
        if over:
            self.recover(side, now)

    def open_gate(self) -> None:
        if self.gate_open or self.commands.held or self.held_by or self.draining or self.stopping:
            return
        if any(outage.state is not State.ONLINE for outage in self.outages.values()):
            return
        if self.commands.closing or self.soon or len(self.late):  # what `soon` answers while it runs becomes a fence
            return
        self.gate_open = True
        self.say(Gate(True))

    # ---- small things

    def say(self, action: Action) -> None:
        self.actions.append(action)

    def take(self) -> list[Action]:
        actions, self.actions = self.actions, []
        return actions

    def settings(self, entry: Entry) -> DirectionPolicy:
        settings = self.policy.of(entry.direction)
        return settings.of(entry.group) if entry.attempts else settings

    def sense(self, entry: Entry) -> Sense:
        code = entry.error or self.outages[entry.direction].error or errno.EIO
        return report(code, entry.direction, self.settings(entry).report_as)

    def free(self, side: Direction) -> bool:
        """Whether commands of this direction may be tried, as far as people and stops are concerned."""
        return not self.held_by and side not in self.stopped_by

    def may_try(self, side: Direction) -> bool:
        return self.free(side) and not self.draining and not self.stopping

    def stand_still(self, now: float) -> None:
        for side, outage in self.outages.items():
            outage.stand_still(not self.free(side), now)

    def probe_due(self, side: Direction) -> bool:
        """Whether there is something to probe with: a held command, a read of our own, or a reopen."""
        return self.needs_reopen or self.own_probe(side) or self.schedules[side].first_turn() is not None

    def own_probe(self, side: Direction) -> bool:
        """Whether a read of our own probes where nothing held can; for writes too while an answer is put off."""
        return not self.idle_probe and (side is Direction.READ or len(self.late) > 0)

    def known(self, tokens: Iterable[Token]) -> list[Entry]:
        return [entry for token in dict.fromkeys(tokens) if (entry := self.commands.get(token)) is not None]

    # The tops of the heaps, less what is stale: answered, out, waiting for another, or pushed again since.

    def rebuild(self, side: Direction) -> None:
        """After a change of policy or of beginnings: the heaps anew."""
        self.schedules[side].clear()
        for entry in self.commands:
            if entry.direction is side and entry.stage is Stage.HELD:
                self.schedules[entry.direction].ending(entry)
                self.due(entry, entry.due)
