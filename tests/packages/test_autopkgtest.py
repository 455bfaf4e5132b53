"""What Debian runs against the installed packages, against what is in them: Debian's Python, libraries and pytest."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tcmu_retry import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_the_d_bus_tier_passes_with_debian_s_libraries(tmp_path: Path) -> None:
    for name in (f"tcmu-retry_{__version__}_amd64.deb", f"targetcli-retry_{__version__}_all.deb"):
        subprocess.run(["dpkg-deb", "--extract", ROOT / "build/dist" / name, tmp_path / "root"], check=True)
    (tmp_path / "work").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        [ROOT / "packaging/debian/tests/dbus-tier"],
        cwd=ROOT,
        env={
            **environment,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(tmp_path / "root/usr/lib/python3/dist-packages"),
            "AUTOPKGTEST_TMP": str(tmp_path / "work"),
        },
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 60, done.stdout
