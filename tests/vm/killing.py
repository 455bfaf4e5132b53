"""LUNs whose daemon is killed all the time, under fio's verify and with outages."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass

from tests.vm.lab import START, Lab, Lun, eventually

OUTAGES = ("fail", "hang", "")
EARLY = 5  # each so many kills one comes before its daemon serves


@dataclass
class Killed:
    """What there was to see of a LUN."""

    kills: int
    adopted: int  # commands that went on
    failed: int  # of them, held ones
    again: int  # unflushed changes that were made again
    busy: int  # times that a daemon did not take up what there was
    written: int  # MiB


def kill_under_load(lab: Lab, luns: list[Lun], kills: int, seed: int, seconds: float = 3000) -> list[Killed]:
    """Of each LUN in turn: a kill in an outage of errors, one in an outage that hangs, one in none, and so on.

    seconds: no kill after that. Raises AssertionError for anything an initiator could see.
    """
    chance = random.Random(seed)
    before = lab.runs
    logs = {lun.name: f"{lun.name}-fio-{before}.log" for lun in luns}
    lab.guest.run("dmesg -C")
    already = {lun.name: _written(lab, lun) for lun in luns}
    for lun in luns:
        lab.guest.start(_fio(lun, seed), logs[lun.name])
    eventually(lambda: all(_written(lab, lun) > already[lun.name] + 50 for lun in luns), START, "fio writes")
    until = time.monotonic() + seconds
    number = 0
    while number < kills and time.monotonic() < until:
        outages = {lun.name: OUTAGES[(number + place) % len(OUTAGES)] for place, lun in enumerate(luns)}
        early = number % EARLY == EARLY - 1
        if not early:
            eventually(lambda: all(f"LUN {lun.name} is served" in lab.daemon_log() for lun in luns), START, "served")
        time.sleep(chance.uniform(0, 2 if early else 0.5))
        for lun in luns:
            if outages[lun.name]:
                getattr(lun.storage, outages[lun.name])()
        time.sleep(chance.uniform(0, 1.5))
        lab.kill_daemon()
        time.sleep(chance.uniform(0, 1))
        for lun in luns:
            if outages[lun.name]:
                lun.storage.go_on() if outages[lun.name] == "hang" else lun.storage.back()
        for lun in luns:
            assert lab.ended(logs[lun.name]) is None, (
                f"{lun.name} after {number} kills: {lab.log(logs[lun.name])[-3000:]}"
            )
        number += 1
        print(f"{time.strftime('%T')} kill {number}", *outages.values(), "early" if early else "", flush=True)  # noqa: T201
        if number % EARLY == 0:
            _look(lab)
    for lun in luns:
        lun.wait_served()
    eventually(lambda: not any(lun.status()["held"] for lun in luns), START, "nothing held")
    lab.interrupt_fio()
    _look(lab)
    for lun in luns:
        assert lab.wait_end(logs[lun.name], START) == 128, lab.log(logs[lun.name])[-3000:]  # what fio says of SIGINT
        result = lab.log(logs[lun.name])
        assert "err= 0" in result, result[-3000:]
        assert "verify:" not in result, result[-3000:]
    said = [lab.log(f"retryd-{number}.log") for number in range(before, lab.runs + 1)]
    for log in said:
        assert "Traceback" not in log, log[-6000:]
    return [_seen(lun.name, number, said, (_written(lab, lun) - already[lun.name]) >> 11) for lun in luns]


def _look(lab: Lab) -> None:
    """Nobody has noticed anything so far."""
    kernel = lab.guest.run("dmesg").out
    assert "ring is broken" not in kernel, kernel[-3000:]
    assert not re.search("I/O error|timing out command|conn error|abort", kernel), kernel[-3000:]


def _written(lab: Lab, lun: Lun) -> int:
    """Sectors that were written to it."""
    return int(lab.guest.run(f"awk '{{print $7}}' /sys/block/{lun.disk.removeprefix('/dev/')}/stat").out)


def _fio(lun: Lun, seed: int) -> str:
    return (
        f"fio --name=kill --filename={lun.disk} --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --rwmixwrite=70"
        " --bsrange=4k-64k --fsync=32 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --verify_state_save=0"
        f" --time_based --runtime=7200 --size=24M --randseed={seed} --group_reporting; echo end $?"
    )


def _seen(name: str, kills: int, said: list[str], written: int) -> Killed:
    """said: each daemon's log. While its storage or its ring is kept by the one before, it says so again and again."""
    goes_on = rf"{name}: (\d+) commands of a former daemon go on, (\d+) of them held"
    adopted = [each for log in said for each in re.findall(goes_on, log)]
    again = [re.findall(rf"LUN {name}: (\d+) changes that a former daemon had not flushed", log) for log in said]
    return Killed(
        kills,
        sum(int(count) for count, _ in adopted),
        sum(int(failed) for _, failed in adopted),
        sum(int(each[-1]) for each in again if each),
        sum(len(re.findall(rf"{name}: \d+ commands of a former daemon are answered BUSY", log)) for log in said),
        written,
    )
