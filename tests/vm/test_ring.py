"""The simulated kernel, on which the fast tests rest, writes what the real one writes."""

from __future__ import annotations

import json
import sys

from tests.recording import replay
from tests.vm.guest import ROOT
from tests.vm.lab import Lab


def test_the_simulated_kernel_writes_what_the_real_one_writes(lab: Lab) -> None:
    """Recorded anew here; the recording that the unit tests play is one of these."""
    out = lab.guest.shared / "recorded.json"
    lab.guest.run([sys.executable, f"{ROOT}/tests/vm/record.py", str(out)], timeout=200, **lab.environment)
    recording = json.loads(out.read_text())
    assert replay(recording) > 20
    kinds = {event["kind"] for event in recording["events"]}
    assert {"command", "task management", "completion", "freed"} <= kinds
