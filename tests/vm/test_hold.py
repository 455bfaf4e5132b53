"""A command whose storage fails is held, not failed, and what a person changes meanwhile counts."""

from __future__ import annotations

import time

from tests.vm.lab import SOON, Lab, eventually


def test_a_write_held_for_45_seconds_ends_good(lab: Lab) -> None:
    """Beyond cmd_time_out's default of 30 s. `patient` has one command all the time; `stock` aborts and sends again.

    0 s  storage fails, both write    45 s  storage is back    then both writes end GOOD and are on the medium
    """
    patient = lab.lun("patient", timeout=300)
    stock = lab.lun("stock")
    for lun in (patient, stock):
        lun.storage.fail()
        lun.write(8, "held", f"{lun.name}.log")
    patient.wait_held()
    stock.wait_held()
    began = time.monotonic()
    while time.monotonic() - began < 45:
        for lun in (patient, stock):
            assert lab.ended(f"{lun.name}.log") is None
        time.sleep(1)
    [command] = patient.held()
    assert command["operation"] == "write"
    assert command["lba"] == 8
    assert command["age"] > 40
    assert command["error"] == "EIO"
    for lun in (patient, stock):
        lun.storage.back()
    for lun in (patient, stock):
        lab.cli("queue", "retry", lun.name)
        assert lab.wait_end(f"{lun.name}.log", SOON) == 0
        assert lun.storage.read(8, 1) == (b"held\n" * 103)[:512]
    assert patient.held() == []
    assert patient.state() == "online"


def test_a_policy_change_takes_effect_on_what_is_held(lab: Lab) -> None:
    """0 s  held with no time-out    3 s  retry_timeout=5s    5 s after the first failure  reported."""
    lun = lab.lun("changed", timeout=300)
    lun.storage.fail()
    lun.raw_write(0, "changed.log", 300)
    lun.wait_held()
    time.sleep(2)
    assert lab.ended("changed.log") is None
    lun.policy("retry_timeout=5s")
    assert lab.wait_end("changed.log", SOON) != 0
    assert lun.storage.read(0, 1) == bytes(512)


def test_a_full_file_system_holds_and_goes_on_after_space_is_freed(lab: Lab) -> None:
    lab.guest.run(
        "mkdir -p /run/small && mkfs.ext4 -q -F -m 0 /dev/vdb 20M && mount /dev/vdb /run/small &&"
        " truncate -s 12M /run/small/lun.img; dd if=/dev/zero of=/run/small/ballast bs=1M; sync /run/small/ballast"
    )
    try:
        storage = lab.storage("full", 1)
        lun = lab.export(storage, path="/run/small/lun.img")
        lun.login(300)
        lun.write(64, "room", "full.log", count=2048)
        lun.wait_held()
        assert lun.held()[0]["error"] == "ENOSPC"
        lab.guest.run("rm /run/small/ballast; sync /run/small")
        assert lab.wait_end("full.log", 240) == 0
        lab.guest.run(f"iscsiadm -m node -T {lun.iqn} --logout")
        lab.cli("unexport", lun.name)
    finally:
        lab.guest.run("umount /run/small; true")


def test_one_bad_sector_does_not_stop_the_lun(lab: Lab) -> None:
    """A write to a bad sector is held; writes elsewhere, and reads, go on meanwhile."""
    lun = lab.lun("sector", timeout=300)
    lun.storage.fail_sectors(50000, 8)
    lun.write(50000, "bad", "bad.log")
    lun.wait_held()
    for place in (0, 200, 300, 400):
        lun.write(place, "good", f"good{place}.log")
        assert lab.wait_end(f"good{place}.log", SOON) == 0
    assert lun.state() == "retrying"
    lun.storage.back()
    assert lab.wait_end("bad.log", SOON) == 0
    eventually(lambda: lun.state() == "online", SOON, "online again")
