"""A daemon that is gone without a word, and the next one on the same ring: nobody lost anything, nobody waits anew."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from tcmu_retry.backends.base import BackendError
from tcmu_retry.core import events
from tcmu_retry.daemon import device, takeover
from tcmu_retry.daemon.wishes import Wishes
from tcmu_retry.scsi.designators import of_unit
from tcmu_retry.scsi.disk import DiskIdentity
from tcmu_retry.scsi.request import Direction, Status
from tcmu_retry.tcmu.journal import Journal
from tcmu_retry.tcmu.own import drop_own, open_own, read_own, write_own
from tcmu_retry.tcmu.ring import Ring
from tcmu_retry.tcmu.simulated import ABORT_TASK, LUN_RESET, PREEMPT_AND_ABORT, SimulatedChannel, SimulatedKernel
from tcmu_retry.tcmu.uio import UioDevice
from tests.unit.daemon.rig import BLOCK, Memory, Rig, served, until
from tests.unit.scsi.test_copying import parameters, segment, target


@pytest.fixture(autouse=True, params=["reference", "native"])
def pump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCMU_RETRY_PUMP", request.param)
    monkeypatch.setattr(device, "HAND_OVER_SECONDS", 0.05)


class Succession:
    """Daemons of one LUN, one after the other; the medium is the same for all."""

    def __init__(self, cache: str = "writethrough") -> None:
        self.kernel = SimulatedKernel()
        self.file = os.memfd_create("journal", os.MFD_CLOEXEC)
        self.wishes = Wishes()
        self.rig = Rig(cache, kernel=self.kernel, wishes=self.wishes)
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

    def open_anew(self) -> SimulatedChannel:
        return self.kernel.open_anew()

    def block(self, blocked: bool) -> None:
        self.kernel.block(blocked)

    def exists(self) -> bool:
        return self.kernel.exists()

    async def begin(self) -> Rig:
        await self.rig.device.attach(self, fresh=True)
        return self.rig

    async def leave(self) -> None:
        """It answers nothing any more."""
        await self.rig.device.detach()
        self.first = False

    async def hand_over(self) -> None:
        await self.rig.device.hand_over()
        self.first = False

    async def next(self, locked: bool = False, **policy: str) -> Rig:
        """locked: I/O of the one before is still out, and with it the lock of the storage."""
        storage = self.rig.storage
        if self.first:
            await self.leave()
        self.rig = Rig(kernel=self.kernel, policy=policy, wishes=self.wishes)
        self.rig.storage = storage
        if locked:
            self.rig.errors["open"] = BackendError("it is locked", errno.EBUSY)
        await self.rig.device.attach(self, fresh=False)
        return self.rig

    async def end(self) -> None:
        await self.rig.device.withdraw()
        await self.rig.device.detach()
        os.close(self.file)
        assert not self.kernel.broken
        assert not self.kernel.open_ids


def lets_itself_be_opened(kernel: SimulatedKernel) -> bool:
    try:
        kernel.open().close()
    except OSError:
        return False
    return True


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
async def test_while_the_former_one_s_io_may_be_out_nothing_runs_and_no_buffer_is_given_back(
    succession: Succession,
) -> None:
    """Its lock is not free: one is aborted meanwhile, one released, a third waits until the lock is had."""
    rig = await succession.begin()
    rig.storage.fail(errno.EIO)
    one, two = rig.write(0, b"one"), rig.write(1, b"two")
    await rig.held(2)
    await succession.leave()
    succession.kernel.abort([one], ABORT_TASK)
    rig.storage.errors.clear()
    rig.storage.calls.clear()
    rig = await succession.next(locked=True)
    assert await rig.answer(one) == "TASK ABORTED"
    await rig.held(1)
    assert succession.kernel.kept_ids == {1}
    [event] = [notice for notice in rig.notices if notice.code == events.ADOPTED]
    assert (event.fields["count"], event.fields["aborted"]) == (1, 1)
    rig.device.kick()
    await rig.held(1)
    rig.device.login_waits("")
    assert await rig.answer(two) == "BUSY"
    assert succession.kernel.kept_ids == {1, 2}
    three = rig.write(2, b"three")
    await rig.held(1)
    assert "write" not in rig.storage.calls
    rig.errors.clear()
    rig.device.kick()
    assert await rig.answer(three) == "GOOD"
    await until(lambda: not succession.kernel.kept_ids, "buffers given back")
    assert rig.storage.at(0, 2) == bytes(2 * BLOCK)


@pytest.mark.parametrize(("destination", "again"), [(40, True), (2, False)])
def test_a_copy_begins_anew_unless_it_writes_over_what_it_reads(destination: int, again: bool) -> None:
    @story
    async def play(succession: Succession) -> None:
        rig = await succession.begin()
        rig.storage.medium[: 4 * BLOCK] = b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK + b"d" * BLOCK
        rig.storage.errors["write"] = errno.EIO
        data = parameters([target(name=of_unit(DiskIdentity("serial", "vm1"))[0])], [segment(0, destination, 4)])
        cdb = bytes([0x83]).ljust(10, b"\0") + len(data).to_bytes(4, "big") + bytes(2)
        command = succession.kernel.submit(cdb, data)
        await rig.held(1)
        rig = await succession.next()
        rig.storage.errors.clear()
        rig.device.kick()
        assert await rig.answer(command) == ("GOOD" if again else "0A/00/00")
        if again:
            assert rig.storage.at(destination, 4) == rig.storage.at(0, 4)

    play()


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


# ---- handed over in order


@story
async def test_a_daemon_that_hands_over_answers_nothing_and_the_next_one_goes_on(succession: Succession) -> None:
    """Two writes are held and a third comes while nobody is there; the pause is told; back: all GOOD, in order."""
    rig = await succession.begin()
    rig.storage.fail(errno.EIO)
    one = rig.write(0, b"one")
    await rig.held(1)
    two = rig.write(0, b"two")
    await rig.held(2)
    await succession.hand_over()
    three = rig.write(0, b"three")
    assert [command.status for command in (one, two, three)] == [None] * 3
    rig = await succession.next()
    [told] = [notice.fields for notice in rig.notices if notice.code == events.HANDED_OVER]
    assert (told["count"], told["failed"]) == (2, 1)
    assert isinstance(told["seconds"], float)
    assert 0 < told["seconds"] < 10
    await rig.held(3)
    rig.storage.errors.clear()
    rig.device.kick()
    assert [await rig.answer(command) for command in (one, two, three)] == ["GOOD"] * 3
    assert rig.storage.at(0).startswith(b"three")
    await succession.leave()
    rig = await succession.next()
    assert rig.notices == [], "killed after that: no pause is known"


@story
async def test_what_runs_at_a_hand_over_ends_or_is_run_again(succession: Succession) -> None:
    """A write hangs in the storage, and the device stays claimed until that I/O is back; then it is written again."""
    rig = await succession.begin()
    let_go = rig.storage.hang["write"] = threading.Event()
    one = rig.write(0, b"one")
    await until(lambda: "write" in rig.storage.calls, "the write out")
    await succession.hand_over()
    with pytest.raises(OSError, match="busy"):
        await succession.next()
    assert one.status is None
    let_go.set()
    await until(lambda: lets_itself_be_opened(succession.kernel), "the end of that I/O")
    rig = await succession.next()
    assert await rig.answer(one) == "GOOD"
    assert rig.storage.calls.count("write") == 2
    assert rig.storage.at(0).startswith(b"one")


def test_a_hand_over_does_not_wait_for_a_flush_for_the_log_outlives_the_daemon_too() -> None:
    async def play() -> None:
        succession = Succession("writeback")
        rig = await succession.begin()
        assert await rig.answer(rig.write(0, b"one")) == "GOOD"
        await succession.hand_over()
        assert rig.storage.calls == ["write"]
        await succession.next()
        await succession.end()

    asyncio.run(play())


@pytest.mark.parametrize("way", ["stop", "hand_over"])
def test_the_buffer_of_io_that_outlives_its_daemon_is_nobody_else_s(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read hangs and is answered    the daemon ends    the LUN answers BUSY, for the kernel has the buffer back.

    What the storage still reads into it would else be found in a new write.
    """
    monkeypatch.setattr(device, "DRAIN_SECONDS", 0.05)

    async def play() -> None:
        succession = Succession()
        rig = await succession.begin()
        let_go = rig.storage.hang["read"] = threading.Event()
        one = rig.read(0)
        await until(lambda: "read" in rig.storage.calls, "the read out")
        if way == "stop":
            await rig.device.stop()
            assert await rig.answer(one) == "BUSY"
        else:
            succession.kernel.abort([one], PREEMPT_AND_ABORT)  # one of those that are answered at once
            assert await rig.answer(one) == "TASK ABORTED"
            await succession.hand_over()
        assert succession.kernel.kept_ids == {1}
        two = rig.write(1, b"two")
        assert two.status == Status.BUSY
        let_go.set()
        await until(lambda: lets_itself_be_opened(succession.kernel), "the end of that I/O")
        os.close(succession.file)

    asyncio.run(play())


