"""The commands of the pages, run as they stand there: a daemon whose kernel is simulated, an outage, a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.dbus.conftest import World
from tests.shown import ROOT, SIMULATED, commands

MODULES = {"tcmu-retry": "tcmu_retry.cli.main", "tcmu-retryd": "tcmu_retry.retryd"}
LIVE = re.compile(r"^(tcmu-retry (?:watch|.* --follow)).*", re.MULTILINE)  # until ^C, and then 130
END = r"timeout --preserve-status --signal=INT 2 \1 || [ $? = 130 ]"


def test_what_the_pages_show_can_be_pasted(world: World, tmp_path: Path) -> None:
    """Each line ends well, a live view by ^C. vm1 has lost its storage and holds a write."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in MODULES.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    world.lun("vm1")
    world.away.touch()
    world.write("vm1", 0)
    world.held("vm1", 1)
    world.sampled("vm1", 2)
    for block in (block for page, section in sorted(SIMULATED) for block in commands(page, section)):
        done = subprocess.run(
            ["bash"],  # which reads a line at a time: a shell that one of them starts reads on
            input=LIVE.sub(END, block.text),
            env={
                **os.environ,
                "PATH": f"{programs}:{os.environ['PATH']}",
                "SHELLOPTS": "errexit",
                "TCMU_RETRY_BUS_ADDRESS": world.address,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
