"""Another TCMU handler on this host. The kernel tells every handler of every LUN and believes whoever answers first.

tcmu-runner answers with an error for LUNs of handlers that it does not know (Debian 12 has 1.5.4; 1.6 does too).
"""

from __future__ import annotations

import os
from pathlib import Path

RUNNER = "tcmu-runner"


def find(proc: Path = Path("/proc")) -> str:
    """A sentence naming a tcmu-runner that runs; "" where there is none to be seen."""
    for comm in proc.glob("[0-9]*/comm"):
        try:
            name = comm.read_bytes().strip()
            owner = comm.stat().st_uid
        except OSError:  # ended meanwhile
            continue
        if name == RUNNER.encode() and owner in (0, os.geteuid()):  # anybody may call a process anything
            return (
                f"{RUNNER} is running (process {comm.parent.name}) and refuses every LUN that is not its own, so none"
                f" of user:retry can be made; stop it for good, `systemctl disable --now {RUNNER}`, and try again"
            )
    return ""
