"""What follows when retrying is over is what the policy says and what the initiator sees."""

from __future__ import annotations

import re
import time

from tests.vm.lab import SOON, Lab, Lun, eventually

PATH_SENSE = "2/04/03"
READONLY_SENSE = "7/27/00"
NO_SPACE_SENSE = "7/27/07"


def sense_of(lun: Lun, *, write: bool, sector: int = 0) -> str:
    """What a command of our own, past sd and its retries, is answered: "GOOD" or KEY/ASC/ASCQ."""
    cdb = f"{'2a' if write else '28'} 00 {sector:08x} 00 0001 00"
    digits = " ".join(re.findall("..", cdb.replace(" ", "")))
    data = "-s 512 -i /dev/zero" if write else "-r 512"
    result = lun.lab.guest.run(f"sg_raw -t 200 -vv {data} {lun.generic} {digits}", check=False, timeout=240)
    text = result.out + result.err
    if match := re.search(r"Raw sense data.*?:?\s*\n\s*(?:00\s+)?((?:[0-9a-f]{2}\s+)+)", text):
        raw = bytes.fromhex("".join(match[1].split()))
        return f"{raw[2] & 15:x}/{raw[12]:02x}/{raw[13]:02x}"
    assert result.code == 0, text
    return "GOOD"


def test_report_answers_with_the_class_s_sense_after_the_time_out(lab: Lab) -> None:
    """0 s  storage fails    3 s  time-out: 02/04/03, which lets multipath fail over    then new ones at once"""
    lun = lab.lun("report", "retry_timeout=3s;fallback=report", timeout=300)
    lun.storage.fail()
    began = time.monotonic()
    assert sense_of(lun, write=True) == PATH_SENSE
    assert 2.5 < time.monotonic() - began < SOON
    lun.storage.back()
    eventually(lambda: sense_of(lun, write=True) == "GOOD", SOON, "GOOD after the storage is back")


def test_report_as_chooses_the_sense(lab: Lab) -> None:
    lun = lab.lun("reportas", "retry=false", timeout=300)
    lun.storage.fail()
    for word, write, sense in (
        ("medium", True, "3/0c/00"),
        ("medium", False, "3/11/00"),
        ("target", True, "4/44/00"),
        ("no-space", True, NO_SPACE_SENSE),
        ("path", False, PATH_SENSE),
        ("gone", True, "5/25/00"),
    ):
        lun.policy(f"report_as={word}")
        assert sense_of(lun, write=write) == sense, word


def test_stop_holds_until_a_person_resumes(lab: Lab) -> None:
    """0 s  fails    2 s  time-out: stopped, held    storage back: still held    resume: GOOD"""
    lun = lab.lun("stop", "retry_timeout=2s;fallback=stop", timeout=300)
    lun.storage.fail()
    lun.write(5, "stop", "stop.log")
    eventually(lambda: lun.state() == "stopped", SOON, "stopped")
    lun.storage.back()
    time.sleep(3)
    assert lab.ended("stop.log") is None
    assert lun.held()[0]["waits_for"] == "resume"
    lab.cli("device", "resume", "stop")
    assert lab.wait_end("stop.log", SOON) == 0
    assert lun.storage.read(5, 1).startswith(b"stop\n")
    assert lun.state() == "online"


def test_readonly_refuses_writes_and_serves_reads(lab: Lab) -> None:
    lun = lab.lun("readonly", "write.retry_timeout=2s;write.fallback=readonly", timeout=300)
    lun.storage.fail()
    assert sense_of(lun, write=True) == READONLY_SENSE
    lun.storage.back()
    assert sense_of(lun, write=True) == READONLY_SENSE  # untried, until a person resumes
    assert sense_of(lun, write=False) == "GOOD"
    lab.cli("device", "resume", "readonly")
    assert sense_of(lun, write=True) == "GOOD"


def test_offline_refuses_both_directions(lab: Lab) -> None:
    lun = lab.lun("offline", "retry_timeout=2s;fallback=offline", timeout=300)
    lun.storage.fail()
    assert sense_of(lun, write=True) == PATH_SENSE
    lun.storage.back()
    assert sense_of(lun, write=False) == PATH_SENSE
    assert sense_of(lun, write=True) == PATH_SENSE
    lab.cli("device", "resume", "offline")
    assert sense_of(lun, write=False) == "GOOD"
    assert sense_of(lun, write=True) == "GOOD"


def test_a_person_can_fail_what_is_held(lab: Lab) -> None:
    lun = lab.lun("fail", timeout=300)
    lun.storage.fail()
    lun.write(5, "fail", "fail.log")
    lun.wait_held()
    [command] = lun.held()
    assert lab.call("queue", "fail", "fail").code == 2
    lab.cli("queue", "fail", "fail", str(command["serial"]))
    # sd sends it again five times after 02/04/03; each is held again until failed
    eventually(lambda: lab.call("queue", "fail", "fail", "--all") and lab.ended("fail.log"), SOON, "EIO")
