"""SIGKILL, again and again, of a daemon with the reference pump."""

from __future__ import annotations

import pytest

from tests.soak.conftest import Record
from tests.soak.killing import kill_200_times
from tests.vm.lab import Lab


@pytest.mark.parametrize("cache", ["writethrough", "writeback"])
def test_200_kills_with_the_reference_pump(lab: Lab, record: Record, cache: str) -> None:
    """200 SIGKILLs under fio's verify, every second one in an outage: no error at the initiator, nothing lost."""
    kill_200_times(lab, record, "reference", cache)
