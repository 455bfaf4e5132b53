"""What fails beside the storage, in the kernel's tree or in our own code, costs one try, and never the LUN."""

from __future__ import annotations

import asyncio
import errno
import threading
from dataclasses import replace

import pytest

from tcmu_retry.core.chain import Link
from tcmu_retry.daemon import storage
from tcmu_retry.dbus import presence
from tcmu_retry.dbus.tree import Tree
from tcmu_retry.tcmu.ring import RingError
from tcmu_retry.tcmu.simulated import SimulatedChannel, SimulatedKernel
from tests.unit.daemon.rig import Rig, served, until

INQUIRY = bytes((0x12, 0, 0, 0, 96, 0))


def test_inquiry_is_answered_though_the_serial_number_cannot_be_read() -> None:
    """It is read from LIO's tree each time, for rtslib sets it late. What was read last is good enough."""

    async def story() -> None:
        async with served() as rig:
            rig.errors["wwn"] = OSError(errno.ENOMEM, "no memory")
            assert await rig.answer(rig.kernel.submit(INQUIRY, data_in=96)) == "GOOD"

    asyncio.run(story())


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), ValueError("ours")])
def test_a_reopen_that_fails_in_our_own_code_is_tried_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """The device goes; opening it raises what nobody expects; the next try finds it. Without that try: down for ever"""

    async def story() -> None:
        async with served() as rig:
            rig.errors["open"] = error
            rig.storage.fail(errno.ENODEV)
            reading = rig.read(4)
            await rig.held(1)
            rig.storage.errors.clear()
            rig.device.kick()
            await until(lambda: rig.device.status().backend_error != "", "the end of the first try")
            rig.errors.clear()
            rig.device.kick()
            assert await rig.answer(reading) == "GOOD"
            assert rig.device.status().backend_error == ""

    asyncio.run(story())
    assert str(error) in caplog.text


def test_a_ring_that_is_not_for_us_is_given_back() -> None:
    """Otherwise the device would be busy for whoever tries next, ourselves included."""
    opened: list[SimulatedChannel] = []  # by the real one nobody counts references: an open file is open

    class Door(SimulatedKernel):
        def open(self) -> SimulatedChannel:
            opened.append(super().open())
            opened[0].memory[0] = 3
            return opened[0]

    rig = Rig(kernel=Door())

    async def story() -> None:
        with pytest.raises(RingError, match="version 3"):
            await rig.device.attach(rig.kernel, fresh=True)

    asyncio.run(story())
    SimulatedKernel.open(rig.kernel).close()


def test_a_lun_that_is_given_up_while_its_ring_is_opened_leaves_nothing_open() -> None:
    """The kernel hangs    its announcement has waited long enough, it is refused    what is open then is closed."""
    opening, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow(SimulatedKernel):
        def open(self) -> SimulatedChannel:
            opening.set()
            go_on.wait(10)
            return super().open()

    rig = Rig(kernel=Slow())
    rig.storage.close = closed.set  # type: ignore[method-assign]

    def free() -> bool:
        try:
            SimulatedKernel.open(rig.kernel).close()
        except OSError:
            return False
        return True

    async def story() -> None:
        attaching = asyncio.create_task(rig.device.attach(rig.kernel, fresh=True))
        await until(opening.is_set, "the ring being opened")
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching
        assert closed.is_set()
        go_on.set()
        await until(lambda: "open" not in threads() and free(), "a device that can be opened")

    def threads() -> str:
        return " ".join(thread.name for thread in threading.enumerate() if thread.name.startswith("offload-"))

    asyncio.run(asyncio.wait_for(story(), 4))


def test_storage_that_lets_itself_be_opened_too_late_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs    the LUN comes up down without it    it opens: closed, or its lock would keep out the next try."""
    monkeypatch.setattr(storage, "OPEN_SECONDS", 0.001)
    rig = Rig()
    go_on = rig.storage.hang["open"] = threading.Event()
    closed = threading.Event()

    async def story() -> None:
        rig.storage.close = closed.set  # type: ignore[method-assign]
        await rig.device.attach(rig.kernel, fresh=False)
        assert "did not let itself be opened" in rig.device.status().backend_error
        go_on.set()
        await until(closed.is_set, "storage that is closed")
        await rig.device.withdraw()
        await rig.device.detach()

    asyncio.run(asyncio.wait_for(story(), 4))


def test_io_warn_after_0_warns_never() -> None:
    """As every time of 0; otherwise each I/O would hang from its first moment."""

    async def story() -> None:
        async with served() as rig:
            rig.device.config = replace(rig.device.config, io_warn_after=0.0)
            let_go = rig.storage.hang["write"] = threading.Event()
            writing = rig.write(4, b"data")
            await until(lambda: "write" in rig.storage.calls, "the write")
            assert rig.device.status().hung == 0
            let_go.set()
            assert await rig.answer(writing) == "GOOD"

    asyncio.run(story())


def test_the_doctor_says_that_storage_hangs_and_waits_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the chain of time-outs asks because the storage hangs."""
    let_go, looks = threading.Event(), []

    def hang(path: str) -> list[Link]:
        looks.append(path)
        let_go.wait(10)
        return []

    monkeypatch.setattr(storage, "storage_links", hang)
    monkeypatch.setattr(storage, "ASK_SECONDS", 0.01)

    async def story() -> None:
        async with served() as rig:
            for _ in range(3):
                first, *others = await rig.device.diagnose()
                assert (first.where, first.value, first.wrong != "") == ("storage", "hangs", True)
                assert [link for link in others if link.where == "policy"]
            assert len(looks) == 1
            let_go.set()

    asyncio.run(story())


def test_a_bus_that_is_not_there_is_joined_later_whatever_joining_fails_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bus nobody can end a hold, and the LUNs are served on for months."""
    tries = 0

    def connection(**where: object) -> None:
        nonlocal tries
        tries += 1
        raise (OSError(111, "refused"), ValueError("the library's"))[tries % 2]

    monkeypatch.setattr(presence, "MessageBus", connection)
    monkeypatch.setattr(presence, "REJOIN_SECONDS", 0.0)

    async def story() -> None:
        on_bus = presence.Presence("org.example", Tree("/", never, lambda path: None), "unix:path=/nowhere", "")
        on_bus.keep()
        await until(lambda: tries > 3, "some tries")
        await on_bus.close()

    async def never(message: object, method: object) -> None:
        raise AssertionError

    asyncio.run(story())
