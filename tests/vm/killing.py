"""A LUN whose daemon is killed all the time, under fio's verify and with outages."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass

from tests.vm.lab import START, Lab, Lun, eventually

OUTAGES = ("fail", "hang", "")


@dataclass
class Killed:
    """What there was to see."""

    kills: int = 0
    adopted: int = 0  # commands that went on
    failed: int = 0  # of them, held ones
    busy: int = 0  # times that a daemon did not take up what there was
    fio: str = ""


def kill_under_load(lab: Lab, lun: Lun, kills: int, seed: int) -> Killed:
    """A kill in an outage of errors, one in an outage that hangs, one in none, and so on.

    Raises AssertionError for anything an initiator could see.
    """
    chance = random.Random(seed)
    before = lab.runs
    log = f"{lun.name}-fio-{before}.log"
    lab.guest.run("dmesg -C")
    written = f"awk '{{print $5}}' /sys/block/{lun.disk.removeprefix('/dev/')}/stat"
    already = int(lab.guest.run(written).out)
    lab.guest.start(
        f"fio --name=kill --filename={lun.disk} --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --rwmixwrite=70"
        " --bsrange=4k-64k --fsync=32 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --verify_state_save=0"
        f" --time_based --runtime=7200 --size=24M --randseed={seed} --group_reporting; echo end $?",
        log,
    )
    eventually(lambda: int(lab.guest.run(written).out) > already + 50, START, "fio writes")
    for number in range(kills):
        outage = OUTAGES[number % len(OUTAGES)]
        time.sleep(chance.uniform(0, 1))
        if outage:
            getattr(lun.storage, outage)()
            time.sleep(chance.uniform(0, 1.5))
        lab.kill_daemon()
        if outage:
            time.sleep(chance.uniform(0, 2))
            lun.storage.go_on() if outage == "hang" else lun.storage.back()
        eventually(lambda: f"LUN {lun.name} is served" in lab.daemon_log(), START, "served again")
        assert lab.ended(log) is None, lab.log(log)[-3000:]
    eventually(lambda: not lun.status()["held"], START, "nothing held")
    lab.guest.run("pkill -INT -x fio; true")
    assert lab.wait_end(log, START) == 128, lab.log(log)[-3000:]  # what fio says of SIGINT
    said = "".join(lab.log(f"retryd-{number}.log") for number in range(before, lab.runs + 1))
    kernel = lab.guest.run("dmesg").out
    result = lab.log(log)
    assert "err= 0" in result, result[-3000:]
    assert "verify:" not in result, result[-3000:]
    assert "ring is broken" not in kernel, kernel[-3000:]
    assert not re.search("I/O error|timing out command|conn error|abort", kernel), kernel[-3000:]
    assert "Traceback" not in said, said[-6000:]
    adopted = re.findall(r"(\d+) commands of a former daemon go on, (\d+) of them held", said)
    return Killed(
        kills,
        sum(int(count) for count, _ in adopted),
        sum(int(failed) for _, failed in adopted),
        said.count("of a former daemon are answered BUSY"),
        result,
    )
