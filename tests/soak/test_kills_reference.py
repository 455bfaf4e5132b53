"""SIGKILL, again and again, of a daemon with the reference pump."""

from __future__ import annotations

import pytest

from tests.soak.conftest import Record
from tests.soak.killing import kill_many_times
from tests.vm.lab import Lab


@pytest.mark.parametrize("cache", ["writethrough", "writeback"])
def test_kills_with_the_reference_pump(lab: Lab, record: Record, cache: str) -> None:
    """SIGKILL at random moments under fio's verify, storage failing, hanging or well: no error, nothing lost."""
    kill_many_times(lab, record, "reference", cache)
