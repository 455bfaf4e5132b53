"""How long an initiator waits, and what ends it."""

from __future__ import annotations

import json
import re
import time

from tests.soak.conftest import Record
from tests.soak.test_flapping import INTERRUPTED
from tests.vm.lab import Lab, Lun, eventually
from tests.vm.writing import Writer, uptime, writers

USUAL, TUNED, GIVES_UP = 480, 900, 800
LIO_WINDOW = 64  # default_cmdsn_depth where nobody sets it
PLACES = 4


def tune(lab: Lab, lun: Lun) -> None:
    """As packaging/udev and docs/initiators.md have it."""
    node = lun.disk.removeprefix("/dev/")
    lab.guest.run(
        f"echo 86400 > /sys/block/{node}/device/timeout;"
        f" for f in /sys/block/{node}/device/scsi_disk/*/max_retries; do echo -1 > $f; done"
    )


def test_an_outage_of_480_s_unmodified_900_s_tuned_and_the_limit(lab: Lab, record: Record) -> None:
    """ext4 and a fsync writer: 480 s unmodified, 900 s tuned without an error; the limit unmodified.

    0 s  storage of three LUNs fails    60 s to 90 s  ABORT TASK, then LOGICAL UNIT RESETs, answered late
    480 s  `usual` is back    > 480 s  `limit` sees its first error    900 s  `tuned` is back
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

        eventually(lambda: waits_for_its_answer(usual), 100, "an aborted command among what is held")
        sleep_until(lab, cut["usual"] + USUAL)
        usual.storage.back()
        back = uptime(lab.guest)
        made["usual"].wait_wrote_after(back + 1, 60)
        assert made["usual"].errors == []
        assert made["usual"].longest >= USUAL - 5
        assert made["usual"].writable
        assert new_logins(lab) == 0, "no answer came later than the initiator waits for it"
        record(unmodified=f"{made['usual'].longest:.0f} s, 0 errors, 0 new logins")

        when, said = eventually(lambda: gave_up(limit), GIVES_UP - USUAL, "the initiator gives up")
        record(limit=f"first command given up after {when - cut['limit']:.0f} s: {said}")
        assert when - cut["limit"] > USUAL
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


def test_480_s_with_32_commands_in_flight(lab: Lab, record: Record) -> None:
    """32 writes in flight, unmodified, for 480 s: no error in a window of 512, nor in LIO's own of 64.

    0 s  storage of both fails    60 s  the 32 are aborted one after the other, each answered 12.5 s later
    480 s  it is back: both write on
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
    for lun in (wide, narrow):
        eventually(lambda lun=lun: lun.status()["in_flight"], 120, f"{lun.name} writes")
        lun.storage.fail()
    cut = uptime(lab.guest)
    for lun in (wide, narrow):
        lun.wait_held(32, 60)

    sleep_until(lab, cut + USUAL)
    left = {lun.name: places(lab, lun) for lun in (wide, narrow)}
    logins = new_logins(lab)
    for lun in (wide, narrow):
        lun.storage.back()
    for lun in (wide, narrow):
        eventually(lambda lun=lun: not lun.status()["held"] and lun.state() == "online", 120, f"{lun.name} goes on")
    time.sleep(10)
    for lun in (wide, narrow):
        assert lab.ended(f"{lun.name}.log") is None, lab.log(f"{lun.name}.log")[-2000:]
    lab.interrupt_fio()
    for lun in (wide, narrow):
        assert lab.wait_end(f"{lun.name}.log", 120) == INTERRUPTED
        assert "err= 0" in lab.log(f"{lun.name}.log")
    for lun, window in ((wide, 512), (narrow, LIO_WINDOW)):
        record(**{lun.name: f"window of {window}: {USUAL} s, 0 errors, {left[lun.name]} places left"})
    record(new_logins=logins)
    assert logins == 0, "no answer came later than the initiator waits for it"


def test_a_window_that_aborts_have_closed_is_opened_by_a_new_login(lab: Lab, record: Record) -> None:
    """First tries are aborted, and with them the window's last places are gone: the initiator does not wait for ever.

    0 s  4 writes are held, in a window of 4    16 s to 24 s  all are aborted (sd's time-out is 8 s here): nothing is
    open and nothing can be sent    10 s to 15 s later  the session is ended, it logs in again and sends the 4 writes
    storage back: GOOD
    """
    initiator = lab.guest.run("sed -n s/^InitiatorName=//p /etc/iscsi/initiatorname.iscsi").out.strip()
    lun = lab.export(lab.storage("closed"), "retry_interval=500ms", "--initiator", initiator)
    acl = f"/sys/kernel/config/target/iscsi/{lun.iqn}/tpgt_1/acls/{initiator}"
    lab.guest.run(f"echo {PLACES} > {acl}/cmdsn_depth")
    lun.login(timeout=8)
    lun.storage.fail()
    for sector in range(PLACES):
        lun.write(sector * 8, "again", f"closed{sector}.log")
    lun.wait_held(PLACES)
    eventually(lambda: not lun.status()["held"], 40, "all are aborted")
    began = uptime(lab.guest)
    eventually(lambda: lun.status()["held"] == PLACES, 40, "they are sent again")
    record(closed=f"held again {uptime(lab.guest) - began:.0f} s after the last place was gone")
    assert f"command window of {initiator}; its session was ended" in lab.daemon_log()
    lun.storage.back()
    for sector in range(PLACES):
        assert lab.wait_end(f"closed{sector}.log", 30) == 0
    assert lun.storage.read(0, 1).startswith(b"again")


def places(lab: Lab, lun: Lun) -> int:
    """What doctor says is left of the window of its one session; doctor ends with status 1 where something is wrong."""
    links = json.loads(lab.call("--json", "doctor", lun.name).out)["chains"][0]["links"]
    [value] = [link["value"] for link in links if link["where"] == "session"]
    return int(value.split(", ")[1].removesuffix(" left"))


def waits_for_its_answer(lun: Lun) -> bool:
    return any(command["waits_for"] == "abort" for command in lun.held())


def gave_up(lun: Lun) -> tuple[float, str] | None:
    """When its initiator gave the first write up (uptime), and the kernel's words; read ahead has only one try."""
    node = lun.disk.removeprefix("/dev/")
    failed = rf"^\[ *([\d.]+)\] .*\[{node}\] (tag#\d+) (FAILED Result: hostbyte=DID_ERROR.*)\n"
    found = re.search(
        rf"{failed}.*\[{node}\] \2 CDB: (?:Write|Synchronize)", lun.lab.guest.run("dmesg").out, re.MULTILINE
    )
    return (float(found[1]), found[3]) if found else None


def new_logins(lab: Lab) -> int:
    """How often an initiator lost a session and logged in anew."""
    return int(lab.guest.run("dmesg | grep -c 'detected conn error'; true").out)


def sleep_until(lab: Lab, moment: float) -> None:
    """By the guest's clock."""
    while (left := moment - uptime(lab.guest)) > 0:
        time.sleep(min(left, 10))
