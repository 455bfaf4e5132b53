"""Direction x class of error x fallback x cache, all of it, through a LUN from the ring to the medium.

Each case is one story. The storage fails: the command is held, if its class is one that is held. It comes back: GOOD,
and the effect is there. The policy is changed to not retrying, the storage fails again: what the fallback promises, to
the command and to those that come after it. The storage comes back for good: so does the LUN.
"""

from __future__ import annotations

import asyncio
import errno
from itertools import product

import pytest

from tcmu_retry.core.errors import ErrorClass, classify
from tcmu_retry.core.policy import Fallback
from tcmu_retry.scsi.request import Direction
from tcmu_retry.tcmu.simulated import SimulatedCommand
from tests.unit.daemon.rig import BLOCK, Rig, served

ERRORS = {
    ErrorClass.TRANSPORT: errno.ENOLINK,
    ErrorClass.RESOURCE: errno.EAGAIN,
    ErrorClass.GONE: errno.ENODEV,
    ErrorClass.MEDIUM: errno.ENODATA,
    ErrorClass.UNKNOWN: errno.EIO,
    ErrorClass.SPACE: errno.ENOSPC,
    ErrorClass.RESERVATION: errno.EBADE,
    ErrorClass.PERMANENT: errno.EREMOTEIO,
}
REPORTED = {
    ErrorClass.MEDIUM: {Direction.READ: "03/11/00", Direction.WRITE: "03/0C/00"},
    ErrorClass.SPACE: dict.fromkeys(Direction, "07/27/07"),
    ErrorClass.PERMANENT: dict.fromkeys(Direction, "04/44/00"),
}
PATH = "02/04/03"
NEVER_HELD = (ErrorClass.RESERVATION, ErrorClass.PERMANENT)
Row = tuple[Direction, ErrorClass, Fallback, str]
ROWS: list[Row] = [
    row
    for row in product(Direction, ErrorClass, Fallback, ("writethrough", "writeback"))
    if (row[0], row[2]) != (Direction.READ, Fallback.READONLY)  # which policy refuses
]


@pytest.mark.parametrize(
    ("side", "group", "fallback", "cache"),
    ROWS,
    ids=["-".join([row[0].value, row[1].value, row[2].value, row[3]]) for row in ROWS],
)
def test_held_and_then_fallen_back(side: Direction, group: ErrorClass, fallback: Fallback, cache: str) -> None:
    assert classify(ERRORS[group]) is group
    asyncio.run(story(side, group, fallback, cache))


async def story(side: Direction, group: ErrorClass, fallback: Fallback, cache: str) -> None:
    policy = {"classes.medium.attempts": "0", "allow_data_loss": "true"}
    async with served(cache, policy) as rig:
        rig.storage.medium[:BLOCK] = b"before".ljust(BLOCK, b"\0")
        if group not in NEVER_HELD:
            await held_and_back(rig, side, group)
        words = {f"{side.value}__fallback": fallback.value, f"{side.value}__classes__medium__fallback": fallback.value}
        await rig.policy(retry="false", **words)
        await fallen_back(rig, side, group, fallback)


def ask(rig: Rig, side: Direction, text: bytes) -> SimulatedCommand:
    return rig.read(0) if side is Direction.READ else rig.write(0, text)


def there(rig: Rig, text: bytes) -> bool:
    return rig.storage.at(0).rstrip(b"\0") == text


async def held_and_back(rig: Rig, side: Direction, group: ErrorClass) -> None:
    rig.storage.fail(ERRORS[group])
    command = ask(rig, side, b"held")
    await rig.held(1)
    assert command.status is None
    assert there(rig, b"before")
    rig.storage.errors.clear()
    rig.device.kick()
    assert await rig.answer(command) == "GOOD"
    if side is Direction.READ:
        assert command.data.rstrip(b"\0") == b"before"
    else:
        assert there(rig, b"held")
    await whole(rig, group)


async def whole(rig: Rig, group: ErrorClass) -> None:
    """Everything works, and the LUN says so."""
    rig.device.kick()
    if group is ErrorClass.GONE:  # while it is opened again there is nothing to read from
        await rig.online()
    for each in Direction:
        assert await rig.answer(ask(rig, each, b"before")) == "GOOD"
    await rig.online()
    assert there(rig, b"before")


async def fallen_back(rig: Rig, side: Direction, group: ErrorClass, fallback: Fallback) -> None:
    other = Direction.WRITE if side is Direction.READ else Direction.READ
    stops = fallback is Fallback.STOP or (fallback is Fallback.ENOSPC and group is ErrorClass.SPACE)
    report = REPORTED.get(group, {}).get(side, PATH)
    rig.storage.fail(ERRORS[group])
    command = ask(rig, side, b"fallen")
    if group is ErrorClass.RESERVATION:
        assert await rig.answer(command) == "RESERVATION CONFLICT"
        rig.storage.errors.clear()
    elif stops:
        await rig.held(1)
        assert rig.state(side) == "stopped"
        rig.storage.errors.clear()
        rig.device.kick()
        second = ask(rig, side, b"after")
        await rig.held(2)
        assert (command.status, second.status) == (None, None), "stop holds until a person resumes"
        rig.device.resume()
        assert await rig.answer(command) == "GOOD"
        assert await rig.answer(second) == "GOOD"
        assert there(rig, b"before" if side is Direction.READ else b"after")
    elif fallback is Fallback.IGNORE:
        assert await rig.answer(command) == "GOOD"
        assert not any(command.data), "reads are zero-filled"
        rig.storage.errors.clear()
    elif fallback in (Fallback.READONLY, Fallback.OFFLINE):
        refusal = "07/27/00" if fallback is Fallback.READONLY else PATH
        assert await rig.answer(command) == refusal
        rig.storage.errors.clear()
        rig.device.kick()
        assert await rig.answer(ask(rig, side, b"after")) == refusal, "refused untried until a person resumes"
        if group is not ErrorClass.GONE:
            assert await rig.answer(ask(rig, other, b"x")) == ("GOOD" if fallback is Fallback.READONLY else PATH)
        rig.device.resume()
    else:
        assert await rig.answer(command) == ("BUSY" if fallback is Fallback.BUSY else report)
        rig.storage.errors.clear()
    if not stops:
        assert there(rig, b"before"), "what was not acknowledged, or not done, is not there"
    await whole(rig, group)
