"""stress-ng's file-system stressors, dbench and fio on our LUN, with an outage in each; and on LIO fileio."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import pytest

from tests.conformance import luns
from tests.soak.conftest import Record
from tests.vm.lab import Lab, Lun

OUTAGE = 10
SIZE = 320  # MiB; mkfs.xfs takes no less than 300
PLACE = "/run/stress"
LOADS = {
    "stress-ng": f"stress-ng --class filesystem --sequential 1 --timeout 1 --temp-path {PLACE}"
    " --hdd-bytes 32m --fallocate-bytes 32m --iomix-bytes 32m --copy-file-bytes 128m",
    "dbench": f"dbench -t 20 -c /usr/share/dbench/client.txt -D {PLACE} 2",
    "fio": f"fio --name=v --directory={PLACE} --rw=randrw --bs=4k --size=32m --direct=1 --ioengine=libaio --iodepth=16"
    " --time_based --runtime=20 --verify=crc32c --verify_backlog=256 --verify_fatal=1 --serialize_overlap=1",
}
SLOW = "hrtimer: interrupt took"  # said of the emulator, once, whenever it was slow
CHECK = {"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}


@dataclass
class Run:
    """One load: its exit status, and what the kernel complained of, without numbers and names of devices."""

    code: int
    complaints: set[str]


def stress(lab: Lab, lun: Lun, file_system: str, outage: bool) -> dict[str, Run]:
    """All loads on a fresh file system, which must be clean after them."""
    kind = "ours" if outage else "fileio"
    lab.guest.run(f"mkfs.{file_system} -q {lun.disk} && mkdir -p {PLACE} && mount {lun.disk} {PLACE}", timeout=300)
    runs = {}
    for name, command in LOADS.items():
        log = f"stress-{kind}-{file_system}-{name}.log"
        lab.guest.run("dmesg --clear")
        lab.guest.start(f"{command}; code=$?; echo; echo end $code", log)
        if outage:
            time.sleep(OUTAGE)
            lun.storage.fail()
            lun.wait_held(seconds=60)
            time.sleep(OUTAGE)
            lun.storage.back()
        code = lab.wait_end(log, 900)
        said = lab.guest.run("dmesg --level emerg,alert,crit,err,warn --notime").out
        lines = [line for line in said.splitlines() if SLOW not in line]
        runs[name] = Run(code, {re.sub(r"\b(sd[a-z]+|dm-\d+)\b|0x[0-9a-f]+|\d+", "#", line) for line in lines})
        lab.guest.run(f"sync -f {PLACE} && rm -rf {PLACE}/*", timeout=300)
    lab.guest.run(f"umount {PLACE} && {CHECK[file_system]} {lun.disk}", timeout=300)
    return runs


@pytest.mark.parametrize("file_system", CHECK)
def test_stressed_file_systems_ride_out_outages_as_quietly_as_on_fileio(
    lab: Lab, record: Record, file_system: str
) -> None:
    """stress-ng, dbench and fio --verify with an outage each: clean, and no kernel message that LIO fileio lacks.

    fileio: each load    ours: each load, 10 s in the storage fails, for 10 s; every load ends as it does on fileio
    """
    portal = ("--portal", luns.PORTALS[0])
    ours = lab.export(lab.storage("stress", SIZE), "", *portal)
    peer = Lun(lab, "peer", ours.storage, luns.fileio(lab.guest, SIZE)[0].split("/")[-2])
    peer.login()
    try:
        quiet = stress(lab, peer, file_system, outage=False)
    finally:
        lab.guest.run(f"umount {PLACE}; iscsiadm -m node -T {peer.iqn} --logout", check=False, timeout=120)
        luns.remove_fileio(lab.guest)
    ours.login()
    runs = stress(lab, ours, file_system, outage=True)
    known = set().union(*(run.complaints for run in quiet.values()))
    for name, run in runs.items():
        assert run.code in (0, quiet[name].code), f"{name} ended with {run.code}, on fileio with {quiet[name].code}"
        assert not run.complaints - known, name
    status = ours.status()
    assert status["held"] == 0
    record(
        outages=f"{len(LOADS)} of {OUTAGE} s on {file_system}",
        loads=", ".join(f"{name} exit {run.code} (fileio {quiet[name].code})" for name, run in runs.items()),
        kernel_messages=f"{sum(len(run.complaints) for run in runs.values())}, all of them on fileio too",
    )
