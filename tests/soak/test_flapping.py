"""Storage that goes and comes all the time."""

from __future__ import annotations

import random
import re
import time

import pytest

from tests.soak.conftest import Record
from tests.vm.lab import Lab, Lun, eventually

CYCLES = 200
SEED = 20261124
INTERRUPTED = 128  # fio's status after SIGINT; one that met an error has another
SETTINGS = "retry_interval=200ms;retry_max_interval=1s"


@pytest.mark.parametrize("cache", ["writethrough", "writeback"])
def test_200_cycles(lab: Lab, record: Record, cache: str) -> None:
    """200 cycles of random up, error and hang under fio's verify: nothing wrong, no id, memory or fd is lost."""
    lun = lab.lun("flap", f"{SETTINGS};cache={cache}", size=96)
    chance = random.Random(SEED)
    fio = (
        f"fio --name=flap --filename={lun.disk} --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --rwmixwrite=70"
        " --bsrange=4k-64k --bs_unaligned=0 --fsync=32 --verify=crc32c --verify_backlog=128 --verify_fatal=1"
        f" --time_based --runtime=7200 --size=64M --randseed={SEED} --group_reporting; echo end $?"
    )
    log = f"fio-{cache}.log"
    lab.guest.start(fio, log)
    time.sleep(10)
    early = used(lab)
    away = 0.0
    for cycle in range(CYCLES):
        time.sleep(chance.uniform(0.2, 1.5))
        assert lab.ended(log) is None, lab.log(log)[-3000:]
        began = time.monotonic()
        if chance.random() < 0.2:
            lun.storage.hang()
            time.sleep(chance.uniform(0.1, 1.5))
            lun.storage.go_on()
        else:
            lun.storage.fail()
            time.sleep(chance.uniform(0.1, 1.5))
            lun.storage.back()
        away += time.monotonic() - began
        if cycle == CYCLES // 10:
            early = used(lab)
    late = used(lab)
    lab.guest.run("pkill -INT -x fio; true")
    assert lab.wait_end(log, 120) == INTERRUPTED, lab.log(log)[-3000:]
    told = lab.log(log)
    assert "err= 0" in told, told[-3000:]
    eventually(lambda: online(lun), 60, "online, nothing held")
    reads, writes = (re.search(rf"{kind}: IOPS=\S+ BW=.*?\(([^)]*)/", told) for kind in ("read", "write"))
    assert late["fds"] == early["fds"], (early, late)
    assert late["threads"] == early["threads"], (early, late)
    assert late["rss"] < early["rss"] * 1.15 + 4096, (early, late)
    assert "ring is broken" not in lab.guest.run("dmesg").out
    figures = {
        cache: f"{CYCLES} cycles, away {away:.0f} s, read {reads and reads[1]}, written {writes and writes[1]},"
        f" fds {early['fds']} -> {late['fds']}, threads {early['threads']} -> {late['threads']},"
        f" RSS {early['rss']} -> {late['rss']} KiB, held at the end 0"
    }
    record(**figures)


def online(lun: Lun) -> bool:
    status = lun.status()
    return not status["held"] and status["write"]["state"] == "online" and status["read"]["state"] == "online"


def used(lab: Lab) -> dict[str, int]:
    """What the daemon has: open files, threads, resident KiB."""
    pid = lab.daemon
    shown = lab.guest.run(f"ls /proc/{pid}/fd | wc -l; grep -e VmRSS -e Threads /proc/{pid}/status").out
    fds, rss, threads = (int(number) for number in re.findall(r"\d+", shown))
    return {"fds": fds, "rss": rss, "threads": threads}
