"""How long an initiator waits, and what ends it."""

from __future__ import annotations

import re
import time

from tests.soak.conftest import Record
from tests.vm.lab import Lab, Lun, eventually
from tests.vm.writing import Writer, uptime, writers

USUAL, TUNED, GIVES_UP = 360, 900, 700


def tune(lab: Lab, lun: Lun) -> None:
    """As packaging/udev and docs/initiators.md have it."""
    node = lun.disk.removeprefix("/dev/")
    lab.guest.run(
        f"echo 86400 > /sys/block/{node}/device/timeout;"
        f" for f in /sys/block/{node}/device/scsi_disk/*/max_retries; do echo -1 > $f; done"
    )


def test_an_outage_of_360_s_unmodified_900_s_tuned_and_the_limit(lab: Lab, record: Record) -> None:
    """ext4 and a fsync writer: 360 s unmodified, 900 s tuned without an error; the limit unmodified.

    0 s  storage of three LUNs fails    360 s  `usual` is back    > 360 s  `limit` sees its first error   900 s  `tuned`
    """
    usual, limit, tuned = (lab.lun(name, size=96) for name in ("usual", "limit", "tuned"))
    tune(lab, tuned)
    made = {lun.name: Writer(lab.guest, lun.name, lun.disk) for lun in lab.luns}
    with writers(*made.values()):
        for writer in made.values():
            writer.begin("mkfs.ext4 -q", 1200)
        for writer in made.values():
            eventually(writer.started, 60, f"the {writer.name} writer")
        cut = {}
        for lun in (tuned, limit, usual):
            cut[lun.name] = uptime(lab.guest)
            lun.storage.fail()

        sleep_until(lab, cut["usual"] + USUAL)
        usual.storage.back()
        back = uptime(lab.guest)
        made["usual"].wait_wrote_after(back + 1, 60)
        assert made["usual"].errors == []
        assert made["usual"].longest >= USUAL - 5
        assert made["usual"].writable
        record(unmodified=f"{made['usual'].longest:.0f} s, 0 errors")

        eventually(lambda: made["limit"].errors, GIVES_UP - USUAL, "the initiator gives up")
        first = float(str(made["limit"].errors[0]["t"])) - cut["limit"]
        kernel = lab.guest.run("dmesg").out
        node = limit.disk.removeprefix("/dev/")
        said = re.findall(rf"\[{node}\].*(?:FAILED Result|rejecting I/O).*", kernel)
        record(limit=f"first error after {first:.0f} s: {made['limit'].errors[0]['error']}; {said[-1:]}")
        assert first > USUAL
        limit.storage.back()

        sleep_until(lab, cut["tuned"] + TUNED)
        assert tuned.status()["held"]
        tuned.storage.back()
        back = uptime(lab.guest)
        made["tuned"].wait_wrote_after(back + 1, 90)
        assert made["tuned"].errors == []
        assert made["tuned"].longest >= TUNED - 5
        record(tuned=f"{made['tuned'].longest:.0f} s, 0 errors")
        for name in ("usual", "tuned"):
            assert made[name].missing() == []


def sleep_until(lab: Lab, moment: float) -> None:
    """By the guest's clock."""
    while (left := moment - uptime(lab.guest)) > 0:
        time.sleep(min(left, 10))
