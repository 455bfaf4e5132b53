"""Storage that goes and comes all the time."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from tests.soak.conftest import Record
from tests.vm.lab import Lab, Lun, Storage, eventually

CYCLES = 200
SEED = 20261124
INTERRUPTED = 128  # fio's status after SIGINT; one that met an error has another
SETTINGS = "retry_interval=200ms;retry_max_interval=1s"


@pytest.mark.parametrize("cache", ["writethrough", "writeback"])
def test_200_cycles(lab: Lab, record: Record, cache: str) -> None:
    """200 cycles of random up, error and hang under fio's verify: nothing wrong, no id, memory or fd is lost."""
    lun = lab.lun("flap", f"{SETTINGS};cache={cache}", size=96)
    fio = (
        f"fio --name=flap --filename={lun.disk} --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --rwmixwrite=70"
        " --bsrange=4k-64k --bs_unaligned=0 --fsync=32 --verify=crc32c --verify_backlog=128 --verify_fatal=1"
        # Slower than it could: an emulated CPU would spend itself on fio, and a cycle take half a minute.
        " --rate_iops=100,200"
        f" --time_based --runtime=7200 --size=64M --randseed={SEED} --group_reporting; echo end $?"
    )
    log, cycles = f"fio-{cache}.log", f"cycles-{cache}.log"
    lab.guest.start(fio, log)
    (lab.guest.shared / "plan").write_text("".join(f"{cycle}\n" for cycle in plan(random.Random(SEED))))
    lab.guest.start(flapping(lun.storage, lab.guest.shared / "plan"), cycles)
    early: dict[str, int] = {}
    while lab.ended(cycles) is None:
        time.sleep(5)
        assert lab.ended(log) is None, lab.log(log)[-3000:]
        if not early and lab.log(cycles).count("back") > CYCLES // 10:
            early = used(lab)
    assert lab.ended(cycles) == 0 and lab.log(cycles).count("back") == CYCLES, lab.log(cycles)[-3000:]
    late = used(lab)
    lab.interrupt_fio()
    assert lab.wait_end(log, 120) == INTERRUPTED, lab.log(log)[-3000:]
    told = lab.log(log)
    assert "err= 0" in told, told[-3000:]
    eventually(lambda: online(lun), 60, "online, nothing held")
    reads, writes = (re.search(rf"{kind}: .*\((\w+)/\d+msec\)", told) for kind in ("read", "write"))
    # `early` was taken while the storage came and went, and has what a probe opens.
    assert late["fds"] <= early["fds"], (early, late)
    assert late["threads"] <= early["threads"], (early, late)
    assert late["memory"] < early["memory"] * 1.15 + 4096, (early, late)
    assert "ring is broken" not in lab.guest.run("dmesg").out
    figures = {
        cache: f"{CYCLES} cycles, read {reads and reads[1]}, written {writes and writes[1]},"
        f" fds {early['fds']} -> {late['fds']}, threads {early['threads']} -> {late['threads']},"
        f" memory {early['memory']} -> {late['memory']} KiB, held at the end 0"
    }
    record(**figures)


def plan(chance: random.Random) -> list[str]:
    """Lines for `flapping`: seconds up, "hang" or "error", seconds away."""
    return [
        f"{chance.uniform(0.2, 1.5):.2f} {'hang' if chance.random() < 0.2 else 'error'} {chance.uniform(0.1, 1.5):.2f}"
        for _ in range(CYCLES)
    ]


def flapping(storage: Storage, lines: Path) -> str:
    """One program in the guest: asked for each change, an emulated CPU would take half a minute for a cycle."""
    suspend, resume = f"dmsetup suspend --noflush --nolockfs {storage.name}", f"dmsetup resume {storage.name}"
    load = f"{suspend} && dmsetup load {storage.name} --table"
    return f"""
        trap 'echo end $?' EXIT; set -e
        while read -r up how away; do
            sleep $up
            if [ $how = hang ]; then {suspend}; else {load} '{storage.error}' && {resume}; fi
            sleep $away
            if [ $how = hang ]; then {resume}; else {load} '{storage.linear}' && {resume}; fi
            echo back
        done < {lines}
    """


def online(lun: Lun) -> bool:
    status = lun.status()
    return not status["held"] and status["write"]["state"] == "online" and status["read"]["state"] == "online"


def used(lab: Lab) -> dict[str, int]:
    """What the daemon has: open files, threads (io_uring's workers apart, which come and go), KiB of its own memory.

    The replay log's lies in /run: as much as it needed once, up to its bound.
    """
    proc = f"/proc/{lab.daemon}"
    shown = lab.guest.run(
        f"ls {proc}/fd | wc -l; grep RssAnon {proc}/status; grep -L iou-wrk {proc}/task/*/comm | wc -l"
    ).out
    fds, memory, threads = (int(number) for number in re.findall(r"\d+", shown))
    return {"fds": fds, "memory": memory, "threads": threads}
