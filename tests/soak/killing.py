"""What both pumps' parts of the kill matrix do."""

from __future__ import annotations

import os

from tests.soak.conftest import Record
from tests.vm.killing import kill_under_load
from tests.vm.lab import Lab, eventually

KILLS = int(os.environ.get("KILLS", "200"))
SEED = 20261126
SETTINGS = "retry_interval=200ms;retry_max_interval=1s"


def kill_many_times(lab: Lab, record: Record, pump: str, cache: str) -> None:
    lab.pump = pump
    try:
        lab.begin_spares()
        lab.kill_daemon()
        eventually(lambda: not lab.call("device", "list").code, 60, "tcmu-retryd on the bus")
        lun = lab.lun("killed", f"{SETTINGS};cache={cache}", size=32, timeout=180)
        seen = kill_under_load(lab, lun, KILLS, SEED)
        assert seen.adopted > 0
        assert seen.busy == 0
        figures = {
            f"{pump}, {cache}": f"{seen.kills} kills, {seen.adopted} commands went on, {seen.failed} of them held,"
            " no error, no BUSY"
        }
        record(**figures)
    finally:
        lab.pump = ""
        lab.begin_spares()
