"""Leaving never waits for storage that is down."""

from __future__ import annotations

import time

import pytest

from tests.vm.lab import SOON, Lab, Lun, eventually


def cut(lun: Lun, how: str) -> None:
    if how == "error":
        lun.storage.fail()
    else:
        lun.storage.hang()


def mend(lun: Lun, how: str) -> None:
    if how == "error":
        lun.storage.back()
    else:
        lun.storage.go_on()


@pytest.mark.parametrize("how", ["error", "hang"])
def test_the_daemon_stops_and_a_new_one_goes_on(lab: Lab, how: str) -> None:
    """A write is open    SIGTERM: it does not wait for the storage    storage back, new daemon: the write ends GOOD."""
    lun = lab.lun("leave", timeout=300)
    cut(lun, how)
    lun.write(7, "leave", "leave.log")
    if how == "error":
        lun.wait_held()
    else:
        eventually(lambda: lun.status()["in_flight"], SOON, "a write in flight")
    try:
        assert lab.stop_daemon() < SOON
        mend(lun, how)
    finally:
        lab.start_daemon()
        lab.wait_daemon()
    assert lab.wait_end("leave.log", SOON) == 0
    assert lun.storage.read(7, 1).startswith(b"leave")


@pytest.mark.parametrize("how", ["error", "hang"])
def test_unexport_does_not_wait_for_storage(lab: Lab, how: str) -> None:
    lun = lab.lun("unexport", timeout=300)
    cut(lun, how)
    lun.write(7, "gone", "gone.log")
    time.sleep(3)
    began = time.monotonic()
    lab.cli("unexport", "unexport")
    assert time.monotonic() - began < SOON
    left = lab.guest.run(
        "ls -d /sys/kernel/config/target/core/user_*/unexport /sys/kernel/config/target/iscsi/iqn*", check=False
    )
    assert left.out == ""
    mend(lun, how)
    lab.luns.remove(lun)
    lab.guest.run(f"iscsiadm -m node -T {lun.iqn} --logout", check=False, timeout=150)
