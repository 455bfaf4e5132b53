"""A ratchet of libiscsi's suite: the suites of the commands that a host uses most. `make conformance` runs it all."""

from __future__ import annotations

from tests.conformance import expected, luns, suite
from tests.vm.lab import Lab

SUITES = ("ExtendedCopy", "Inquiry", "ModeSense6", "ReadCapacity16", "ReadOnly", "StartStopUnit", "TestUnitReady")


def test_what_passed_once_passes(lab: Lab) -> None:
    """On two paths of a write-protected LUN and of a writable one; what does not pass must be listed with a reason."""
    names = [name for name in suite.names(lab.guest) if name.partition(".")[0] in SUITES]
    writable = [name for name in names if not name.startswith("ReadOnly.")]
    outcomes = suite.run(lab.guest, luns.ours(lab, "suite"), writable, "suite")
    outcomes |= suite.run(lab.guest, luns.ours(lab, "readonly", "read_only=true"), sorted({*names} - {*writable}), "ro")
    known = expected.FAILS | expected.SKIPS
    wrong = {name: outcome for name, outcome in outcomes.items() if outcome.verdict != "pass" and name not in known}
    assert not wrong
    assert sum(outcome.verdict == "pass" for outcome in outcomes.values()) >= 22
