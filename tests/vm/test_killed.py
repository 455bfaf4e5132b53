"""The daemon is killed, and nobody notices."""

from __future__ import annotations

from tests.vm.killing import kill_under_load
from tests.vm.lab import Lab


def test_a_killed_daemon_s_commands_go_on(lab: Lab) -> None:
    """SIGKILL under fio's verify, with storage that fails, that hangs, that works: no error, no BUSY, no age lost."""
    lun = lab.lun("killed", "retry_interval=200ms;retry_max_interval=1s", size=32, timeout=180)
    lab.ready_spare()
    seen = kill_under_load(lab, lun, 3, 20261126)
    assert seen.adopted > 0
    assert seen.failed > 0
    assert seen.busy == 0