@story
async def test_a_daemon_that_stops_with_no_io_out_leaves_what_comes_to_the_next_one(succession: Succession) -> None:
    rig = await succession.begin()
    assert await rig.answer(rig.write(0, b"one")) == "GOOD"
    await rig.device.stop()
    two = rig.write(1, b"two")
    assert two.status is None
    succession.first = False
    rig = await succession.next()
    assert await rig.answer(two) == "GOOD"


@story
async def test_without_a_journal_there_is_nothing_to_hand_over_and_all_is_answered_busy(
    succession: Succession,
) -> None:
    rig = await succession.begin()
    rig.storage.fail(errno.EIO)
    one = rig.write(0, b"one")
    await rig.held(1)
    assert rig.device._journal is not None
    rig.device._journal.lose(OSError(errno.ENOSPC, "No space left on device"))
    await rig.device.hand_over()
    assert await rig.answer(one) == "BUSY"


@story
async def test_what_a_person_asked_of_a_lun_outlives_the_daemon_that_was_asked(succession: Succession) -> None:
    """A policy is changed and not persisted, the LUN held; a new daemon: still so; resumed there, the write ends."""
    rig = await succession.begin()
    await rig.policy(write__retry_timeout="2m")
    rig.storage.fail(errno.EIO)
    one = rig.write(0, b"one")
    await rig.held(1)
    rig.device.hold("switch firmware", 600.0)
    await succession.hand_over()
    rig.storage.errors.clear()
    rig.storage.calls.clear()
    rig = await succession.next()
    await rig.held(1)
    status = rig.device.status()
    assert status.hold_reason == "switch firmware"
    assert status.hold_expires_in is not None
    assert 500 < status.hold_expires_in < 600
    assert rig.storage.calls == []
    assert rig.device.policy_changed == {"write.retry_timeout": "2m"}
    rig.device.resume()
    assert await rig.answer(one) == "GOOD"
    await succession.hand_over()
    rig = await succession.next()
    assert rig.device.status().hold_reason == ""


