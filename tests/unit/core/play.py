"""An engine played by time lines: `seconds  event -> actions`.

Events: `ran w1@0 EIO` (write 1 at block 0 ran on the pump's account and failed), `w1@0`, `r1@0`, `f1`, `c1@0` (write,
read, flush, compare-and-write arrive), `io 1 EIO` (its I/O ends; 0: well), `wake` (the timer runs, and exactly now is
when it was asked for), `tick` (it runs at any time), `idle` (no timer is asked for), `probe read EIO`, `reopen 0`,
`ring` (it is lost, with all commands), `set key=value …`, and the verbs of persons. `gate w1@0 r2@8` closes the gate
while these run. `state read -> down` is what a person sees.
`abort 1` names command 1; `abort_task`, `lun_reset` and `preempt` say by what, which matters to an `initiator`.
`left w1@0 2 EIO 50`: write 1 is taken up from an earlier process, where it failed twice, first at 50, last with EIO.
Actions: `try 1`, `1=BUSY`, `1=02/04/03`, `1=ABORTED+keep`, `probe`, `reopen`, `open` (the gate), and events by name.
Jitter is in the middle of its range, so that waits are as written in the policy.
"""

from __future__ import annotations

import errno

import pytest

from tcmu_retry.core import events
from tcmu_retry.core.actions import Action, Complete, Dispatch, Emit, Gate, Probe, Reopen, Verdict
from tcmu_retry.core.engine import Engine
from tcmu_retry.core.initiators import PROFILES
from tcmu_retry.core.late import ABORT_TASK, LUN_RESET
from tcmu_retry.core.policy import DEFAULT, Budgets, change
from tcmu_retry.scsi.request import Direction, Extent, Op, Request

BLOCK = 4096
OPS = {"w": Op.WRITE, "r": Op.READ, "f": Op.FLUSH, "c": Op.COMPARE_AND_WRITE, "v": Op.VERIFY}
NAMES = {value: name.lower() for name, value in vars(events).items() if isinstance(value, str) and value[:3] == "TR-"}
KINDS = {"abort": 0, "abort_task": ABORT_TASK, "lun_reset": LUN_RESET, "preempt": 128}
BUDGETS = Budgets()


class Play:
    """An engine, and who plays all the others."""

    def __init__(self, policy: str = "", budgets: Budgets = BUDGETS, initiator: str = "") -> None:
        self.engine = Engine(change(DEFAULT, words(policy)), budgets, lambda: 0.5)
        if initiator:
            self.engine.set_initiator(PROFILES[initiator])
        self.policy = policy
        self.requests: dict[int, Request] = {}

    def line(self, script: str) -> None:
        """Play a time line and compare."""
        for number, text in enumerate(script.strip().splitlines(), 1):
            happens, _, expected = text.partition("->")
            now, event = happens.split(None, 1)
            if event.startswith("state "):
                found = [self.engine.state(Direction(event.split()[1])).value]
            else:
                found = [shown(action) for action in self.event(float(now), event.strip())]
            assert found == listed(expected), f"line {number}: {text.strip()}"

    def event(self, now: float, event: str) -> list[Action]:
        word, *rest = event.split()
        engine = self.engine
        match word:
            case "ran":
                token, request = self.request(rest[0])
                engine.gate_closed([], now)
                return engine.finished(token, request, code(rest[1]), now)
            case "gate":
                return engine.gate_closed([(*self.request(text), now) for text in rest], now)
            case "io":
                return engine.finished(int(rest[0]), self.requests[int(rest[0])], code(rest[1]), now)
            case "wake":
                assert engine.deadline() == pytest.approx(now, abs=1e-6)
                return engine.tick(now)
            case "idle":
                assert engine.deadline() is None
                return engine.tick(now)
            case "probe":
                return engine.probed(Direction(rest[0]), code(rest[1]), now)
            case "reopen":
                return engine.reopened(code(rest[0]), now)
            case "lost":
                return engine.storage_lost(code(rest[0]), now)
            case "ring":
                return engine.ring_lost(now)
            case "left":
                token, request = self.request(rest[0])
                failure = int(rest[1]), code(rest[2]), float(rest[3])
                return engine.adopted(token, request, float(rest[3]), failure, now)
            case "set":
                return engine.set_policy(change(DEFAULT, words(" ".join([self.policy, *rest]))), now)
            case "hold":
                return engine.hold(now, "maintenance")
            case "over":
                return engine.hold_over(now)
            case "kick" | "fail":
                return getattr(engine, word)(now, [int(token) for token in rest])
            case "abort" | "abort_task" | "lun_reset" | "preempt":
                return engine.aborted([int(token) for token in rest], now, KINDS[word])
            case "tick" | "hurry" | "resume" | "drain" | "undrain" | "release" | "stopping":
                return getattr(engine, word)(now)
        return engine.arrived(*self.request(word), now)

    def request(self, text: str) -> tuple[int, Request]:
        name, _, place = text.partition("@")
        extents = (Extent(int(place) * BLOCK, BLOCK),) if place else ()
        token = int(name[1:])
        self.requests[token] = Request(OPS[name[0]], extents)
        return token, self.requests[token]


def words(text: str) -> dict[str, str]:
    return dict(word.split("=") for word in text.split())


def code(name: str) -> int:
    return 0 if name == "0" else int(getattr(errno, name))


def listed(expected: str) -> list[str]:
    return [item.strip() for item in expected.split(",") if item.strip()]


def shown(action: Action) -> str:
    match action:
        case Dispatch(token):
            return f"try {token}"
        case Complete(token, answer, keep):
            text = answer.name if isinstance(answer, Verdict) else str(answer)
            return f"{token}={text}" + ("+keep" if keep else "")
        case Probe():
            return "probe"
        case Reopen():
            return "reopen"
        case Gate():
            return "open"
        case Emit(name, side):
            return NAMES[name] + (f" {side.value}" if side else "")


def play(script: str, policy: str = "", budgets: Budgets = BUDGETS, initiator: str = "") -> Engine:
    player = Play(policy, budgets, initiator)
    player.line(script)
    return player.engine
