"""The daemon is killed, and nobody notices."""

from __future__ import annotations

from tests.vm.killing import kill_under_load
from tests.vm.lab import Lab


def test_a_killed_daemon_s_commands_go_on(lab: Lab) -> None:
    """SIGKILL under fio's verify while storage fails, and while it hangs: no error, no BUSY, commands went on."""
    lun = lab.lun("killed", "retry_interval=200ms;retry_max_interval=1s", size=32, timeout=180)
    (seen,) = kill_under_load(lab, [lun], 2, 20261126)
    assert seen.adopted > 0
    assert seen.failed > 0
    assert seen.busy == 0
