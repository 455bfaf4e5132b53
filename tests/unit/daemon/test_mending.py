"""A ring that is broken: known, said, and served on where that can be."""

from __future__ import annotations

import asyncio
import errno
import functools
import struct
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tcmu_retry.backends.base import BackendError
from tcmu_retry.backends.file import open_backend
from tcmu_retry.core import events
from tcmu_retry.daemon import mending
from tcmu_retry.daemon.api import ApiError, Notice
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.records import Memory
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.scsi.request import Direction
from tcmu_retry.scsi.sense import parse
from tcmu_retry.tcmu.simulated import SimulatedChannel, SimulatedCommand, SimulatedKernel
from tests.unit.daemon.rig import BLOCK, BLOCKS, NoRecords, Rig, served, until


@pytest.fixture(autouse=True, params=["reference", "native"])
def pump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCMU_RETRY_PUMP", request.param)
    monkeypatch.setattr(mending, "AGAIN_SECONDS", 0.001)


def story(test: Callable[[Rig], Awaitable[None]]) -> Callable[[], None]:
    """Play it with a LUN whose kernel refuses what `refused` says."""

    @functools.wraps(test)
    def play() -> None:
        async def whole() -> None:
            async with served(kernel=Kernel()) as rig:
                await test(rig)

        asyncio.run(whole())

    del play.__wrapped__  # type: ignore[attr-defined]  # pytest would ask a fixture for its argument
    return play


class Kernel(SimulatedKernel):
    """refused: what emptying the ring raises."""

    refused: OSError | None = None

    def open_anew(self) -> SimulatedChannel:
        if self.refused:
            raise self.refused
        return super().open_anew()


def codes(rig: Rig) -> list[str]:
    return [notice.code for notice in rig.notices]


async def mended(rig: Rig, times: int = 1) -> None:
    await until(lambda: codes(rig).count(events.RING_MENDED) == times, "a ring in order")


@story
async def test_it_is_said_and_the_lun_is_served_on(rig: Rig) -> None:
    """GOOD    the head points nowhere: TR-042, BUSY, TR-043    GOOD again, by another pump."""
    assert await rig.answer(rig.write(0, b"one")) == "GOOD"
    rig.kernel.damage()
    await mended(rig)
    [broken] = [notice for notice in rig.notices if notice.code == events.RING_BROKEN]
    assert "its head is at 4" in broken.message
    assert rig.device.status().ring_error == ""
    assert await rig.answer(rig.write(0, b"two")) == "GOOD"
    assert rig.storage.at(0).startswith(b"two")


@story
async def test_what_was_held_is_answered_busy_once_and_never_run(rig: Rig) -> None:
    """Two writes held; the ring breaks: BUSY for both. The storage is back: neither is written, a new one is."""
    rig.storage.fail(errno.EIO)
    one, two = rig.write(0, b"one"), rig.write(1, b"two")
    await rig.held(2)
    rig.kernel.damage()
    assert [await rig.answer(one), await rig.answer(two)] == ["BUSY", "BUSY"]
    await mended(rig)
    assert rig.device.status().held == 0
    rig.storage.errors.clear()
    rig.storage.calls.clear()
    assert await rig.answer(rig.write(2, b"three")) == "GOOD"
    assert rig.storage.calls == ["write"]
    await rig.online()


@story
async def test_it_waits_for_io_that_is_out_over_its_buffers(rig: Rig) -> None:
    """A write hangs; the ring breaks: nothing is emptied, the kernel answers BUSY; it returns: served on."""
    rig.storage.hang["write"] = threading.Event()
    one = rig.write(0, b"one")
    await until(lambda: "write" in rig.storage.calls, "a write that is out")
    rig.kernel.damage()
    await until(lambda: events.RING_BROKEN in codes(rig), "a word of it")
    await until(lambda: "busy" in rig.device.status().ring_error, "what is in the way")
    assert await rig.answer(rig.write(1, b"two")) == "BUSY"
    assert one.status is None
    rig.storage.hang["write"].set()
    assert await rig.answer(one) == "BUSY"
    await mended(rig)
    assert await rig.answer(rig.write(1, b"two")) == "GOOD"


