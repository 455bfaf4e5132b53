"""A LUN whose daemon is killed all the time, under fio's verify and with outages."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass

from tests.vm.lab import Lab, Lun, eventually


@dataclass
class Killed:
    """What there was to see."""

    kills: int = 0
    adopted: int = 0  # commands that went on
    failed: int = 0  # of them, held ones
    busy: int = 0  # times that a daemon did not take up what there was
    fio: str = ""


def kill_under_load(lab: Lab, lun: Lun, kills: int, seed: int) -> Killed:
    """Every second kill falls into an outage. Raises AssertionError for anything an initiator could see."""
    chance = random.Random(seed)
    log = f"{lun.name}-fio.log"
    lab.guest.run("dmesg -C")
    before = len(lab.daemon_logs())
    fio = (
        f"fio --name=kill --filename={lun.disk} --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --rwmixwrite=70"
        " --bsrange=4k-64k --fsync=32 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --time_based --runtime=7200"
        f" --size=24M --randseed={seed} --group_reporting; echo end $?"
    )
    lab.guest.start(fio, log)
    time.sleep(3)
    for number in range(kills):
        time.sleep(chance.uniform(0, 1))
        if number % 2:
            lun.storage.fail()
            time.sleep(chance.uniform(0, 1.5))
        lab.kill_daemon()
        if number % 2:
            time.sleep(chance.uniform(0, 6))
            lun.storage.back()
        name = f"retryd-{lab.runs}.log"
        eventually(lambda name=name: f"LUN {lun.name} is served" in lab.log(name), 60, "served again")  # type: ignore[misc]
        assert lab.ended(log) is None, lab.log(log)[-3000:]
    lab.guest.run("pkill -INT -x fio; true")
    assert lab.wait_end(log, 120) in (0, 130), lab.log(log)[-3000:]
    said = lab.daemon_logs()[before:]
    kernel = lab.guest.run("dmesg").out
    result = lab.log(log)
    assert "err= 0" in result, result[-3000:]
    assert "verify:" not in result, result[-3000:]
    assert "ring is broken" not in kernel, kernel[-3000:]
    assert not re.search("I/O error|timing out command|conn error|abort", kernel), kernel[-3000:]
    assert "Traceback" not in said, said[-6000:]
    eventually(lambda: not lun.status()["held"], 60, "nothing held")
    adopted = re.findall(r"(\d+) commands of a former daemon go on, (\d+) of them held", said)
    return Killed(
        kills,
        sum(int(count) for count, _ in adopted),
        sum(int(failed) for _, failed in adopted),
        said.count("of a former daemon are answered BUSY"),
        result,
    )
