"""A LUN's size and storage: changed while it is served, and remembered while the storage is away."""

from __future__ import annotations

import os

from tests.dbus.conftest import SIZE, World

GOOD, CHECK_CONDITION = 0, 2
CAPACITY_CHANGED = "70 00 06 00 00 00 00 0a 00 00 00 00 2a 09"


def test_a_lun_grows_and_shrinks_within_its_storage_and_initiators_are_told_once(world: World) -> None:
    world.lun("vm1")
    image = world.directory / "vm1.img"
    assert world.status(world.write("vm1", SIZE // 512), 5) == CHECK_CONDITION
    problem = world.resize("vm1", 2 * SIZE)
    assert problem == f"{image} has {SIZE} bytes and LUN vm1 would have {2 * SIZE}; enlarge it first"
    assert world.ask(lun="vm1", attention=True)["sense"] == ""

    os.truncate(image, 2 * SIZE)
    assert world.resize("vm1", 2 * SIZE) == ""
    assert world.json("device", "show", "vm1")["device"]["size"] == 2 * SIZE
    assert world.ask(lun="vm1", attention=True)["sense"].startswith(CAPACITY_CHANGED)
    assert world.ask(lun="vm1", attention=True)["sense"] == ""
    assert world.status(world.write("vm1", SIZE // 512, "beyond"), 5) == GOOD
    assert image.read_bytes()[SIZE:][:6] == b"beyond"

    assert world.resize("vm1", SIZE // 2) == ""
    assert world.ask(lun="vm1", attention=True)["sense"].startswith(CAPACITY_CHANGED)
    assert world.status(world.write("vm1", SIZE // 512), 5) == CHECK_CONDITION
    assert "multiple of its block size 512" in world.resize("vm1", 1000)
    assert "multiple of its block size 512" in world.resize("vm1", 0)


def test_what_is_held_outlives_a_resize_and_is_not_cut_off(world: World) -> None:
    """Writes are held at the beginning and at the end    shrinking would cut one off: refused    growing: fine."""
    world.lun("vm1", "retry_interval=200ms")
    world.away.touch()
    first, last = world.write("vm1", 0), world.write("vm1", SIZE // 512 - 1)
    world.held("vm1", 2)
    assert "1 held commands of vm1 lie beyond" in world.resize("vm1", SIZE // 2)
    os.truncate(world.directory / "vm1.img", 2 * SIZE)
    assert world.resize("vm1", 2 * SIZE) == ""
    assert not world.json("device", "show", "vm1")["device"]["draining"]
    world.away.unlink()
    assert world.status(first, 10) == GOOD
    assert world.status(last, 10) == GOOD


def test_a_resize_waits_five_seconds_for_io_that_does_not_return(world: World) -> None:
    world.lun("vm1", "delay.write=8s")
    number = world.write("vm1", 0)
    world.held("vm1", 0)
    assert "did not return within 5 s" in world.resize("vm1", SIZE // 2)
    assert world.json("device", "show", "vm1")["device"]["size"] == SIZE
    assert world.status(number, 10) == GOOD
    assert world.resize("vm1", SIZE // 2) == ""


def test_a_lun_restored_without_its_storage_is_down_and_heals(world: World) -> None:
    """served    gone, as at a reboot, and its storage with it    back: down    it comes: the held write ends."""
    world.lun("vm1", "retry_interval=200ms")
    world.cli("unexport", "vm1")
    image, aside = world.directory / "vm1.img", world.directory / "aside"
    image.rename(aside)
    fault = f"error.errno=EIO;error.while_file={world.away}"
    world.cli("export", "vm1", f"{image};{fault};retry_interval=200ms", "--any-initiator")
    device = world.json("device", "show", "vm1")["device"]
    assert device["write"]["state"] == "down"
    assert device["size"] == SIZE
    assert "does not exist" in device["backend_error"]
    number = world.write("vm1", 0)
    world.held("vm1", 1)
    aside.rename(image)
    world.cli("queue", "retry", "vm1")
    assert world.status(number, 10) == GOOD
    assert world.json("device", "show", "vm1")["device"]["backend_error"] == ""


def test_other_storage_at_the_old_path_is_not_taken_for_the_lun_s(world: World) -> None:
    world.lun("vm1")
    world.cli("unexport", "vm1")
    image = world.directory / "vm1.img"
    image.rename(world.directory / "aside")
    with image.open("wb") as file:
        file.truncate(SIZE // 2)
    fault = f"error.errno=EIO;error.while_file={world.away}"
    world.cli("export", "vm1", f"{image};{fault}", "--any-initiator")
    device = world.json("device", "show", "vm1")["device"]
    assert device["write"]["state"] == "down"
    assert "is not the storage of LUN vm1" in device["backend_error"]


def test_a_lun_that_never_was_is_refused_without_its_storage(world: World) -> None:
    result = world.call("export", "vm1", str(world.directory / "vm1.img"), "--any-initiator")
    assert result.code == 1
    assert "does not exist" in result.err