@story
async def test_what_is_in_the_way_is_shown_and_it_is_tried_again(rig: Rig) -> None:
    """The kernel refuses to empty it: one event, doctor's word; it does not refuse any more: served on."""
    assert isinstance(rig.kernel, Kernel)
    rig.kernel.refused = OSError(errno.EINVAL, "Invalid argument")
    rig.kernel.damage()
    await until(lambda: "Invalid" in rig.device.status().ring_error, "what is in the way")
    [link] = [link for link in await rig.device.diagnose() if link.where == "ring"]
    assert "its ring is broken" in link.wrong
    assert "Invalid argument" in link.wrong
    with pytest.raises(ApiError, match="the ring of vm1 is broken"):
        await rig.device.drain()
    now = rig.device.pulse()
    assert rig.device.pulse() >= now > 0, "the watchdog would end all other LUNs for this one"
    assert codes(rig).count(events.RING_BROKEN) == 1
    rig.kernel.refused = None
    await mended(rig)
    assert [link for link in await rig.device.diagnose() if link.where == "ring"] == []
    assert await rig.answer(rig.write(1, b"two")) == "GOOD"


@story
async def test_a_persons_hold_and_the_policy_outlive_it(rig: Rig) -> None:
    await rig.policy(retry_timeout="5m")
    rig.device.hold("maintenance")
    assert await rig.device._commands.quiet(5), "the gate is closed"
    one = rig.write(0, b"one")
    await rig.held(1)
    rig.kernel.damage()
    await mended(rig)
    assert await rig.answer(one) == "BUSY"
    two = rig.write(0, b"two")
    await rig.held(1)
    assert rig.device.policy.write.retry_timeout == 300
    rig.device.resume()
    assert await rig.answer(two) == "GOOD"


@story
async def test_an_outage_goes_on_after_it(rig: Rig) -> None:
    """Down by ENOLINK    broken and mended    still down: parked untried    back: GOOD."""
    rig.storage.fail(errno.ENOLINK)
    one = rig.write(0, b"one")
    await until(lambda: rig.state(Direction.WRITE) == "down", "an outage")
    rig.kernel.damage()
    assert await rig.answer(one) == "BUSY"
    await mended(rig)
    two = rig.write(0, b"two")
    await rig.held(1)
    rig.storage.errors.clear()
    rig.device.kick()
    assert await rig.answer(two) == "GOOD"
    await rig.online()


@story
async def test_a_mistake_of_our_own_in_the_pump_costs_its_lun_busy_and_nobody_else_anything(rig: Rig) -> None:
    """Left alone, its thread would be gone, and the watchdog would end the daemon with all its LUNs for it."""

    def mistaken(*arguments: object) -> None:
        raise KeyError("a mistake")

    rig.storage.fail(errno.EIO)
    held = rig.write(0, b"one")
    await rig.held(1)
    rig.device._pump._scan = mistaken  # type: ignore[attr-defined]
    late = rig.write(1, b"two")
    assert [await rig.answer(held), await rig.answer(late)] == ["BUSY", "BUSY"]
    await mended(rig)
    rig.storage.errors.clear()
    assert await rig.answer(rig.write(1, b"two")) == "GOOD"


@story
async def test_it_may_break_again_and_again(rig: Rig) -> None:
    for times in (1, 2, 3):
        rig.kernel.damage()
        await mended(rig, times)
        assert await rig.answer(rig.write(times, b"x")) == "GOOD"


def test_a_lun_that_is_gone_is_not_mended() -> None:
    """Its removal was not announced, or not heard: nobody is told of a broken ring, and it is served no more."""

    async def whole() -> None:
        rig = Rig()
        await rig.device.attach(rig.kernel, fresh=True)
        rig.kernel.remove()
        await until(lambda: rig.lost == [rig.device], "that it is gone")
        assert codes(rig) == []
        await rig.device.withdraw()
        await rig.device.detach()

    asyncio.run(asyncio.wait_for(whole(), 4))  # and nothing waited the five seconds of a drain


def test_a_lun_that_leaves_while_its_ring_is_broken_leaves_no_device_open() -> None:
    """The kernel hangs in emptying it; the LUN is withdrawn and given up; what was opened then is closed again."""
    opening, go_on = threading.Event(), threading.Event()

    class Slow(SimulatedKernel):
        def open_anew(self) -> SimulatedChannel:
            opening.set()
            go_on.wait(10)
            return super().open_anew()

    async def whole() -> None:
        rig = Rig(kernel=Slow())
        await rig.device.attach(rig.kernel, fresh=True)
        rig.kernel.damage()
        await until(opening.is_set, "the ring being emptied")
        await rig.device.withdraw()
        await rig.device.detach()
        go_on.set()

        def free() -> bool:
            try:
                rig.kernel.open().close()
            except OSError:
                return False
            return True

        await until(free, "a device that can be opened")

    asyncio.run(asyncio.wait_for(whole(), 4))


