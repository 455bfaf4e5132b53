"""Anything in any order: a model of the driver plays with an engine and holds it to the promises of the design.

The model is a pump with a gate. Plain commands run on its own account while the gate is open; everything else is the
engine's. It knows which I/O is out and who has been answered, and from that alone what the engine may not do.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tcmu_retry.core.actions import Action, Complete, Dispatch, Emit, Gate, Probe, Reopen, Verdict
from tcmu_retry.core.engine import Engine
from tcmu_retry.core.initiators import FOR_EVER, Profile
from tcmu_retry.core.late import ABORT_TASK, LUN_RESET
from tcmu_retry.core.outage import State
from tcmu_retry.core.policy import DEFAULT, Budgets, Policy, change
from tcmu_retry.scsi.request import COPY_PIECE, Direction, Extent, Op, Request

MIB = 1 << 20
PLAIN = (Op.READ, Op.WRITE, Op.FLUSH)
ERRORS = (
    errno.EIO, errno.ENOLINK, errno.ETIMEDOUT, errno.EAGAIN, errno.ENODATA, errno.ENOSPC, errno.EBADE, errno.EINVAL,
    errno.EREMOTEIO, errno.ENODEV,
)  # fmt: skip

POLICIES = [
    change(DEFAULT, words)
    for words in (
        {},
        {"retry": "false"},
        {"retry_timeout": "5s"},
        {"retry_timeout": "3s", "fallback": "stop"},
        {"retry_timeout": "3s", "fallback": "offline"},
        {"write.retry_timeout": "3s", "write.fallback": "readonly"},
        {"retry_timeout": "4s", "fallback": "busy", "retry_jitter": "1"},
        {"retry_timeout": "4s", "fallback": "ignore", "allow_data_loss": "true"},
        {"classes.space.retry": "false", "classes.space.fallback": "enospc"},
        {"classes.gone.retry": "false", "retry_max_interval": "2s"},
        {"classes.gone.retry": "false", "classes.gone.fallback": "stop"},
        {"classes.medium.fallback": "stop", "classes.unknown.attempts": "2"},
        {"read.retry": "false", "write.fallback": "stop", "write.retry_timeout": "1s"},
    )
]

PROMPT = Profile("prompt", FOR_EVER, None, "")
PATIENT = Profile("patient", FOR_EVER, None, "", tried=2.0, abort_late=1.5, reset_late=7.0)

BUDGETS = [Budgets(), Budgets(held=3), Budgets(held_bytes=3 * 4096), Budgets(age=6.0)]


def extents() -> st.SearchStrategy[Extent]:
    """Few places, so that commands meet; some at the edges of the index's buckets, some wider than it likes."""
    return st.builds(
        Extent,
        st.sampled_from([0, 4096, 8192, MIB - 4096, MIB, 3 * MIB]),
        st.sampled_from([4096, 4096, 4096, 8192, 2 * MIB, 80 * MIB]),
    )


def requests() -> st.SearchStrategy[Request]:
    """Reads and writes for the most part."""

    def of(op: Op) -> st.SearchStrategy[Request]:
        fewest, most = {Op.FLUSH: (0, 0), Op.UNMAP: (0, 3), Op.COPY: (2, 2)}.get(op, (1, 1))
        return st.builds(Request, st.just(op), st.lists(extents(), min_size=fewest, max_size=most).map(tuple))

    return st.sampled_from([Op.READ, Op.WRITE] * 4 + list(Op)).flatmap(of)


def meet(some: Request, other: Request) -> bool:
    """Whether one must wait for the other."""
    reads = (Op.READ, Op.VERIFY, Op.FLUSH)
    if some.op in reads and other.op in reads:
        return False
    return any(
        one.offset < another.offset + another.length and another.offset < one.offset + one.length
        for one in some.extents
        for another in other.extents
    )


@dataclass
class Open:
    """A command that the engine knows and that is not over: not answered yet, or its I/O is out."""

    request: Request
    behind: list[Open] = field(default_factory=list)
    out: bool = False
    answered: bool = False
    aborted: bool = False

    @property
    def passed(self) -> bool:
        """Nobody waits behind it any more."""
        return (self.answered or self.aborted) and not self.out

    @property
    def over(self) -> bool:
        return self.answered and not self.out


