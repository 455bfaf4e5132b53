"""The simulated kernel writes what the real one wrote (`tests/vm/test_ring.py` records it anew on every run)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.recording import replay

RECORDING: dict[str, Any] = json.loads((Path(__file__).parent / "recorded.json").read_text())


def test_the_simulated_kernel_writes_what_the_real_one_wrote() -> None:
    entries = [event for event in RECORDING["events"] if event["kind"] in ("command", "task management")]
    assert replay(RECORDING) == len(entries)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("command", "id", 77), ("command", "cdb_at", 8), ("command", "length", 8), ("task management", "length", 8)],
)
def test_a_difference_is_noticed(kind: str, field: str, value: int) -> None:
    changed = copy.deepcopy(RECORDING)
    next(event for event in changed["events"] if event["kind"] == kind)[field] = value
    with pytest.raises(AssertionError):
        replay(changed)
