"""What the kernel announces, with LIO's tree as files: who is served, and who is not taken up again while it goes."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tcmu_retry.backends import linux
from tcmu_retry.daemon import announcements, door, export, luns, rival, service, takeover
from tcmu_retry.daemon.api import ApiError
from tcmu_retry.daemon.config import Source
from tcmu_retry.daemon.service import Service
from tcmu_retry.daemon.wishes import Wishes
from tcmu_retry.tcmu import configfs, uio
from tcmu_retry.tcmu.netlink import Added, Event, Reconfigured, Removed
from tcmu_retry.tcmu.simulated import SimulatedChannel, SimulatedKernel
from tcmu_retry.tcmu.uio import UioDevice
from tests.unit.daemon.rig import until

SIZE = 1 << 20


class Netlink:
    """The kernel's announcements by hand; what is answered is kept."""

    def __init__(self) -> None:
        self.announce: Callable[[Event], None]
        self.lost: Callable[[], None]
        self.answers: list[tuple[int, int]] = []
        self.closed = False

    def start(self, callback: Callable[[Event], None], overrun: Callable[[], None]) -> None:
        self.announce, self.lost = callback, overrun

    def close(self) -> None:
        self.closed = True

    def set_features(self, reply: bool) -> None:
        pass

    def reply(self, event: Event, status: int) -> None:
        assert not self.closed
        self.answers.append((event.device_id, status))


class Uevents:
    """Hints by hand: `came` is a uio device's."""

    came: Callable[[str], None]

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


class World:
    """A service over a kernel of files. shown: the uio devices that sysfs has."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.shown: dict[str, UioDevice] = {}
        self.kernels: dict[str, SimulatedKernel] = {}  # by uio name
        self.unproven: set[str] = set()  # uio names; their rings were reset
        self.netlink = Netlink()
        self.uevents = Uevents()
        self.touched: list[tuple[str, Path]] = []  # what was written in LIO's tree, and by which thread
        self.parameters = root / "parameters"
        self.parameters.mkdir()
        monkeypatch.setattr(uio, "CONFIGFS", root / "core")
        monkeypatch.setattr(configfs, "PARAMETERS", self.parameters)
        monkeypatch.setattr(rival, "find", lambda: "")
        monkeypatch.setattr(announcements, "TcmuNetlink", lambda: self.netlink)
        monkeypatch.setattr(service, "Uevents", self.take_hints)
        monkeypatch.setattr(luns, "LATE_SECONDS", 0.0)
        monkeypatch.setattr(luns, "scan", lambda subtype: list(self.shown.values()))
        monkeypatch.setattr(luns, "find", self.shown.get)
        monkeypatch.setattr(door, "find", self.shown.get)
        monkeypatch.setattr(door, "SYS", root / "uio")
        monkeypatch.setattr(takeover, "open_channel", self.open_channel)
        monkeypatch.setattr(takeover, "open_wishes", lambda uio, fresh: Wishes())
        real = Path.write_text

        def write_text(path: Path, *arguments: str) -> int:
            self.touched.append((threading.current_thread().name, path))
            return real(path, *arguments)

        monkeypatch.setattr(Path, "write_text", write_text)
        self.service = Service(Source(root / "etc", root / "lib"), root / "state")

    def open_channel(self, uio: UioDevice, fresh: bool, unproven: Callable[[int, str], None]) -> SimulatedChannel:
        if uio.uio in self.unproven:
            (uio.configfs / "action/block_dev").write_text("blocked\n")
            unproven(0, "it left no journal")
        return self.kernels[uio.uio].open()

    def take_hints(self, uio: Callable[[str], None], block: Callable[[str], None]) -> Uevents:
        self.uevents.came = uio
        return self.uevents

    def make(self, name: str, number: str = "uio0") -> UioDevice:
        image = self.root / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(SIZE)
        device = UioDevice(number, 0, name, "retry", f"{image};buffered=true")
        for directory in ("attrib", "action", "wwn"):
            (device.configfs / directory).mkdir(parents=True, exist_ok=True)
        values = {"cmd_time_out": 30, "qfull_time_out": -1, "tmr_notification": 0, "emulate_write_cache": 0}
        for attribute, value in {**values, "dev_size": SIZE, "hw_block_size": 512}.items():
            (device.configfs / "attrib" / attribute).write_bytes(f"{value}\n".encode())
        (device.configfs / "action/block_dev").write_text("unblocked\n")
        (device.configfs / "wwn/vpd_unit_serial").write_text("T10 VPD Unit Serial Number: 1234\n")
        self.shown[number] = device
        (self.root / "uio" / number).mkdir(parents=True, exist_ok=True)
        self.kernels[number] = SimulatedKernel()
        self.touched.clear()
        return device

    async def answer(self, event: Event) -> int:
        """What the kernel is told."""
        self.netlink.announce(event)
        await until(lambda: event.device_id in dict(self.netlink.answers), f"an answer to {event}")
        return dict(self.netlink.answers)[event.device_id]

    def served(self) -> list[str]:
        return [device.status().name for device in self.service.devices()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


class Opening:
    """Of a LUN's uio device, which lasts until the test lets it go."""

    def __init__(self, world: World) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self._world = world

    def open_channel(self, uio: UioDevice, fresh: bool, unproven: Callable[[int, str], None]) -> SimulatedChannel:
        self.begun.set()
        self.let_go.wait(10)
        return self._world.open_channel(uio, fresh, unproven)


