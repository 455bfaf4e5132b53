"""The commands that README shows, pasted into a guest as a new user would."""

from __future__ import annotations

import re
import shlex
import time

from tests.shown import commands
from tests.soak.parts import RESULTS
from tests.vm.guest import ROOT, GuestError
from tests.vm.systemd import SystemdGuest

WHEELS = RESULTS / "wheels"
# No network: what pip would fetch lies in a directory. Its own settings are this machine's. An emulated processor would
# compile for minutes what is never imported.
PIP = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS), "PIP_CONFIG_FILE": "/dev/null", "PIP_COMPILE": "0"}
INSTALL, EXPORT, LOGIN, OUTAGE, REMOVE, USED, TARGETCLI, LATER, RETRY = range(9)


def blocks() -> list[str]:
    """README's way to a LUN of one's own, a block each."""
    return [each.text for each in commands("README.md", "Your own LUN in five minutes", "With targetcli")]


def live() -> list[str]:
    """What is to be run in another terminal, until ^C."""
    sentence = re.findall(r"In another terminal(.*?):\n", (ROOT / "README.md").read_text(), re.DOTALL)
    return re.findall(r"`(tcmu-retry [^`]*)`", sentence[0])


class Reader:
    """Pastes what the page shows, a block at a time, and looks at the clock."""

    def __init__(self, guest: SystemdGuest) -> None:
        self.guest = guest
        self.seconds: dict[int, float] = {}

    def paste(self, number: int, block: str) -> str:
        """What it prints; each line must end well. Raises GuestError."""
        log = self.guest.shared / "pasted.log"  # which has what was said, too, by what never ended
        before = log.stat().st_size if log.exists() else 0
        lines = ["set -e", f"cd {ROOT}", f"exec >> {log} 2>&1"]
        for line in block.splitlines():
            lines += [f"echo {shlex.quote('$ ' + line)}", line]
        began = time.monotonic()
        done = self.guest.run("\n".join(lines), timeout=3000, check=False, **PIP)
        self.seconds[number] = time.monotonic() - began
        said = log.read_bytes()[before:].decode()
        with log.open("a") as more:
            more.write(f"\n@ {self.seconds[number]:.1f} s\n\n")
        if done.code:
            raise GuestError(f"{said}\n-> {done.code} {done.err}")
        return said
