"""Commands that a careless retry would falsify: partial effects, own effects, order, owners that changed meanwhile.

From an initiator's CDB to the medium, the kernel simulated. What the real one does is in `tests/vm/test_hazards.py`.
"""

from __future__ import annotations

import asyncio
import errno
import struct
import threading
from collections.abc import Awaitable, Callable

import pytest

from tcmu_retry.core import keeper
from tcmu_retry.daemon.api import ApiError
from tcmu_retry.scsi.request import Direction
from tcmu_retry.tcmu.simulated import PREEMPT_AND_ABORT
from tests.unit.daemon.rig import BLOCK, Rig, served, until

SYNCHRONIZE = bytes((0x35,)).ljust(10, b"\0")
CACHES = pytest.mark.parametrize("cache", ["writethrough", "writeback"])
OLD, NEW, NEWER = (letter * BLOCK for letter in (b"o", b"n", b"N"))


def compare_and_write(lba: int) -> bytes:
    return struct.pack(">BxQ3xBxx", 0x89, lba, 1)


def write_same(lba: int, count: int) -> bytes:
    return struct.pack(">BxIxHx", 0x41, lba, count)


def unmap(*extents: tuple[int, int]) -> tuple[bytes, bytes]:
    """CDB and parameter list."""
    descriptors = b"".join(struct.pack(">QI4x", *extent) for extent in extents)
    data = struct.pack(">HH4x", len(descriptors) + 6, len(descriptors)) + descriptors
    return struct.pack(">B6xHx", 0x42, len(data)), data


def write_and_verify(lba: int) -> bytes:
    return struct.pack(">BBIxHx", 0x2E, 0x02, lba, 1)  # BYTCHK 01b: the medium against the data