def weight(request: Request) -> int:
    """What the budget of bytes counts."""
    if request.op is Op.COPY:
        return min(request.length // 2, COPY_PIECE)
    return 0 if request.op in (Op.UNMAP, Op.WRITE_SAME) else request.length


class EngineMachine(RuleBasedStateMachine):
    """A driver, an initiator, storage that breaks, and a person who presses every button."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        budgets=st.sampled_from(BUDGETS),
        seed=st.integers(0, 9),
        ends=st.sampled_from([False, False, False, True]),
        initiator=st.sampled_from([PROMPT, PATIENT, PATIENT]),
    )
    def begin(self, policy: Policy, budgets: Budgets, seed: int, ends: bool, initiator: Profile) -> None:
        self.now = 1000.0
        self.engine = Engine(policy, budgets, random.Random(seed).random)
        self.engine.set_initiator(initiator)
        self.initiator = initiator
        self.came: dict[int, float] = {}
        self.aborted: dict[int, float] = {}  # until when each has to be answered
        self.policy = policy
        self.ends = ends
        self.last = 0
        self.requests: dict[int, Request] = {}
        self.answers: dict[int, int] = {}
        self.own: set[int] = set()  # out on the pump's own account
        self.open: dict[int, Open] = {}  # known to the engine
        self.gate_open = True
        self.probes: list[Direction] = []
        self.reopening = False
        self.draining = False
        self.stopping = False

    # ---- the driver

    def act(self, actions: Iterable[Action]) -> None:
        """Carry out, and see that each action is allowed now."""
        tried = set()
        for action in actions:
            match action:
                case Dispatch(token):
                    command = self.open[token]
                    assert not command.answered, "nothing starts after it was answered"
                    assert token not in self.aborted, "nothing starts after it was aborted"
                    assert not command.out, "one attempt at a time"
                    assert all(other.passed for other in command.behind), "nothing overtakes what it overlaps"
                    assert not (self.draining or self.stopping or self.engine.held_by), "nothing is tried now"
                    command.out = True
                    tried.add(command.request.direction)
                case Complete(token, answer, keep_buffer):
                    command = self.open[token]
                    assert command.out == keep_buffer, "the kernel keeps the buffer if and only if I/O may touch it"
                    assert not keep_buffer or answer in (Verdict.ABORTED, Verdict.BUSY)
                    assert answer is not Verdict.IGNORED or self.policy.allow_data_loss
                    command.answered = True
                    self.answered(token)
                case Probe(side):
                    assert not self.probes, "one read of our own at a time"
                    self.probes.append(side)
                    tried.add(side)
                case Reopen():
                    assert not self.reopening
                    self.reopening = True
                case Gate(opens):
                    assert opens and not self.gate_open
                    self.gate_open = True
                case Emit():
                    pass
        for side in tried:
            assert self.engine.outage(side).state is not State.STOPPED, "what is stopped tries nothing"

    def answered(self, token: int) -> None:
        self.answers[token] = self.answers.get(token, 0) + 1
        assert self.answers[token] == 1, "answered twice"
        self.forget(token)

    def forget(self, token: int) -> None:
        if token in self.open and self.open[token].over:
            del self.open[token]

    def close_gate(self) -> list[Action]:
        """What ran unasked is handed over; from here on everything passes through the engine."""
        running = sorted(self.own) if self.gate_open else []
        if self.gate_open:
            self.gate_open = False
            self.own.clear()
            for token in running:
                self.open[token] = Open(self.requests[token], out=True)
        return self.engine.gate_closed([(token, self.requests[token], self.came[token]) for token in running], self.now)

    def known(self, pick: Callable[[Open], bool]) -> list[int]:
        return [token for token, command in self.open.items() if pick(command)]

    def out(self) -> list[int]:
        return sorted(self.own | set(self.known(lambda command: command.out)))

    def send(self, request: Request) -> None:
        self.last += 1
        token = self.last
        self.came[token] = self.now
        self.requests[token] = request
        if self.gate_open and request.op in PLAIN:
            self.own.add(token)
            return
        actions = self.close_gate() if request.op is Op.COMPARE_AND_WRITE else []
        behind = [other for other in self.open.values() if meet(request, other.request)]
        self.open[token] = Open(request, behind)
        self.act([*actions, *self.engine.arrived(token, request, self.now)])

    def end_io(self, token: int, error: int) -> None:
        request = self.requests[token]
        if token in self.own:
            self.own.remove(token)
            if not error:
                self.answered(token)
                return
            self.open[token] = Open(request)
        command = self.open[token]
        actions = self.close_gate() if error and not command.answered else []
        command.out = False
        if command.answered:
            self.forget(token)
        elif not error:
            command.answered = True
            self.answered(token)
        self.act([*actions, *self.engine.finished(token, request, error, self.now, self.came[token])])

    # ---- what happens

    @rule(request=requests())
    def arrives(self, request: Request) -> None:
        self.send(request)

    @precondition(lambda self: self.out())
    @rule(data=st.data(), error=st.sampled_from([0] * 5 + list(ERRORS)))
    def io_ends(self, data: st.DataObject, error: int) -> None:
        self.end_io(data.draw(st.sampled_from(self.out())), error)

    @precondition(lambda self: self.out())
    @rule(error=st.sampled_from([0, errno.EIO, errno.ENOLINK]))
    def all_io_ends(self, error: int) -> None:
        for token in self.out():
            self.end_io(token, error)

    @precondition(lambda self: self.known(lambda command: command.out and command.answered))
    @rule(data=st.data())
    def withdrawn(self, data: st.DataObject) -> None:
        """It was answered before the pump had started its I/O."""
        self.end_io(data.draw(st.sampled_from(self.known(lambda one: one.out and one.answered))), errno.ECANCELED)

    @precondition(lambda self: self.probes)
    @rule(error=st.sampled_from([0, errno.EIO, errno.ENOLINK, errno.ENODEV]))
    def probe_ends(self, error: int) -> None:
        self.act(self.engine.probed(self.probes.pop(), error, self.now))

    @precondition(lambda self: self.reopening)
    @rule(error=st.sampled_from([0, errno.ENOENT, errno.EMEDIUMTYPE]))
    def reopen_ends(self, error: int) -> None:
        self.reopening = False
        self.act(self.engine.reopened(error, self.now))

    @rule(error=st.sampled_from([0, 0, *ERRORS]))
    def wakes_and_ends(self, error: int) -> None:
        """What comes of the next timer: a try, and its end."""
        before = set(self.out())
        self.wakes()
        for token in self.out():
            if token not in before:
                self.end_io(token, error)

    @rule()
    def wakes(self) -> None:
        """The timer runs exactly when it was asked for, or at once if that is past."""
        due = self.engine.deadline()
        if due is not None:
            self.now = max(self.now, due)
        self.act(self.engine.tick(self.now))

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 7.3]))
    def late(self, seconds: float) -> None:
        """Time passes and the timer is late: whatever comes next finds what is overdue."""
        self.now += seconds

    # ---- persons

    @rule(verb=st.sampled_from(["hold", "resume", "resume", "drain", "undrain", "undrain", "release", "gate_closes"]))
    def person(self, verb: str) -> None:
        """One rule for them all, so that persons do not come more often than I/O."""
        getattr(self, verb)()

    @rule(data=st.data(), named=st.booleans())
    def kick(self, data: st.DataObject, named: bool) -> None:
        self.act(self.engine.kick(self.now, self.some(data) if named else ()))

    @rule(data=st.data(), named=st.booleans())
    def fail(self, data: st.DataObject, named: bool) -> None:
        self.act(self.engine.fail(self.now, self.some(data) if named else ()))
        if not named:
            assert self.engine.held_count == 0, "a person can always end a hold"

    def some(self, data: st.DataObject) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(self.open)))) if self.open else []

    def hold(self) -> None:
        self.act(self.close_gate())
        self.act(self.engine.hold(self.now, "maintenance"))

    def resume(self) -> None:
        self.act(self.engine.resume(self.now))

    def drain(self) -> None:
        self.act(self.close_gate())
        self.draining = True
        self.act(self.engine.drain(self.now))

    def undrain(self) -> None:
        self.draining = False
        self.act(self.engine.undrain(self.now))

    @rule(policy=st.sampled_from(POLICIES))
    def set_policy(self, policy: Policy) -> None:
        self.policy = policy
        self.act(self.engine.set_policy(policy, self.now))

    @rule(data=st.data())
    def task_management(self, data: st.DataObject) -> None:
        self.act(self.close_gate())
        living = [token for token in self.known(lambda command: not command.answered) if token not in self.aborted]
        named = data.draw(st.lists(st.sampled_from(living), unique=True)) if living else []
        kind, late = data.draw(
            st.sampled_from(
                [(ABORT_TASK, self.initiator.abort_late), (LUN_RESET, self.initiator.reset_late), (128, 0.0)]
            )
        )
        oldest = max((self.now - self.came[token] for token in named), default=0.0)
        late = late if oldest >= self.initiator.tried else 0.0
        for token in named:
            self.aborted[token] = self.now + max(late, 0.5)
            self.open[token].aborted = True
        self.act(self.engine.aborted(named, self.now, kind))
        for token in named:
            waits = token in self.open and not self.open[token].out
            assert not waits or late, "an aborted command waits for nothing but its I/O and its answer's time"

    def release(self) -> None:
        self.act(self.close_gate())
        self.act(self.engine.release(self.now))
        assert self.engine.held_count == 0

    def gate_closes(self) -> None:
        """For no reason that the engine knows; it may open it again at once."""
        self.act([*self.close_gate(), *self.engine.tick(self.now)])

    @precondition(lambda self: self.ends and self.last > 8)
    @rule()
    def stop(self) -> None:
        self.act(self.close_gate())
        self.stopping = True
        self.act(self.engine.stopping(self.now))
        assert not self.known(lambda command: not command.answered), "at the end nobody waits for storage"

    # ---- what always holds

    @invariant()
    def counts_agree(self) -> None:
        """What the engine shows is what is: each open command is held, or its I/O is out."""
        held = [command.request for command in self.open.values() if not command.out]
        assert self.engine.held_count == len(held) == len(self.engine.held())
        assert self.engine.held_bytes == sum(weight(request) for request in held)
        assert self.engine.in_flight == len(self.open) - len(held)

    @invariant()
    def open_gate_means_peace(self) -> None:
        """With the gate open nobody waits for storage; at most a command waits for another one that runs.

        And nothing is fenced: no late write can land over what the pump runs unasked.
        """
        if self.gate_open:
            assert not any(command.answered for command in self.open.values())
            assert all(entry.blockers and not entry.attempts for entry in self.engine.held())
            assert all(self.engine.state(side) is State.ONLINE for side in Direction)

    @invariant()
    def somebody_ends_every_wait(self) -> None:
        """A held command has a timer, I/O that will return, or a person who said that it waits.

        One that waits behind another ends its wait with that one's, and the first of all waits for nobody.
        """
        if self.draining or self.engine.held_by or self.engine.deadline() is not None:
            return
        if self.out() or self.probes or self.reopening:
            return
        for entry in self.engine.held():
            assert entry.blockers or self.engine.state(entry.direction) is State.STOPPED

    def check_time(self) -> None:
        """After a turn nothing is overdue: neither the timer nor a time-out whose clock runs."""
        due = self.engine.deadline()
        assert due is None or due > self.now
        for token, limit in self.aborted.items():
            assert token not in self.open or self.open[token].answered or limit > self.now, "answered when it must be"
        if not self.draining:
            for entry in self.engine.held():
                expires = self.engine.expires(entry, self.now)
                assert expires is None or expires > self.now - 1e-6

    @rule()
    def looks(self) -> None:
        """A tick at `now` leaves nothing overdue, and everything held can be shown."""
        self.act(self.engine.tick(self.now))
        self.check_time()
        for entry in self.engine.held():
            assert self.engine.waits_for(entry) in ("retry", "probe", "overlap", "resume", "drain", "abort")
            assert entry.attempts == 0 or entry.error

    # ---- the end

    def teardown(self) -> None:
        """Everything heals: each command ends, and the gate opens again."""
        if not hasattr(self, "engine"):
            return
        if not self.stopping:
            self.undrain()
        for _ in range(100):
            if not self.stopping:
                self.resume()
            for token in self.out():
                self.end_io(token, 0)
            if self.probes:
                self.probe_ends(0)
            if self.reopening:
                self.reopen_ends(0)
            if not self.open and (self.gate_open or self.stopping):
                break
            if not self.open:  # only a new write finds out that writes work again
                self.send(Request(Op.WRITE, (Extent(0, 4096),)))
            self.wakes()
            self.check_time()
        assert not self.open and not self.own
        assert self.gate_open != self.stopping
        assert self.answers == dict.fromkeys(self.requests, 1), "each command is answered exactly once"


EngineMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngine = EngineMachine.TestCase
