"""A virtual machine whose disks are LUNs of ours rides out an outage: what QEMU's series was for.

Two QEMUs side by side: the guest that all tests use is the target; a second one has a virtio-blk and a scsi-hd disk by
QEMU's own initiator, through a forwarded port.
"""

from __future__ import annotations

import time

from tests.vm.guest import Guest
from tests.vm.lab import SOON, Lab, eventually
from tests.vm.writing import Writer, uptime

OUTAGE = 60
KINDS = {
    "virtio": "-device virtio-blk-pci,drive={0},serial={0}",
    "scsi": "-device scsi-hd,bus=s0.0,drive={0},serial={0}",
}


def test_ext4_on_virtio_blk_and_scsi_disk_ride_out_an_outage(lab: Lab) -> None:
    """The writers run: 0 s  the storage of both fails    60 s  it is back    then both went on without an error."""
    luns = {kind: lab.export(lab.storage(f"vm-{kind}", 96)) for kind in KINDS}
    options = ["-device virtio-scsi-pci,id=s0"]
    for kind, lun in luns.items():
        options.append(f"-drive file=iscsi://127.0.0.1:{lab.guest.forwarded}/{lun.iqn}/0,if=none,id={kind},format=raw")
        options.append(KINDS[kind].format(kind))
    machine = Guest("machine", memory="1G", disks=0, options=options)
    try:
        find = "grep -l {0} /sys/block/*/serial /sys/block/sd*/device/vpd_pg80 2>/dev/null | head -1 | cut -d/ -f4"
        writers = []
        for kind in KINDS:
            node = eventually(lambda kind=kind: machine.look(find.format(kind)), SOON, f"the {kind} disk")
            writers.append(Writer(machine, kind, f"/dev/{node}"))
            writers[-1].begin("mkfs.ext4 -q", 600)
        for writer in writers:
            eventually(writer.started, SOON, f"the {writer.name} writer")
        for lun in luns.values():
            lun.storage.fail()
        time.sleep(OUTAGE)
        assert all(lun.status()["held"] for lun in luns.values())
        for lun in luns.values():
            lun.storage.back()
        back = uptime(machine)
        for writer in writers:
            writer.wait_wrote_after(back + 1, 60)
            assert writer.errors == []
            assert writer.longest > OUTAGE - 5
            assert writer.writable
            assert writer.missing() == []
        assert "error" not in machine.run("dmesg | grep -i -e 'i/o error' -e ext4-fs.error; true").out
    finally:
        machine.close()
