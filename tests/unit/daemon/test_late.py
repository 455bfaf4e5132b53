"""Task management that is answered late: it makes nobody else wait, and no login, and no end of the daemon."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tcmu_retry.core.initiators import FOR_EVER, Profile
from tcmu_retry.tcmu.simulated import SimulatedCommand
from tests.unit.daemon.rig import Rig, served, until

HOUR = 3600.0
PATIENT = Profile("patient", FOR_EVER, None, "", tried=0.0, abort_late=HOUR, reset_late=HOUR, prompt=60.0)
QUICK = Profile("quick", FOR_EVER, None, "", tried=0.0, abort_late=0.2)


@asynccontextmanager
async def aborted(rig: Rig) -> AsyncIterator[SimulatedCommand]:
    """A held write that task management has named."""
    rig.storage.fail(errno.EIO)
    command = rig.write(0, b"held")
    await rig.held(1)
    rig.kernel.abort([command])
    await until(lambda: [each.waits_for for each in rig.device.held()] == ["abort"], "it waits for its answer alone")
    yield command


def test_it_is_seen_among_what_is_held_and_answered_in_its_time() -> None:
    async def story() -> None:
        async with served(initiator=QUICK) as rig, aborted(rig) as command:
            [held] = rig.device.held()
            assert held.next_in is not None
            assert 0 <= held.next_in <= 0.2
            assert rig.device.status().held == 1
            assert not rig.device.settled
            assert await rig.answer(command) == "TASK ABORTED"

    asyncio.run(story())


@pytest.mark.parametrize("how", ["kick", "release", "fail", "resize", "login", "nothing"])
def test_whatever_a_person_or_a_login_wants_ends_it(how: str) -> None:
    """`nothing`: the daemon's own end, by `served`."""

    async def story() -> None:
        async with served(initiator=PATIENT) as rig, aborted(rig) as command:
            match how:
                case "kick" | "release":
                    assert getattr(rig.device, how)() == 1
                case "fail":
                    assert rig.device.fail([rig.device.held()[0].serial]) == 1
                case "resize":
                    await rig.device.resize(rig.device.lun.size // 2)
                    assert rig.device.status().held == 1
                    rig.device.kick()
                case "login":
                    rig.device.login_waits("192.0.2.1:3260")
            if how != "nothing":
                assert await rig.answer(command) == "TASK ABORTED"
        assert await rig.answer(command) == "TASK ABORTED"

    asyncio.run(story())


def test_after_a_login_that_waited_aborts_are_answered_at_once() -> None:
    """Maybe the initiator had lost its patience with the answer."""

    async def story() -> None:
        async with served(initiator=PATIENT) as rig, aborted(rig) as command:
            rig.device.login_waits("192.0.2.1:3260")
            assert await rig.answer(command) == "TASK ABORTED"
            again = rig.write(0, b"held")
            await rig.held(1)
            rig.kernel.abort([again])
            assert await rig.answer(again) == "TASK ABORTED"

    asyncio.run(story())


def test_where_somebody_else_would_wait_it_is_answered_at_once() -> None:
    """The session's other LUNs, or another initiator's reset; looked at each time."""

    async def story() -> None:
        async with served(initiator=PATIENT) as rig:
            rig.sharers = "iqn.a has 2 LUNs"
            rig.storage.fail(errno.EIO)
            for _ in range(2):
                command = rig.write(0, b"held")
                await rig.held(1)
                rig.kernel.abort([command])
                assert await rig.answer(command) == "TASK ABORTED"
            [link] = [link for link in await rig.device.diagnose() if link.where == "initiator"]
            assert (link.lasts, "iqn.a has 2 LUNs" in link.setting) == (60.0, True)
            rig.sharers = ""
            async with aborted(rig):
                await asyncio.sleep(0)
                assert rig.device.status().held == 1

    asyncio.run(story())
