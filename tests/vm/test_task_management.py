"""ABORT TASK and LUN RESET are answered at once, whatever is held, and what they name never reaches the medium."""

from __future__ import annotations

import re
import time

from tests.vm.lab import AT_ONCE, SOON, Lab


def answer_seconds(lab: Lab) -> float:
    """From ABORT TASK's arrival at the target to its answer, by the kernel's log."""
    times = re.findall(r"\[ *([0-9.]+)\] ABORT_TASK: (Found|Sending)", lab.guest.run("dmesg").out)
    assert [what for _, what in times[-2:]] == ["Found", "Sending"]
    return float(times[-1][0]) - float(times[-2][0])


def test_abort_task_is_answered_at_once_and_the_write_never_lands(lab: Lab) -> None:
    """0 s  held    6 s  the initiator aborts    at once: answered    storage back: the block is as before."""
    lun = lab.lun("abort", timeout=300)
    lun.storage.fail()
    lun.raw_write(40, "abort.log", 3)
    lun.wait_held()
    lab.wait_end("abort.log", SOON)
    assert answer_seconds(lab) < AT_ONCE
    assert lun.held() == []
    assert "task management 1" in lab.daemon_log()
    lun.storage.back()
    lun.write(50, "after", "after.log")
    assert lab.wait_end("after.log", SOON) == 0
    assert lun.storage.read(40, 1) == bytes(512)
    assert lun.storage.read(50, 1).startswith(b"after")


def test_lun_reset_is_answered_at_once_and_nothing_held_lands(lab: Lab) -> None:
    lun = lab.lun("reset", timeout=300)
    lun.storage.fail()
    for sector in (40, 41, 42):
        lun.raw_write(sector, f"reset{sector}.log", 200)
    lun.wait_held(3)
    began = time.monotonic()
    lab.guest.run(f"sg_reset --no-escalate --device {lun.generic}")
    assert time.monotonic() - began < AT_ONCE
    assert "task management 5" in lab.daemon_log()
    for sector in (40, 41, 42):
        lab.wait_end(f"reset{sector}.log", SOON)
    lun.storage.back()
    lun.write(50, "after", "after.log")
    assert lab.wait_end("after.log", SOON) == 0
    assert lun.storage.read(40, 3) == bytes(3 * 512)


def test_an_abort_does_not_wait_for_io_that_hangs(lab: Lab) -> None:
    """The storage neither fails nor returns; the kernel keeps the buffer, and a newer write is not overtaken.

    0 s  write A hangs    6 s  aborted, answered at once    write B to the same block waits    I/O returns: B wins
    """
    lun = lab.lun("hang", timeout=300)
    lun.storage.hang()
    lun.raw_write(40, "hang.log", 3)
    lab.wait_end("hang.log", SOON)
    assert answer_seconds(lab) < AT_ONCE
    lun.write(40, "newer", "newer.log")
    time.sleep(2)
    assert lab.ended("newer.log") is None
    lun.storage.go_on()
    assert lab.wait_end("newer.log", SOON) == 0
    assert lun.storage.read(40, 1).startswith(b"newer")