def test_io_of_an_earlier_process_keeps_a_broken_ring_as_it_is() -> None:
    """Its lock is not had: the pages may still be written to. The lock is had: emptied."""

    async def whole() -> None:
        rig = Rig()
        rig.errors["open"] = BackendError("it is locked", errno.EBUSY)
        await rig.device.attach(rig.kernel, fresh=False)
        one = rig.write(0, b"one")
        await rig.held(1)
        rig.kernel.damage()
        await until(lambda: "lock" in rig.device.status().ring_error, "what is in the way")
        assert one.status is None
        rig.errors.clear()
        assert await rig.answer(one) == "BUSY"
        await mended(rig)
        rig.device.kick()
        assert await rig.answer(rig.write(0, b"x" * BLOCK)) == "GOOD"
        await rig.device.withdraw()
        await rig.device.detach()

    asyncio.run(whole())


def test_over_a_file_whose_io_runs_in_the_loop(tmp_path: Path) -> None:
    """The native pump's own way, no worker in it: GOOD    broken and mended, again and again    GOOD, on the disk."""
    path = tmp_path / "storage"
    path.write_bytes(bytes(BLOCKS * BLOCK))

    async def whole() -> None:
        kernel = SimulatedKernel()
        notices: list[Notice] = []
        lost: list[Device] = []
        device = Device(
            Lun("vm1", lambda: "vm1", str(path), BLOCKS * BLOCK, BLOCK, "uio0", dict, dict),
            DeviceConfig(str(path)),
            lambda discards, _: Disk(DiskIdentity("vm1", "vm1"), BLOCK, BLOCKS * BLOCK, can_discard=discards),
            lambda: open_backend(str(path)),
            notices.append,
            lambda device: None,
            lost.append,
            Memory(NoRecords(tmp_path), "vm1", str(path)),
            {},
            lambda changes: None,
        )
        await device.attach(kernel, fresh=True)
        for number in range(5):
            data = bytes([number + 1]) * BLOCK * 8
            command = kernel.submit(struct.pack(">BxIxHx", 0x2A, number * 8, 8), data)
            await until(lambda asked=command: asked.status is not None, "an answer")  # type: ignore[misc]
            assert command.status == 0
            assert path.read_bytes()[number * 8 * BLOCK :].startswith(data)
            kernel.damage()
            await until(
                lambda times=number + 1: [each.code for each in notices].count(events.RING_MENDED) == times,  # type: ignore[misc]
                "a ring in order",
            )
        await device.withdraw()
        await device.detach()
        assert not lost
        assert not kernel.open_ids

    asyncio.run(whole())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "write", "read", "fail", "heal", "damage", "abort", "hold", "resume", "kick", "turn"]
        ),
        st.integers(0, 7),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_comes_with_it_everything_is_answered_once(steps: list[tuple[str, int]]) -> None:
    """Twice would break the simulated ring, and an answer too few leave a command without a status."""

    async def whole() -> None:
        sent: list[SimulatedCommand] = []
        async with served() as rig:
            for what, number in steps:
                match what:
                    case "write":
                        sent.append(rig.write(number, b"data"))
                    case "read":
                        sent.append(rig.read(number))
                    case "fail":
                        rig.storage.fail(errno.ENOLINK if number % 2 else errno.EIO)
                    case "heal":
                        rig.storage.errors.clear()
                    case "damage" if not rig.device.status().ring_error:
                        rig.kernel.damage()
                    case "abort" if not rig.device.status().ring_error:
                        rig.kernel.abort(sent[-number - 1 :: 2])
                    case "hold":
                        rig.device.hold("a test")
                    case "resume":
                        rig.device.resume()
                    case "kick":
                        rig.device.kick()
                    case "turn":
                        await asyncio.sleep(0.001 * number)
            rig.storage.errors.clear()
            rig.device.resume()
            await until(lambda: not rig.device.status().ring_error, "a ring in order")

            def answered() -> bool:
                rig.device.kick()
                return all(command.status is not None for command in sent)

            await until(answered, "all answers")
            for command in sent:
                # 02/08/00 is the kernel's own word: what it overwrote at a head that is nowhere was a completion.
                assert command.status in (0, 8, 0x40) or str(parse(command.sense)) == "02/08/00"
            for _ in range(1000):
                if (answer := await rig.answer(rig.write(9, b"after"))) != "BUSY":
                    break
                await asyncio.sleep(0.001)  # it may be found out only now
            assert answer == "GOOD"

    asyncio.run(whole())