@pytest.fixture
def opening(world: World, monkeypatch: pytest.MonkeyPatch) -> Opening:
    made = Opening(world)
    monkeypatch.setattr(takeover, "open_channel", made.open_channel)
    return made


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    await world.service.start()
    try:
        yield
    finally:
        await world.service.stop()


def test_a_lun_that_goes_is_not_taken_up_again_while_the_kernel_still_shows_it(world: World) -> None:
    """Made    its uevent's late look comes only now: removal is announced, the kernel waits for our answer

    Whoever removes a backstore holds the lock of its directory in configfs until we answer. A write of ours to that
    directory would wait for him, and he for us.
    """

    async def story() -> None:
        async with running(world):
            device = world.make("vm1")
            assert await world.answer(Added(device, 1)) == 0
            assert await world.answer(Removed(device, 2)) == 0
            other = world.make("vm2", "uio1")
            world.uevents.came(device.uio)
            world.netlink.lost()
            world.uevents.came(other.uio)
            await until(lambda: "vm2" in world.served(), "a look that came after those at vm1")
            assert world.served() == ["vm2"]
            assert [path for _, path in world.touched if path.is_relative_to(device.configfs)] == []

            again = world.make("vm1")
            assert await world.answer(Added(again, 3)) == 0
            assert world.served() == ["vm1", "vm2"]

    asyncio.run(story())


def test_the_main_loop_writes_nothing_to_the_tree(world: World) -> None:
    """LIO's tree has locks that others may hold while they wait for us."""

    async def story() -> None:
        async with running(world):
            fresh = world.make("vm1")
            assert await world.answer(Added(fresh, 1)) == 0
            assert await world.answer(Reconfigured(fresh, 2, write_cache=False)) == 0
            assert await world.answer(Reconfigured(fresh, 3, write_cache=True)) < 0
            assert world.touched
            assert threading.main_thread().name not in dict(world.touched)
            assert await world.answer(Removed(fresh, 4)) == 0

    asyncio.run(story())


def test_a_lun_whose_announcement_was_lost_is_found(world: World) -> None:
    async def story() -> None:
        async with running(world):
            world.make("vm1")
            world.netlink.lost()
            await until(lambda: world.served() == ["vm1"], "the LUN served")
            assert threading.main_thread().name not in dict(world.touched)

    asyncio.run(story())


def test_who_waits_for_an_announcement_that_was_lost_is_told_no_after_those_that_were_heard(
    world: World, opening: Opening
) -> None:
    """vm1 is being made, and answered first; whoever else waits would wait for ever."""

    async def story() -> None:
        async with running(world):
            device = world.make("vm1")
            world.netlink.announce(Added(device, 1))
            await until(opening.begun.is_set, "the device being opened")
            world.netlink.lost()
            world.netlink.lost()
            await asyncio.sleep(0.01)
            assert "reset_netlink" not in [path.name for _, path in world.touched]
            opening.let_go.set()
            await until(lambda: (1, 0) in world.netlink.answers, "an answer")
            await until(lambda: "reset_netlink" in [path.name for _, path in world.touched], "the others told")
            assert world.served() == ["vm1"]

    asyncio.run(story())
    assert [path.name for _, path in world.touched].count("reset_netlink") == 1


