"""What is in the Debian packages; and they, put onto a copy of this machine's files and purged again."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import tcmu_retry

ROOT = Path(__file__).resolve().parents[2]
NAMES = (f"tcmu-retry_{tcmu_retry.__version__}_amd64.deb", f"targetcli-retry_{tcmu_retry.__version__}_all.deb")
PACKAGES = [ROOT / "build/dist" / name for name in NAMES]
# A machine that runs systemd, as far as maintainer scripts look, and lets no package start or stop a unit.
LIFE = """
mount -t tmpfs tmpfs "$1" && mkdir "$1"/{upper,work,new} && new=$1/new
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$new"
mount -t proc proc "$new/proc" && mount --bind /dev "$new/dev"
mount -t tmpfs tmpfs "$new/run" && mkdir -p "$new/run/systemd/system"
mount -t tmpfs tmpfs "$new/tmp" && cp "${@:2}" "$new/tmp"
printf '#!/bin/sh\\nexit 101\\n' > "$new/usr/sbin/policy-rc.d" && chmod +x "$new/usr/sbin/policy-rc.d"
left() { (cd "$1/upper" && find . -path '*tcmu*retry*' -o -path '*targetcli*retry*') | grep -v "^.$1"; }
chroot "$new" sh -c 'apt-get install -yq --no-install-recommends /tmp/*.deb && tcmu-retry --version' >&2
left "$1" | grep -q bin/tcmu-retryd
chroot "$new" apt-get purge -yq tcmu-retry targetcli-retry >&2
left "$1" || true
"""


def test_a_purge_leaves_no_file_behind(tmp_path: Path) -> None:
    """Compiled Python neither, whatever a maintainer script runs between py3clean and the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-euc", LIFE, "life", tmp_path, *PACKAGES],
        env={**environment, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", done.stderr


def test_what_the_pump_is_built_from_is_not_in_it() -> None:
    listed = subprocess.run(["dpkg-deb", "--contents", PACKAGES[0]], capture_output=True, text=True, check=True).stdout
    assert "native/core.cpython" in listed
    assert not re.findall(r"\S+\.(?:c|h|pyx)$", listed, re.MULTILINE)
