"""A broken ring, as people and programs are shown it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.dbus.conftest import World


def test_a_broken_ring_is_listed_explained_and_told(world: World) -> None:
    """GOOD    it breaks, a read is out: `ring broken`, doctor fails over it    the read returns: served on."""
    hang, storage = world.directory / "hang", world.directory / "storage"
    storage.write_bytes(bytes(8 << 20))
    (world.directory / "etc/devices.d").mkdir()
    (world.directory / "etc/devices.d/slow.toml").write_text(
        f'path = "{storage}"\n[delay]\nwhile_file = "{hang}"\ndirection = "read"\n'
    )
    world.cli("export", "vm1", "slow", "--any-initiator")
    assert world.status(world.write("vm1", 0), 10) == 0
    hang.touch()
    world.hung = True
    reading = world.read("vm1", 1)
    wait(lambda: world.json("device", "show", "vm1")["device"]["in_flight"])
    world.ask(lun="vm1", damage=True)
    wait(lambda: "ring broken" in world.cli("device", "list"))
    assert "Device or resource busy" in world.json("device", "show", "vm1")["device"]["ring_error"]
    assert "ring error" in world.cli("device", "show", "vm1")
    doctor = world.call("doctor", "vm1")
    assert doctor.code == 1
    assert "its ring is broken" in doctor.err
    hang.unlink()
    wait(lambda: not world.json("device", "show", "vm1")["device"]["ring_error"])
    assert world.status(reading, 10) == 8
    assert world.status(world.write("vm1", 0), 10) == 0
    assert world.call("doctor", "vm1").code == 0
    codes = [event["code"] for event in world.json("history", "vm1")["events"]]
    assert [code for code in codes if code in ("TR-042", "TR-043")] == ["TR-042", "TR-043"]


def wait(what: Callable[[], object]) -> None:
    """For it to be so."""
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)
