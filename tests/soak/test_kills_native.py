"""SIGKILL, again and again, of a daemon with the native pump."""

from __future__ import annotations

from tests.soak.conftest import Record
from tests.soak.killing import kill_many_times
from tests.vm.lab import Lab


def test_kills_with_the_native_pump(lab: Lab, record: Record) -> None:
    """SIGKILL at random moments under fio's verify, storage failing, hanging or well: no error, nothing lost."""
    kill_many_times(lab, record, "native")
