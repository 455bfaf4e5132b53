"""A virtual machine whose disks are LUNs of ours rides out an outage: what QEMU's series was for.

Two QEMUs side by side: the guest that all tests use is the target; a second one has a virtio-blk and a scsi-hd disk by
QEMU's own initiator, through a forwarded port.
"""

from __future__ import annotations

import json
import sys
import time

from tests.vm.guest import ROOT, Guest
from tests.vm.lab import Lab, eventually

OUTAGE = 60
KINDS = {
    "virtio": "-device virtio-blk-pci,drive={0},serial={0}",
    "scsi": "-device scsi-hd,bus=s0.0,drive={0},serial={0}",
}


def test_ext4_on_virtio_blk_and_scsi_disk_ride_out_an_outage(lab: Lab) -> None:
    """0 s  writers run    8 s  the storage of both fails    68 s  it is back    then both went on without an error."""
    luns = {kind: lab.export(lab.storage(f"vm-{kind}", 96)) for kind in KINDS}
    options = ["-device virtio-scsi-pci,id=s0"]
    for kind, lun in luns.items():
        options.append(f"-drive file=iscsi://127.0.0.1:{lab.guest.forwarded}/{lun.iqn}/0,if=none,id={kind},format=raw")
        options.append(KINDS[kind].format(kind))
    machine = Guest("machine", memory="1G", disks=0, options=options)
    try:
        find = "grep -l {0} /sys/block/*/serial /sys/block/sd*/device/vpd_pg80 2>/dev/null | head -1 | cut -d/ -f4"
        for kind in KINDS:
            node = eventually(lambda kind=kind: machine.run(find.format(kind)).out.strip(), 20, f"the {kind} disk")
            machine.run(f"mkfs.ext4 -q /dev/{node} && mkdir -p /run/{kind} && mount /dev/{node} /run/{kind}")
            machine.start(
                [
                    sys.executable,
                    f"{ROOT}/demo/writer.py",
                    f"/run/{kind}/records",
                    f"{machine.shared}/{kind}.jsonl",
                    "110",
                ],
                f"{kind}.log",
            )
        time.sleep(8)
        for lun in luns.values():
            lun.storage.fail()
        cut = machine_time(machine)
        time.sleep(OUTAGE)
        assert all(lun.status()["held"] for lun in luns.values())
        for lun in luns.values():
            lun.storage.back()
        back = machine_time(machine)
        time.sleep(38)
        for kind in KINDS:
            records = [json.loads(line) for line in (machine.shared / f"{kind}.jsonl").read_text().splitlines()]
            assert [record for record in records if record["error"]] == []
            assert any(record["t"] < cut for record in records)
            assert any(record["t"] > back + 1 for record in records), "it never went on"
            assert max(record["took"] for record in records) > OUTAGE - 5
            machine.run(f"echo writable > /run/{kind}/probe && grep /run/{kind} /proc/mounts | grep -v ro,")
        assert "error" not in machine.run("dmesg | grep -i -e 'i/o error' -e ext4-fs.error; true").out
    finally:
        machine.close()


def machine_time(machine: Guest) -> float:
    """CLOCK_MONOTONIC there."""
    return float(machine.run("cut -d' ' -f1 /proc/uptime").out)
