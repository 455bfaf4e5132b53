"""Commands a second in one guest over tcm_loop: our pumps, LIO's fileio and tcmu-runner, all over one RAM disk (brd).

fio runs in the guest; one target at a time, because two TCMU handlers answer for each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.vm.guest import ROOT, Guest
from tests.vm.lab import Lab, eventually

RUNNER = ROOT / "build/bench/tcmu-runner"
CORE = "/sys/kernel/config/target/core"
LOOP = "/sys/kernel/config/target/loopback/naa.600140500000bec0"
DISK = "/dev/ram0"
MIB = 256
SECONDS = 6
JOBS = {
    "4 KiB read, QD 1": "--rw=randread --bs=4k --iodepth=1",
    "4 KiB read, QD 32": "--rw=randread --bs=4k --iodepth=32",
    "4 KiB write, QD 1": "--rw=randwrite --bs=4k --iodepth=1",
    "4 KiB write, QD 32": "--rw=randwrite --bs=4k --iodepth=32",
    "256 KiB sequential read, QD 4": "--rw=read --bs=256k --iodepth=4",
    "256 KiB sequential write, QD 4": "--rw=write --bs=256k --iodepth=4",
}
USER = f"dev_size={MIB << 20},hw_max_sectors=16384"


@dataclass(frozen=True)
class Target:
    """What is measured: the daemon that must run ("" for none), and its store in configfs."""

    name: str
    daemon: str
    hba: str
    control: tuple[str, ...]


TARGETS = (
    Target("native", "native", "user_77", (f"dev_config=retry/{DISK},{USER}",)),
    Target("reference", "reference", "user_77", (f"dev_config=retry/{DISK},{USER}",)),
    Target("native, write-back", "native", "user_77", (f"dev_config=retry/{DISK};cache=writeback,{USER}",)),
    Target("tcmu-runner", "tcmu-runner", "user_77", (f"dev_config=qcow/{DISK},{USER}",)),
    Target("LIO fileio", "", "fileio_77", (f"fd_dev_name={DISK},fd_dev_size={MIB << 20}",)),
    Target(
        "LIO fileio, buffered", "", "fileio_77", (f"fd_dev_name={DISK},fd_dev_size={MIB << 20}", "fd_buffered_io=1")
    ),
)


@dataclass(frozen=True)
class Result:
    """Commands a second, and bytes a second."""

    target: str
    job: str
    iops: float
    rate: float


def unpack_runner() -> bool:
    """Whether there is a tcmu-runner to compare with."""
    if not (RUNNER / "root/usr/bin/tcmu-runner").exists():
        done = subprocess.run([ROOT / "bench/runner.sh", RUNNER], check=False)
        return done.returncode == 0
    return True


@contextmanager
def _daemon(lab: Lab, which: str) -> Iterator[None]:
    if not which:
        yield
        return
    if which == "tcmu-runner":
        root = RUNNER / "root/usr"
        library = root / "lib/x86_64-linux-gnu"
        lab.guest.run(f"mkdir -p /run/tcmu && cp {root}/../etc/dbus-1/system.d/* /etc/dbus-1/system.d/")
        command = [f"{root}/bin/tcmu-runner", "--handler-path", f"{library}/tcmu-runner", "--tcmu-log-dir", "/run/tcmu"]
        pid = lab.guest.start(command, "runner.log", LD_LIBRARY_PATH=str(library))
        time.sleep(10)
    else:
        command = [sys.executable, "-m", "tcmu_retry.retryd"]
        pid = lab.guest.start(command, f"bench-{which}.log", **lab.environment, TCMU_RETRY_PUMP=which)
        eventually(lambda: not lab.call("device", "list").code, 60, "tcmu-retryd on the bus")
    try:
        yield
    finally:
        lab.guest.run(f"kill {pid}; s=/proc/{pid}/stat; while [ -e $s ] && ! grep -q ' Z ' $s; do sleep 0.1; done")


@contextmanager
def _disk(guest: Guest, target: Target) -> Iterator[str]:
    """The target's disk, by tcm_loop."""
    store = f"{CORE}/{target.hba}/bench"
    disks = "ls /sys/block | grep ^sd; true"
    before = set(guest.run(disks).out.split())
    controls = " && ".join(f"echo '{line}' > {store}/control" for line in target.control)
    guest.run(
        f"blkdiscard -z {DISK}; mkdir -p {store} && {controls} && echo 1 > {store}/enable &&"
        f" mkdir -p {LOOP}/tpgt_1 && echo naa.600140500000bec1 > {LOOP}/tpgt_1/nexus &&"
        f" mkdir -p {LOOP}/tpgt_1/lun/lun_0 && ln -s {store} {LOOP}/tpgt_1/lun/lun_0/store",
        timeout=90,
    )
    try:
        (name,) = eventually(lambda: set(guest.run(disks).out.split()) - before, 30, "a disk")
        eventually(lambda: guest.run(f"blockdev --getsz /dev/{name}", check=False).code == 0, 30, name)
        yield f"/dev/{name}"
    finally:
        guest.run(
            f"rm -f {LOOP}/tpgt_1/lun/lun_0/store; rmdir {LOOP}/tpgt_1/lun/lun_0; echo NULL > {LOOP}/tpgt_1/nexus;"
            f" rmdir {LOOP}/tpgt_1 {LOOP}; rmdir {store}; rmdir {CORE}/{target.hba}; true",
            timeout=90,
        )


def _fio(guest: Guest, disk: str, target: str, job: str) -> Result:
    done = guest.run(
        f"fio --name=bench --filename={disk} --direct=1 --ioengine=libaio --runtime={SECONDS} --time_based"
        f" --ramp_time=1 --randrepeat=1 --norandommap --output-format=json {JOBS[job]}",
        timeout=120,
    )
    found = json.loads(done.out[done.out.index("{") :])["jobs"][0]
    assert not found["error"], found["error"]
    side = found["read" if "read" in job else "write"]
    return Result(target, job, side["iops"], side["bw_bytes"])


def measure(targets: tuple[Target, ...] = TARGETS) -> tuple[list[Result], dict[str, str]]:
    """Everything in one boot; the results, and the guest's versions."""
    results = []
    guest = Guest("bench", forward=3260)
    try:
        lab = Lab(guest)
        lab.up()
        lab.stop_daemon()
        guest.run(f"modprobe brd rd_nr=1 rd_size={MIB * 1024} && dd if=/dev/zero of={DISK} bs=1M count={MIB}")
        versions = {
            "guest's kernel": guest.run("uname -r").out.strip(),
            "guest's CPUs": guest.run("nproc").out.strip(),
            "fio": guest.run("fio --version").out.strip(),
        }
        for target in targets:
            if target.daemon == "tcmu-runner" and not unpack_runner():
                continue
            with _daemon(lab, target.daemon), _disk(guest, target) as disk:
                for job in JOBS:
                    results.append(_fio(guest, disk, target.name, job))
                    print(results[-1], flush=True)
    finally:
        guest.close()
    return results, versions


if __name__ == "__main__":
    measure(tuple(target for target in TARGETS if not sys.argv[1:] or target.name in sys.argv[1:]))
