"""Storage that goes and comes back is taken again only if it is the same: a SCSI disk that is pulled and plugged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm.lab import SOON, Lab, Storage, eventually

LINK = "/run/pulled"


class Disk:
    """A scsi_debug disk behind a link, as udev's by-id links are."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node = ""

    def make(self, size: int) -> None:
        self.lab.guest.run(f"modprobe scsi_debug dev_size_mb={size} max_luns=1 && udevadm settle; true")
        self._find()

    def _find(self) -> None:
        find = "basename $(ls -d /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*)"
        self.node = eventually(
            lambda: self.lab.guest.run(find, check=False).out.strip().removeprefix("*"), 10, "a scsi_debug disk"
        )
        self.lab.guest.run(f"ln -sfn /dev/{self.node} {LINK}")

    def pull(self) -> None:
        self.lab.guest.run(f"echo 1 > /sys/block/{self.node}/device/delete")

    def plug(self) -> None:
        self.lab.guest.run(
            "for s in /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/scsi_host/*/scan; do echo '- - -' > $s; done"
        )
        self._find()

    def remove(self) -> None:
        """The driver goes as soon as nobody has the disk open."""
        eventually(lambda: not self.lab.guest.run("rmmod scsi_debug", check=False).code, SOON, "rmmod scsi_debug")


@pytest.fixture
def disk(lab: Lab) -> Iterator[Disk]:
    made = Disk(lab)
    made.make(64)
    yield made
    for lun in lab.luns:
        lab.guest.run(f"iscsiadm -m node -T {lun.iqn} --logout", check=False)
        lab.call("unexport", lun.name)
    made.remove()


def test_a_disk_pulled_and_plugged_is_reopened_and_another_one_is_refused(lab: Lab, disk: Disk) -> None:
    """pulled: held    plugged again, under another name: goes on    pulled, one of half the size: refused, said so
    the right one again: goes on
    """
    lun = lab.export(Storage(lab.guest, "pulled", 0, 64), path=LINK)
    lun.login(300)
    lun.write(0, "first", "first.log")
    assert lab.wait_end("first.log", SOON) == 0

    disk.pull()
    lun.write(1, "second", "second.log")
    lun.wait_held()
    assert lun.state() == "down"
    disk.plug()
    assert lab.wait_end("second.log", SOON) == 0
    medium = lab.guest.run(f"dd if={LINK} bs=512 count=2 iflag=direct status=none | tr -s '\\n' ' '").out
    assert medium.startswith("first ")
    assert "second " in medium

    disk.pull()
    lun.write(2, "third", "third.log")
    lun.wait_held()
    disk.remove()
    disk.make(32)
    eventually(lambda: "TR-021" in lab.daemon_log(), SOON, "the event that the storage is refused")
    assert "bytes" in lun.status()["backend_error"]
    assert lab.ended("third.log") is None
    assert lun.state() == "down"
    disk.remove()
    disk.make(64)
    assert lab.wait_end("third.log", SOON) == 0
    eventually(lambda: lun.state() == "online", SOON, "online")