def run(story: Callable[[Rig], Awaitable[None]], cache: str = "writethrough") -> None:
    async def told() -> None:
        async with served(cache) as rig:
            rig.storage.medium[:] = OLD * (len(rig.storage.medium) // BLOCK)
            rig.storage.stable = bytes(rig.storage.medium)
            await story(rig)

    asyncio.run(told())


async def back(rig: Rig) -> None:
    rig.storage.errors.clear()
    rig.device.kick()


# ---- COMPARE AND WRITE


@CACHES
@pytest.mark.parametrize("torn", [0, 100, BLOCK])
def test_compare_and_write_does_not_trip_over_its_own_effect(cache: str, torn: int) -> None:
    """Compare well    write fails, having left none, some or all of its data    held    back: written, not compared

    Compared again it would find its own data and answer MISCOMPARE for what was done: a lock that nobody holds.
    """

    async def story(rig: Rig) -> None:
        rig.storage.errors["write"], rig.storage.torn = errno.EIO, torn
        command = rig.kernel.submit(compare_and_write(4), OLD + NEW)
        await rig.held(1)
        assert rig.storage.at(4) == NEW[:torn] + OLD[torn:]
        assert command.status is None
        await back(rig)
        assert await rig.answer(command) == "GOOD"
        assert rig.storage.at(4) == NEW
        assert rig.storage.calls.count("read") == 1

    run(story, cache)


@CACHES
def test_a_compare_that_failed_compares_again(cache: str) -> None:
    """Its read failed: nothing was decided. Back, another's data is there: MISCOMPARE, and nothing written."""

    async def story(rig: Rig) -> None:
        rig.storage.errors["read"] = errno.EIO
        command = rig.kernel.submit(compare_and_write(4), OLD + NEW)
        await rig.held(1)
        assert rig.state(Direction.WRITE) == "retrying", "it belongs to the writes, whatever phase failed"
        rig.storage.medium[4 * BLOCK : 5 * BLOCK] = NEWER
        await back(rig)
        assert await rig.answer(command) == "0E/1D/00"
        assert rig.storage.at(4) == NEWER

    run(story, cache)


def test_nobody_writes_between_compare_and_write() -> None:
    """The write phase is held; a write and another COMPARE AND WRITE of the block wait behind it, in their order."""

    async def story(rig: Rig) -> None:
        rig.storage.errors["write"] = errno.EIO
        first = rig.kernel.submit(compare_and_write(4), OLD + NEW)
        await rig.held(1)
        second = rig.kernel.submit(compare_and_write(4), OLD + NEWER)
        third = rig.write(4, b"third")
        await rig.held(3)
        await back(rig)
        assert await rig.answer(first) == "GOOD"
        assert await rig.answer(second) == "0E/1D/00", "the first one has the lock"
        assert await rig.answer(third) == "GOOD"
        assert rig.storage.at(4).startswith(b"third")

    run(story)


# ---- partial effects


@CACHES
@pytest.mark.parametrize("torn", [0, 3 * BLOCK])
def test_a_partial_write_same_starts_again_and_nobody_sees_half_of_it(cache: str, torn: int) -> None:
    """Fails after 3 of 16 blocks    a read of its range waits    back: all 16, and the read finds nothing else."""

    async def story(rig: Rig) -> None:
        rig.storage.errors["write"], rig.storage.torn = errno.EIO, torn
        command = rig.kernel.submit(write_same(8, 16), NEW)
        await rig.held(1)
        assert rig.storage.at(8, 16) == NEW * (torn // BLOCK) + OLD * (16 - torn // BLOCK)
        reading = rig.read(8, 16)
        await rig.held(2)
        await back(rig)
        assert await rig.answer(command) == "GOOD"
        assert await rig.answer(reading) == "GOOD"
        assert reading.data == NEW * 16
        assert rig.storage.at(7) + rig.storage.at(24) == OLD * 2

    run(story, cache)


@CACHES
def test_a_partial_unmap_starts_again(cache: str) -> None:
    """The second of three extents fails    held    back: all three are discarded, the first one for the second time."""

    async def story(rig: Rig) -> None:
        rig.storage.errors["discard"], rig.storage.spared["discard"] = errno.EIO, 1
        command = rig.kernel.submit(*unmap((8, 2), (20, 2), (30, 2)))
        await rig.held(1)
        assert rig.storage.at(8, 2) == bytes(2 * BLOCK)
        assert rig.storage.at(20, 2) == OLD * 2
        await back(rig)
        assert await rig.answer(command) == "GOOD"
        assert [rig.storage.at(lba, 2) for lba in (8, 20, 30)] == [bytes(2 * BLOCK)] * 3
        assert rig.storage.calls.count("discard") == 5

    run(story, cache)


@CACHES
def test_a_write_and_verify_that_could_not_be_verified_is_written_again(cache: str) -> None:
    """Written; the medium cannot be read    held, not acknowledged    back: written and verified from the start."""

    async def story(rig: Rig) -> None:
        rig.storage.errors["read"] = errno.EIO
        command = rig.kernel.submit(write_and_verify(4), NEW)
        await rig.held(1)
        assert rig.state(Direction.WRITE) == "retrying"
        await back(rig)
        assert await rig.answer(command) == "GOOD"
        assert [name for name in rig.storage.calls if name in ("read", "write")] == ["write", "read"] * 2
        rig.storage.lose()
        assert rig.storage.at(4) == NEW, "what was verified is the medium, not a cache"

    run(story, cache)


# ---- flush truth


def test_a_flush_says_good_only_when_all_that_was_acknowledged_is_stable() -> None:
    """Written, GOOD, in the cache    the flush fails, and the cache is lost with it    held    back: written again."""

    async def story(rig: Rig) -> None:
        assert await rig.answer(rig.write(4, NEW)) == "GOOD"
        rig.storage.errors["flush"] = errno.EIO
        flush = rig.kernel.submit(SYNCHRONIZE)
        await rig.held(1)
        rig.storage.lose()
        assert rig.storage.at(4) == OLD
        await back(rig)
        assert await rig.answer(flush) == "GOOD"
        rig.storage.lose()
        assert rig.storage.at(4) == NEW

    run(story, "writeback")


async def read_after_a_loss(rig: Rig) -> bytes:
    """Written, GOOD    the device goes, its cache with it    another one comes: what a read finds there."""
    assert await rig.answer(rig.write(4, NEW)) == "GOOD"
    rig.storage.fail(errno.ENODEV)
    reading = rig.read(4)
    await rig.held(1)
    rig.storage.lose()
    await back(rig)
    assert await rig.answer(reading) == "GOOD"
    return reading.data


def test_storage_opened_again_without_its_cache_has_all_that_was_acknowledged() -> None:
    async def story(rig: Rig) -> None:
        assert await read_after_a_loss(rig) == NEW

    run(story, "writeback")


def test_without_the_replay_log_it_would_be_missing() -> None:
    """The control: the same volatile storage, and nothing that remembers."""

    async def story(rig: Rig) -> None:
        rig.storage.write_back = True
        assert await read_after_a_loss(rig) == OLD

    run(story, "writethrough")


# ---- another owner: PREEMPT AND ABORT reaches us as task management 128, with the preempted initiator's commands


def test_what_a_preempted_initiator_has_held_is_never_written() -> None:
    """Three held, one of the new owner's    PREEMPT AND ABORT names two: gone at once    back: only the third."""

    async def story(rig: Rig) -> None:
        rig.storage.fail(errno.EIO)
        first, second, own = rig.write(4, NEW), rig.write(5, NEW), rig.write(6, NEWER)
        await rig.held(3)
        rig.kernel.abort([first, second], PREEMPT_AND_ABORT)
        assert [await rig.answer(command) for command in (first, second)] == ["TASK ABORTED"] * 2
        await rig.held(1)
        await back(rig)
        assert await rig.answer(own) == "GOOD"
        assert rig.storage.at(4, 3) == OLD * 2 + NEWER

    run(story)


def test_what_a_preempted_initiator_has_running_cannot_land_over_the_new_owners_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write hangs in the storage    PREEMPT AND ABORT: answered, its buffer kept, its range fenced
    the new owner writes the same block: it waits    the old I/O returns    the new owner's data stands
    """
    monkeypatch.setattr(keeper, "ABORT_GRACE", 0.0)

    async def story(rig: Rig) -> None:
        let_go = rig.storage.hang["write"] = threading.Event()
        old = rig.write(4, NEW)
        await until(lambda: "write" in rig.storage.calls, "the old write")
        rig.kernel.abort([old], PREEMPT_AND_ABORT)
        assert await rig.answer(old) == "TASK ABORTED"
        assert len(rig.kernel.kept_ids) == 1
        own = rig.write(4, NEWER)
        await rig.held(1)
        assert rig.storage.calls.count("write") == 1
        let_go.set()
        assert await rig.answer(own) == "GOOD"
        assert rig.storage.at(4) == NEWER
        await until(lambda: not rig.kernel.kept_ids, "the kept buffer's return")

    run(story)


def test_what_was_released_while_it_ran_cannot_land_over_what_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write hangs in the storage, and nothing is held    release: BUSY, its buffer kept, its range fenced
    the initiator sends it again, with newer data: it waits    the old I/O returns    the newer data stands
    """
    monkeypatch.setattr(keeper, "ABORT_GRACE", 0.0)

    async def story(rig: Rig) -> None:
        let_go = rig.storage.hang["write"] = threading.Event()
        old = rig.write(4, NEW)
        await until(lambda: "write" in rig.storage.calls, "the old write")
        rig.device.release()
        assert await rig.answer(old) == "BUSY"
        assert len(rig.kernel.kept_ids) == 1
        again = rig.write(4, NEWER)
        await rig.held(1)
        assert rig.storage.calls.count("write") == 1
        let_go.set()
        assert await rig.answer(again) == "GOOD"
        assert rig.storage.at(4) == NEWER

    run(story)


def test_a_conflict_that_the_storage_itself_reports_is_passed_on() -> None:
    """EBADE, the block layer's RESERVATION CONFLICT: somebody else's storage, and no outage."""

    async def story(rig: Rig) -> None:
        rig.storage.errors["write"] = errno.EBADE
        assert await rig.answer(rig.write(4, NEW)) == "RESERVATION CONFLICT"
        assert rig.state(Direction.WRITE) == "online"

    run(story)


# ---- a person's word


def test_a_command_that_is_out_for_another_try_can_be_named_too() -> None:
    """Held; tried again, and the try hangs    fail, by its number: it is none of "no such command"
    the try returns with an error: that is the answer, and no further try
    """

    async def story(rig: Rig) -> None:
        rig.storage.fail(errno.EIO)
        command = rig.write(4, NEW)
        await rig.held(1)
        [held] = rig.device.held()
        let_go = rig.storage.hang["write"] = threading.Event()
        assert rig.device.kick([held.serial]) == 1
        await rig.held(0)
        assert rig.device.fail([held.serial]) == 1
        assert rig.device.kick([held.serial]) == 0, "it is just being tried"
        assert command.status is None
        let_go.set()
        assert await rig.answer(command) == "02/04/03"
        with pytest.raises(ApiError, match="holds no command"):
            rig.device.fail([held.serial])

    run(story)
