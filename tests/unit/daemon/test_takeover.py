"""A daemon that is gone without a word, and the next one on the same ring: nobody lost anything, nobody waits anew."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
from collections.abc import Awaitable, Callable

import pytest

from tcmu_retry.core import events
from tcmu_retry.scsi.request import Direction
from tcmu_retry.tcmu.journal import Journal
from tcmu_retry.tcmu.simulated import LUN_RESET, SimulatedChannel, SimulatedKernel
from tests.unit.daemon.rig import BLOCK, Rig, until


@pytest.fixture(autouse=True, params=["reference", "native"])
def pump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCMU_RETRY_PUMP", request.param)


class Succession:
    """Daemons of one LUN, one after the other; the medium is the same for all."""

    def __init__(self) -> None:
        self.kernel = SimulatedKernel()
        self.file = os.memfd_create("journal", os.MFD_CLOEXEC)
        self.rig = Rig(kernel=self.kernel)
        self.first = True

    def open(self) -> SimulatedChannel:
        channel = self.kernel.open()
        journal = Journal(os.dup(self.file), "vm1")
        if self.first:
            journal.begin(0)
        else:
            journal.resume(channel.memory)
        channel.journal = journal
        return channel

    async def begin(self) -> Rig:
        await self.rig.device.attach(self.open, fresh=True)
        return self.rig

    async def leave(self) -> None:
        """It answers nothing any more."""
        await self.rig.device.detach()
        self.first = False

    async def next(self, **policy: str) -> Rig:
        storage = self.rig.storage
        if self.first:
            await self.leave()
        self.rig = Rig(kernel=self.kernel, policy=policy)
        self.rig.storage = storage
        await self.rig.device.attach(self.open, fresh=False)
        return self.rig

    async def end(self) -> None:
        await self.rig.device.withdraw()
        await self.rig.device.detach()
        os.close(self.file)
        assert not self.kernel.broken
        assert not self.kernel.open_ids


def story(test: Callable[[Succession], Awaitable[None]]) -> Callable[[], None]:
    """Play it and end it."""

    @functools.wraps(test)
    def play() -> None:
        async def whole() -> None:
            succession = Succession()
            await test(succession)
            await succession.end()

        asyncio.run(whole())

    del play.__wrapped__  # type: ignore[attr-defined]  # pytest would ask a fixture for its argument
    return play


@story
async def test_what_was_held_goes_on_with_its_age_and_attempts(succession: Succession) -> None:
    """A write is held (2 attempts), another waits behind it; a new daemon; the storage is back: both GOOD, in order."""
    rig = await succession.begin()
    rig.storage.fail(errno.EIO)
    one = rig.write(0, b"one")
    await rig.held(1)
    rig.device.kick()
    await until(lambda: [each.attempts for each in rig.device.held()] == [2], "a second attempt")
    began = rig.device.held()[0].age
    two = rig.write(0, b"two")
    await rig.held(2)
    rig = await succession.next()
    await until(lambda: [each.attempts for each in rig.device.held()] == [3, 0], "tried again at once")
    first, _ = rig.device.held()
    assert first.error == "EIO"
    assert first.age >= began
    [event] = [notice for notice in rig.notices if notice.code == events.ADOPTED]
    assert (event.fields["count"], event.fields["failed"]) == (2, 1)
    assert rig.state(Direction.WRITE) != "online"
    rig.storage.errors.clear()
    rig.device.kick()
    assert await rig.answer(one) == "GOOD"
    assert await rig.answer(two) == "GOOD"
    assert rig.storage.at(0).startswith(b"two")
    await rig.online()


@story
async def test_a_compare_and_write_that_had_begun_to_write_is_not_compared_again(succession: Succession) -> None:
    rig = await succession.begin()
    rig.storage.errors["write"] = errno.EIO
    rig.storage.torn = 100
    cdb = bytes([0x89, 0, *(4).to_bytes(8, "big"), 0, 0, 0, 1, 0, 0])
    command = succession.kernel.submit(cdb, bytes(BLOCK) + b"n" * BLOCK)
    await rig.held(1)
    assert rig.storage.at(4).startswith(b"n" * 100 + b"\0")
    rig = await succession.next()
    rig.storage.errors.clear()
    rig.device.kick()
    assert await rig.answer(command) == "GOOD"
    assert rig.storage.at(4) == b"n" * BLOCK


@story
async def test_task_management_that_waits_in_the_ring_comes_first(succession: Succession) -> None:
    """Held by the old daemon; aborted while nobody is there: the new one answers it and never writes."""
    rig = await succession.begin()
    rig.storage.fail(errno.EIO)
    one = rig.write(0, b"one")
    await rig.held(1)
    await succession.leave()
    succession.kernel.abort([one], LUN_RESET)
    late = rig.write(2, b"late")
    rig.storage.errors.clear()
    rig.storage.calls.clear()
    rig = await succession.next()
    assert await rig.answer(one) == "TASK ABORTED"
    assert await rig.answer(late) == "GOOD"
    assert rig.storage.calls.count("write") == 1


@story
async def test_a_lun_with_nothing_open_is_taken_up_in_silence(succession: Succession) -> None:
    rig = await succession.begin()
    assert await rig.answer(rig.write(0, b"one")) == "GOOD"
    rig = await succession.next()
    assert await rig.answer(rig.write(1, b"two")) == "GOOD"
    assert rig.notices == []
    assert await rig.answer(rig.read(0)) == "GOOD"


@story
async def test_a_time_out_goes_on_from_the_first_failure(succession: Succession) -> None:
    """The failure that an earlier daemon saw counts: with retry_timeout over, it is reported, not waited for anew."""
    rig = await succession.begin()
    rig.storage.fail(errno.EIO)
    one = rig.write(0, b"one")
    await rig.held(1)
    await until(lambda: rig.device.held()[0].age > 0.05, "an age")
    rig = await succession.next(retry_timeout="50ms")
    assert await rig.answer(one) == "02/04/03"
