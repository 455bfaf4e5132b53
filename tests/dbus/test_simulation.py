"""`tcmu-retryd --sim` plays a script, as a person would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
lun vm1 8M retry_interval=200ms
0s   vm1 load 100
1s   vm1 error ENOLINK
120s vm1 ok
"""


def daemon(*arguments: str, bus: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tcmu_retry.retryd", *arguments],
        env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": bus},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_is_played_and_the_end_of_the_daemon_waits_for_nothing(bus: str, tmp_path: Path) -> None:
    script = tmp_path / "outage.sim"
    script.write_text(SCRIPT)

    def status() -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "tcmu_retry.cli.main", "--json", "device", "list"],
            env={**os.environ, "TCMU_RETRY_BUS_ADDRESS": bus},
            capture_output=True,
            text=True,
            check=False,
        )
        found: list[dict[str, object]] = json.loads(done.stdout)["devices"] if done.returncode == 0 else []
        return found[0] if found else {"held": 0}

    with daemon("--sim", str(script), bus=bus) as process:
        until = time.monotonic() + 30
        while not (shown := status())["held"]:
            assert time.monotonic() < until
        assert "down" in (shown["read"]["state"], shown["write"]["state"])  # type: ignore[index]
        process.terminate()
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0, said
    assert "export TCMU_RETRY_BUS_ADDRESS=" in said
    assert "Traceback" not in said


def test_a_bad_script_is_a_sentence(bus: str, tmp_path: Path) -> None:
    script = tmp_path / "bad.sim"
    script.write_text("lun vm1 8M\n5s vm2 ok\n")
    for path, words in ((str(script), "bad.sim: line 2 (5s vm2 ok)"), ("/nothing", "cannot be read")):
        with daemon("--sim", path, bus=bus) as process:
            _, said = process.communicate(timeout=20)
        assert process.returncode == 2
        assert words in said
        assert said.count("\n") == 1
