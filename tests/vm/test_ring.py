"""The simulated kernel, on which the fast tests rest, writes what the real one writes; a ring that nobody uses."""

from __future__ import annotations

import json
import sys
import time

from tests.recording import replay
from tests.vm.guest import ROOT
from tests.vm.lab import Lab, eventually


def test_the_simulated_kernel_writes_what_the_real_one_writes(lab: Lab) -> None:
    """Recorded anew here; the recording that the unit tests play is one of these."""
    out = lab.guest.shared / "recorded.json"
    lab.guest.run([sys.executable, f"{ROOT}/tests/vm/record.py", str(out)], timeout=200, **lab.environment)
    recording = json.loads(out.read_text())
    assert replay(recording) > 20
    kinds = {event["kind"] for event in recording["events"]}
    assert {"command", "task management", "completion", "freed"} <= kinds


def test_an_idle_lun_does_not_look_like_a_wait_for_storage(lab: Lab) -> None:
    """A wait in io_uring counts as iowait, of which people have alarms: with nothing out, nothing waits for storage."""
    lab.lun("idle")
    look = "grep -w cpu /proc/stat"
    eventually(lambda: lab.guest.look("sync; cat /sys/block/sd*/inflight | tr -d ' 0\\n'") == "", 10, "no I/O out")
    before = int(lab.guest.look(look).split()[5])
    time.sleep(3)
    waited = int(lab.guest.look(look).split()[5]) - before
    assert waited < 50, f"{waited} of 600 ticks of 10 ms"
