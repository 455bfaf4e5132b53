"""How long an initiator waits, and what ends it."""

from __future__ import annotations

import json
import re
import time

from tests.soak.conftest import Record
from tests.vm.lab import Lab, Lun, eventually
from tests.vm.writing import Writer, uptime, writers

USUAL, TUNED, GIVES_UP = 360, 900, 700
LIO_WINDOW = 64  # default_cmdsn_depth where nobody sets it


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


def test_360_s_with_32_commands_in_flight(lab: Lab, record: Record) -> None:
    """32 writes in flight, unmodified: 360 s without an error; with LIO's own window of 64 the disk goes offline.

    0 s  storage of both fails    > 120 s  `narrow`: 64 commands were aborted, its window is closed, the disk offline
    360 s  `wide` is back: it writes on, though more commands were aborted than a window of 128 has places
    """
    initiator = lab.guest.run("sed -n s/^InitiatorName=//p /etc/iscsi/initiatorname.iscsi").out.strip()
    wide, narrow = (lab.export(lab.storage(name, 96), "", "--initiator", initiator) for name in ("wide", "narrow"))
    acl = f"/sys/kernel/config/target/iscsi/{narrow.iqn}/tpgt_1/acls/{initiator}"
    lab.guest.run(f"echo {LIO_WINDOW} > {acl}/cmdsn_depth")
    for lun in (wide, narrow):
        lun.login()
        lab.guest.start(
            f"fio --name={lun.name} --filename={lun.disk} --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite"
            " --bs=4k --size=64M --time_based --runtime=7200; echo end $?",
            f"{lun.name}.log",
        )
    eventually(lambda: all(lun.status()["in_flight"] for lun in (wide, narrow)), 120, "both write")
    for lun in (wide, narrow):
        lun.storage.fail()
    cut = uptime(lab.guest)
    wide.wait_held(32)

    code = lab.wait_end("narrow.log", USUAL)
    offline = uptime(lab.guest) - cut
    assert code != 0
    assert f"[{narrow.disk[5:]}] " in (said := lab.guest.run("dmesg | grep 'offlined'; true").out), said
    assert f"window of {initiator}" in "".join(link["setting"] for link in wrong(lab, narrow))
    record(narrow=f"window of {LIO_WINDOW}: offline after {offline:.0f} s")

    sleep_until(lab, cut + USUAL)
    assert lab.ended("wide.log") is None, lab.log("wide.log")[-2000:]
    wide.storage.back()
    eventually(lambda: not wide.status()["held"] and wide.state() == "online", 120, "nothing is held")
    [window] = [link for link in chain(lab, wide) if link["where"] == "session"]
    left = int(str(window["value"]).split(", ")[1].removesuffix(" left"))
    assert left < 512 - 128, window
    record(wide=f"window of 512: {USUAL} s, 0 errors, {left} places left")
    time.sleep(10)
    assert lab.ended("wide.log") is None, lab.log("wide.log")[-2000:]
    lab.guest.run("pkill -INT -x fio; true")
    assert lab.wait_end("wide.log", 120) in (0, 130)
    assert "err= 0" in lab.log("wide.log")


def chain(lab: Lab, lun: Lun) -> list[dict[str, object]]:
    """What doctor sees; it ends with status 1 where something is wrong."""
    links: list[dict[str, object]] = json.loads(lab.call("--json", "doctor", lun.name).out)["chains"][0]["links"]
    return links


def wrong(lab: Lab, lun: Lun) -> list[dict[str, object]]:
    return [link for link in chain(lab, lun) if link["wrong"]]


def sleep_until(lab: Lab, moment: float) -> None:
    """By the guest's clock."""
    while (left := moment - uptime(lab.guest)) > 0:
        time.sleep(min(left, 10))