def test_a_lun_that_was_there_is_taken_up_when_the_host_is_short_of_something(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE at the first try; nobody announces it a second time."""
    short = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "Cannot allocate memory")]

    def open_channel(uio: UioDevice, fresh: bool, refuse: Callable[[int, str], None]) -> SimulatedChannel:
        if short:
            raise short.pop()
        return world.kernels[uio.uio].open()

    monkeypatch.setattr(takeover, "open_channel", open_channel)

    async def story() -> None:
        world.make("vm1")
        async with running(world):
            await until(lambda: world.served() == ["vm1"], "the LUN served")

    asyncio.run(story())


def test_a_lun_that_went_without_a_word_is_forgotten(world: World) -> None:
    """Its removal was announced and not heard: the device hangs up, and nobody shows a LUN that there is not."""

    async def story() -> None:
        async with running(world):
            device = world.make("vm1")
            assert await world.answer(Added(device, 1)) == 0
            (world.root / "uio" / device.uio).rmdir()
            del world.shown[device.uio]
            world.kernels[device.uio].remove()
            await until(lambda: world.served() == [], "the LUN forgotten")

    asyncio.run(story())


def test_who_waited_for_a_daemon_that_died_is_let_go_by_the_next(world: World) -> None:
    """The kernel announces nothing twice. Blocked first and unblocked last, or the reset would be passed by."""

    async def story() -> None:
        async with running(world):
            assert [path.name for _, path in world.touched] == ["block_netlink", "reset_netlink", "block_netlink"]
            assert (world.parameters / "block_netlink").read_text() == "0"
            assert (world.parameters / "reset_netlink").read_text() == "1"

    asyncio.run(story())


def test_a_daemon_that_ends_answers_what_it_was_just_at(world: World, opening: Opening) -> None:
    """Whoever enables a LUN waits in the kernel, unkillably: an error now, not when the next daemon comes."""

    async def story() -> None:
        async with running(world):
            world.netlink.announce(Added(world.make("vm1"), 1))
            await until(opening.begun.is_set, "the device being opened")
        opening.let_go.set()
        assert dict(world.netlink.answers)[1] < 0

    asyncio.run(story())


def test_an_unexport_that_fails_leaves_the_lun_served(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands were answered BUSY so that the kernel lets it go; it stayed, and must not answer BUSY for ever.

    LIO's tree is read and written by other threads alone: whoever holds its locks may wait for the main loop.
    """
    touching: set[str] = set()

    def fail(name: str) -> None:
        touching.add(threading.current_thread().name)
        raise ApiError("Failed", f"unexport of {name} failed")

    monkeypatch.setattr(export, "check_ours", lambda name: touching.add(threading.current_thread().name))
    monkeypatch.setattr(export, "unexport", fail)

    async def story() -> None:
        async with running(world):
            assert await world.answer(Added(world.make("vm1"), 1)) == 0
            withdrawn = world.service.device("vm1")
            with pytest.raises(ApiError, match="unexport of vm1 failed"):
                await world.service.unexport("vm1")
            await until(lambda: withdrawn not in world.service.devices() and world.served() == ["vm1"], "another")
            reading = world.kernels["uio0"].submit(bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0)), data_in=512)
            await until(lambda: reading.status is not None, "an answer")
            assert reading.status == 0

    asyncio.run(story())
    assert threading.main_thread().name not in touching


def test_what_is_announced_to_a_daemon_that_ends_is_refused_at_once(world: World) -> None:
    """LUNs are being left, and a new one comes: nobody will serve it, and nobody may wait for that."""

    async def story() -> None:
        async with running(world):
            assert await world.answer(Added(world.make("vm1"), 1)) == 0
            first = world.kernels["uio0"].submit(bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0)), data_in=512)
            await until(lambda: first.status is not None, "the LUN served")
            late = Added(world.make("vm2", "uio1"), 2)
            asyncio.get_running_loop().call_soon(world.netlink.announce, late)
        assert dict(world.netlink.answers)[2] < 0
        assert world.served() == []
        world.kernels["uio1"].open().close()

    asyncio.run(story())


@pytest.mark.parametrize("why", ["nothing proves what the former daemon had open", "nobody served it"])
def test_a_lun_answers_busy_while_a_former_daemon_s_io_may_be_out(world: World, why: str) -> None:
    """Its ring was reset, by this daemon or by --unfreeze    the storage is locked: blocked    the lock goes: served

    That I/O would land in buffers that new commands have, and over what they write.
    """

    async def story() -> None:
        device = world.make("vm1")
        flag = device.configfs / "action/block_dev"
        if why == "nobody served it":
            flag.write_text("blocked\n")
        else:
            world.unproven.add(device.uio)
        with (world.root / "vm1.img").open("r+b") as former:
            linux.lock(former.fileno())
            async with running(world):
                await until(lambda: world.served() == ["vm1"], "the LUN served")
                served = world.service.device("vm1")
                served.kick()
                await until(lambda: bool(served.status().backend_error), "storage that is locked")
                assert flag.read_text() == "blocked\n"
            async with running(world):  # a daemon that comes after that one knows no more
                await until(lambda: world.served() == ["vm1"], "the LUN served")
                assert flag.read_text() == "blocked\n"
                former.close()
                world.service.device("vm1").kick()
                await until(lambda: flag.read_text() == "0", "the end of BUSY")

    asyncio.run(story())


def test_a_lun_whose_commands_are_all_known_is_not_blocked_while_its_storage_is_away(world: World) -> None:
    """They are held, and so is what comes: BUSY would be an error to Linux after 180 s."""

    async def story() -> None:
        device = world.make("vm1")
        (world.root / "vm1.img").unlink()
        async with running(world):
            await until(lambda: world.served() == ["vm1"], "the LUN served")
            await until(lambda: (device.configfs / "action/block_dev").read_text() == "0", "not blocked")

    asyncio.run(story())
