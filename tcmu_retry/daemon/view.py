"""What people and programs are shown of a device: engine and pump in the words of `daemon.api`."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import asdict

from tcmu_retry.core import events
from tcmu_retry.core.engine import Engine
from tcmu_retry.core.outage import State
from tcmu_retry.daemon.api import DirectionStatus, HeldCommand, Notice
from tcmu_retry.pump.base import Command, Statistics
from tcmu_retry.scsi.request import Direction
from tcmu_retry.scsi.sense import LUN_NOT_ACCESSIBLE, Sense

# 02/04/0A, asymmetric access state transition: multipath's tur checker keeps the path pending.
HEALTH = {"good": None, "transitioning": Sense(0x2, 0x04, 0x0A), "down": LUN_NOT_ACCESSIBLE}


def health(setting: str, engine: Engine) -> Sense | None:
    """What TEST UNIT READY answers: the configured condition while a direction is away, else nothing."""
    away = any(engine.state(side) in (State.DOWN, State.FAILED) for side in Direction)
    return HEALTH[setting] if away else None


def direction(engine: Engine, side: Direction, now: float) -> DirectionStatus:
    """One half of a LUN."""
    outage = engine.outage(side)
    online = outage.state is State.ONLINE
    probing = outage.state in (State.DOWN, State.FAILED)
    return DirectionStatus(
        state=engine.state(side).value,
        outage=None if online else now - outage.began_at,
        error="" if online else _name(outage.error),
        next_probe_in=max(outage.next_probe - now, 0.0) if probing else None,
        window=outage.window,
        probes=0 if online else outage.probes,
        stopped=0.0 if online else outage.stood_still(now),
    )


def held(engine: Engine, block_size: int, now: float) -> list[HeldCommand]:
    """Oldest first."""
    shown = []
    for entry in engine.held():
        tried, expires = engine.next_try(entry), engine.expires(entry, now)
        shown.append(
            HeldCommand(
                serial=entry.token,
                operation=entry.request.op.value,
                direction=entry.direction,
                lba=max(entry.place, 0) // block_size,
                blocks=entry.request.length // block_size,
                age=now - entry.arrived,
                held=now - (entry.arrived if entry.held_at is None else entry.held_at),
                attempts=entry.attempts,
                error=_name(entry.error),
                error_class=entry.group.value if entry.attempts else "",
                waits_for=engine.waits_for(entry),
                next_in=None if tried is None else max(tried - now, 0.0),
                deadline_in=None if expires is None else max(expires - now, 0.0),
            )
        )
    return shown


def hung(command: Command, block_size: int, began: float, now: float) -> HeldCommand:
    """One whose I/O is out, and has been for too long."""
    request = command.request
    assert request is not None
    place = request.extents[0].offset if request.extents else 0
    return HeldCommand(
        serial=command.serial,
        operation=request.op.value,
        direction=request.direction,
        lba=place // block_size,
        blocks=request.length // block_size,
        age=now - command.arrived,
        held=now - began,
        attempts=0,
        error="",
        error_class="",
        waits_for="io",
        next_in=None,
        deadline_in=None,
    )


def statistics(counters: Statistics) -> dict[str, int]:
    """Counters by name."""
    return asdict(counters)


def notice(code: str, device: str, side: Direction | None, fields: Mapping[str, object], time: float) -> Notice:
    """An event in a sentence; time in seconds since the epoch."""
    what = events.MEANINGS[code].summary.format(**fields)
    subject = f"{side.value}s: {what}" if side else what
    direction_field = {"direction": side.value} if side else {}
    return Notice(code, device, subject, time, {**direction_field, **fields})


def _name(code: int) -> str:
    return errno.errorcode.get(code, str(code)) if code else ""
