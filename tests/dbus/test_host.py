"""The host under the daemon: its bus begins anew, and it has no file descriptor left."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dbus.conftest import BUS, World, start


class Bus:
    """A bus that can be ended and begun again at the same address."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:path={directory}/socket"
        self._config = directory / "bus.conf"
        self._config.write_text(BUS.replace("unix:tmpdir=/tmp", self.address))
        self._socket = directory / "socket"

    def begin(self) -> None:
        self._process = subprocess.Popen(["dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile"])
        wait(self._socket.exists)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)


# A process that is over but for one thread, as one that was killed and has I/O in the kernel.
DYING = """
import asyncio, ctypes, sys, threading
from tcmu_retry.dbus._lib import MessageBus

async def own():
    bus = await MessageBus(bus_address=sys.argv[1]).connect()
    await bus.request_name("org.tcmu.Retry1")
    print("owned", flush=True)
    await bus.wait_for_disconnect()

threading.Thread(target=asyncio.run, args=(own(),)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture
def bus_alone(tmp_path: Path) -> Iterator[Bus]:
    bus = Bus(tmp_path)
    bus.begin()
    yield bus
    bus.end()


def wait(what: Callable[[], object], seconds: float = 30) -> None:
    """For it to be so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_daemon_behind_a_killed_one_that_does_not_end_serves_and_takes_the_name_when_it_has(
    bus_alone: Bus, tmp_path: Path
) -> None:
    """It would else be taken for another one that runs, and nobody would serve, or block, any LUN."""
    (tmp_path / "etc").mkdir()
    command = [sys.executable, "-c", DYING, bus_alone.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dying:
        try:
            assert dying.stdout is not None
            assert dying.stdout.readline() == "owned\n"
            world = World(bus_alone.address, tmp_path, start(bus_alone.address, tmp_path))
            wait(lambda: "it was killed" in world.said() or world.daemon.poll())
            assert world.daemon.poll() is None, world.said()
        finally:
            dying.kill()
    world.wait()
    world.stop()


def test_a_bus_that_begins_anew_is_joined_and_nothing_held_is_lost(bus_alone: Bus, tmp_path: Path) -> None:
    """Held    the bus is killed: nobody can be asked, the storage is back: GOOD    held again    a bus: seen."""
    (tmp_path / "etc").mkdir()
    world = World(bus_alone.address, tmp_path, start(bus_alone.address, tmp_path))
    world.wait()
    world.lun("vm1", "retry_interval=100ms;retry_max_interval=100ms")
    world.away.touch()
    first = world.write("vm1", 0)
    [held] = world.held("vm1", 1)
    bus_alone.end()
    assert world.call("device", "list").code != 0
    world.away.unlink()
    assert world.status(first, 10) == 0
    world.away.touch()
    second = world.write("vm1", 1)
    bus_alone.begin()
    wait(lambda: not world.call("device", "list").code)
    [again] = world.held("vm1", 1)
    assert again["serial"] > held["serial"]
    codes = [event["code"] for event in world.json("history", "vm1")["events"]]
    assert codes.count("TR-001") == 2, "what happened without a bus is told too"
    world.away.unlink()
    assert world.status(second, 10) == 0
    world.stop()
    assert "the bus is gone" in world.said()
    assert "Traceback" not in world.said()


def test_with_no_file_descriptor_left_what_is_there_goes_on(world: World) -> None:
    """Held commands are tried, people are answered, a new LUN is refused with a sentence; then it is made."""
    world.lun("vm1", "retry_interval=100ms;retry_max_interval=100ms")
    world.away.touch()
    number = world.write("vm1", 0)
    world.held("vm1", 1)
    pid = world.daemon.pid
    used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    low, high = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), high))
    # One that is just being tried is not in the list.
    wait(lambda: any(each["attempts"] > 3 for each in world.json("queue", "list", "vm1")["held"]))
    assert world.call("doctor", "vm1").err.endswith("Too many open files\n")
    changed = world.call("policy", "set", "vm1", "retry_max_interval=200ms")
    assert changed.code == 0, "it is done, and what cannot be looked at afterwards is a warning"
    assert changed.err.startswith("warning: Diagnose ")
    assert world.call("device", "hold", "vm1").code == 0
    assert world.call("device", "resume", "vm1").code == 0
    path = world.directory / "vm2.img"
    path.write_bytes(bytes(8 << 20))
    refused = world.call("export", "vm2", str(path), "--any-initiator")
    assert refused.code == 1
    assert "Too many open files" in refused.err
    world.away.unlink()
    assert world.status(number, 10) == 0
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (low, high))
    world.cli("export", "vm2", str(path), "--any-initiator")
    assert world.status(world.write("vm2", 0), 10) == 0