@story
async def test_what_a_person_asked_ends_with_a_daemon_that_stops_for_good(succession: Succession) -> None:
    rig = await succession.begin()
    await rig.policy(write__retry_timeout="2m")
    rig.device.hold("switch firmware")
    await rig.device.withdraw()
    await succession.leave()
    rig = await succession.next()
    assert rig.device.status().hold_reason == ""
    assert rig.device.policy_changed == {}


# ---- which way a ring is taken


class Machine:
    """A LUN's uio device, and what is asked of LIO's tree about it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.kernel = SimulatedKernel()
        self.uio = UioDevice("uio0", 1, "vm1", "retry", "vm1")
        self.asked: list[str] = []
        self.refused: list[tuple[int, str]] = []
        self.directory = root / "run"
        (root / "uio0").mkdir()
        (root / "boot_id").write_text("a boot\n")
        patch.setattr(takeover, "SYS", root)
        patch.setattr(takeover, "BOOT_ID", root / "boot_id")
        patch.setattr(takeover, "UioChannel", lambda uio: self.kernel.open())
        patch.setattr(takeover, "open_own", partial(open_own, directory=self.directory))
        patch.setattr(takeover, "drop_own", partial(drop_own, directory=self.directory))
        patch.setattr(takeover, "read_own", partial(read_own, directory=self.directory))
        patch.setattr(takeover, "write_own", partial(write_own, directory=self.directory))
        patch.setattr(takeover.configfs, "block", lambda uio, blocked: self.asked.append(f"block {blocked:d}"))
        patch.setattr(takeover.configfs, "reset_ring", self.reset)

    def reset(self, uio: UioDevice) -> None:
        self.asked.append("reset")

    def open(self, fresh: bool = False) -> SimulatedChannel:
        channel = takeover.open_channel(self.uio, fresh, lambda count, why: self.refused.append((count, why)))
        assert isinstance(channel, SimulatedChannel)
        return channel

    def die(self, channel: SimulatedChannel, fetch: bool = True) -> None:
        if fetch:
            ring = Ring(channel.memory, channel.journal)
            ring.fetch()
            ring.close()
        if channel.journal is not None:
            channel.journal.close()
        channel.close()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_what_a_journal_proves_is_taken_up_and_nothing_is_reset(machine: Machine) -> None:
    channel = machine.open(fresh=True)
    machine.kernel.submit(bytes(6))
    machine.die(channel)
    channel = machine.open()
    assert channel.journal is not None
    assert [left.entry.id for left in channel.journal.left] == [1]
    assert machine.asked == []
    assert machine.refused == []
    machine.die(channel, fetch=False)


@pytest.mark.parametrize("what", ["drop", "another boot", "another device", "a later version", "plant"])
def test_what_no_journal_proves_is_answered_busy_and_said_with_counts(
    machine: Machine, what: str, tmp_path: Path
) -> None:
    channel = machine.open(fresh=True)
    machine.kernel.submit(bytes(6))
    machine.kernel.submit(bytes(6))
    machine.die(channel)
    match what:
        case "drop":
            takeover.forget(machine.uio)
        case "another boot":
            (tmp_path / "boot_id").write_text("another boot\n")
        case "another device":
            (tmp_path / "uio0").rename(tmp_path / "uio1")
            (tmp_path / "uio0").mkdir()
        case "a later version":
            with (machine.directory / "uio0").open("r+b") as file:
                file.seek(8)
                file.write(b"\2")
        case "plant":
            (machine.directory / "uio0").chmod(0o666)
    channel = machine.open()
    assert machine.asked == ["block 1", "reset"]
    [(count, why)] = machine.refused
    assert count == 2
    assert what != "a later version" or "it has version 2, and this is written for version 1" in why
    if what == "plant":
        assert channel.journal is None
    else:
        assert channel.journal is not None
        assert channel.journal.left == ()
    machine.die(channel, fetch=False)


def test_a_ring_with_nothing_in_it_is_reset_in_silence(machine: Machine) -> None:
    machine.die(machine.open())
    assert machine.asked == ["block 1", "reset"]
    assert [count for count, _ in machine.refused] == [0]


def test_a_ring_that_cannot_be_reset_is_not_served(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uio: UioDevice) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(takeover.configfs, "reset_ring", refuse)
    with pytest.raises(OSError, match="Invalid"):
        machine.open()
    machine.kernel.open().close()  # nothing of it was left open


def test_without_room_for_a_journal_a_lun_is_served_without(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(journal: Journal, tail: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "begin", full)
    channel = machine.open(fresh=True)
    assert channel.journal is None
    channel.close()


def test_what_people_asked_is_believed_of_the_same_ring_only(machine: Machine, tmp_path: Path) -> None:
    takeover.open_wishes(machine.uio, fresh=True).set_policy({"write.retry_timeout": "2m"})
    found = takeover.open_wishes(machine.uio, fresh=False)
    assert found.policy == {"write.retry_timeout": "2m"}
    found.set_hold("switch firmware")
    found = takeover.open_wishes(machine.uio, fresh=False)
    assert (found.policy, found.hold) == ({"write.retry_timeout": "2m"}, "switch firmware")
    (tmp_path / "boot_id").write_text("another boot\n")
    assert takeover.open_wishes(machine.uio, fresh=False).policy == {}
    (tmp_path / "boot_id").write_text("a boot\n")
    (machine.directory / "uio0.wishes").write_bytes(b"{")
    assert takeover.open_wishes(machine.uio, fresh=False).policy == {}
    found.set_hold("again")
    assert takeover.open_wishes(machine.uio, fresh=True).hold == ""
    assert takeover.open_wishes(machine.uio, fresh=False).hold == ""


# ---- what write-back has not flushed


def test_what_a_killed_daemon_had_not_flushed_is_in_the_next_one_s_log(machine: Machine) -> None:
    storage = Memory(write_back=True)
    backend = takeover.open_log(machine.uio, fresh=True).over(storage)
    backend.write(0, [memoryview(b"a" * BLOCK)], durable=False)
    storage.lose()
    takeover.open_log(machine.uio, fresh=False).over(storage).flush()
    assert storage.stable.startswith(b"a" * BLOCK)
    assert takeover.open_log(machine.uio, fresh=False).count() == 0


def test_what_is_written_through_a_new_lun_s_log_is_in_the_next_daemon_s(machine: Machine) -> None:
    """The log is empty when the LUN gets it, and it is that one which the LUN writes to."""

    async def story() -> None:
        async with served(cache="writeback", replay=takeover.open_log(machine.uio, fresh=True)) as rig:
            assert await rig.answer(rig.write(0, b"one")) == "GOOD"
            assert takeover.open_log(machine.uio, fresh=False).count() == 1

    asyncio.run(story())


def test_where_a_log_should_be_and_is_none_a_flush_fails_however_often_the_daemon_begins(machine: Machine) -> None:
    takeover.open_log(machine.uio, fresh=True)
    takeover.forget(machine.uio, gone=True)
    for _ in range(2):
        backend = takeover.open_log(machine.uio, fresh=False).over(Memory(write_back=True))
    with pytest.raises(OSError, match="may be lost"):
        backend.flush()
    backend.flush()
    takeover.open_log(machine.uio, fresh=False).over(Memory(write_back=True)).flush()


def test_a_daemon_that_stops_in_order_leaves_nothing_unflushed() -> None:
    async def story() -> None:
        async with served(cache="writeback") as rig:
            assert await rig.answer(rig.write(0, b"one")) == "GOOD"
            assert not rig.storage.stable.startswith(b"one")
        assert rig.storage.stable.startswith(b"one")

    asyncio.run(story())
