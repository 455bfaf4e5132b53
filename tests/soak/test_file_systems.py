"""File systems other than ext4, and a host with the LUN as a local disk, ride out an outage."""

from __future__ import annotations

import time

from tests.soak.conftest import Record
from tests.vm.lab import Lab, eventually
from tests.vm.writing import Writer, uptime, writers

OUTAGE = 60


def test_xfs_btrfs_and_a_local_disk_ride_out_a_minute(lab: Lab, record: Record) -> None:
    """xfs and btrfs over iSCSI, ext4 over tcm_loop: a writer each, an outage of 60 s, no error, nothing lost.

    0 s  three writers run    then the storage of all fails    60 s  it is back    all went on
    """
    xfs, btrfs, local = lab.lun("xfs", size=320), lab.lun("btrfs", size=160), lab.export(lab.storage("local", 96))
    made = {
        Writer(lab.guest, "xfs", xfs.disk): "mkfs.xfs -q",
        Writer(lab.guest, "btrfs", btrfs.disk): "mkfs.btrfs -q --mixed",
        Writer(lab.guest, "local", local.loop_back()): "mkfs.ext4 -q",
    }
    with writers(*made):
        for writer, make in made.items():
            writer.begin(make, 400)
        for writer in made:
            eventually(writer.started, 60, f"the {writer.name} writer")
        for lun in lab.luns:
            lun.storage.fail()
        time.sleep(OUTAGE)
        for lun in lab.luns:
            assert lun.status()["held"]
            lun.storage.back()
        back = uptime(lab.guest)
        for writer in made:
            writer.wait_wrote_after(back + 1, 60)
            assert writer.errors == []
            assert writer.longest > OUTAGE - 5
            assert writer.writable
            assert writer.missing() == []
            record(**{writer.name: f"longest pause {writer.longest:.1f} s, 0 errors"})
