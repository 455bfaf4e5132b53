"""What both pumps' parts of the kill matrix do."""

from __future__ import annotations

import os

from tests.soak.conftest import Record
from tests.vm.killing import kill_under_load
from tests.vm.lab import Lab

KILLS = int(os.environ.get("KILLS", "200"))
SEED = int(os.environ.get("SEED", "20261126"))
SECONDS = float(os.environ.get("KILL_SECONDS", "2000"))  # a part is to end within 35 minutes, whatever the machine
SETTINGS = "retry_interval=200ms;retry_max_interval=1s"


def kill_many_times(lab: Lab, record: Record, pump: str) -> None:
    """Two LUNs of one daemon, one write-through and one write-back, so that each kill hits both."""
    lab.pump = pump
    try:
        lab.begin_spares()
        lab.kill_daemon()
        lab.wait_daemon()
        caches = ("writethrough", "writeback")
        luns = [lab.lun(cache, f"{SETTINGS};cache={cache}", size=32, timeout=180) for cache in caches]
        for cache, seen in zip(caches, kill_under_load(lab, luns, KILLS, SEED, SECONDS), strict=True):
            again = f", {seen.again} unflushed changes made again" if cache == "writeback" else ""
            figures = {
                f"{pump}, {cache}": f"{seen.kills} kills, {seen.written} MiB written, {seen.adopted} commands went on,"
                f" {seen.failed} of them held{again}, {seen.busy} times BUSY, no error"
            }
            record(**figures)
            assert seen.adopted > 0
            assert seen.busy == 0
    finally:
        lab.pump = ""
        lab.begin_spares()
