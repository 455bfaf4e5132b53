"""Tools of the next Debian for a guest that runs this one: unpacked beside it, and run in a change root."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.soak.parts import RESULTS
from tests.vm.guest import Guest

SUITE = "trixie"
TOPS = ("dev", "proc", "run", "sys", "tmp", "etc")
CONFIGURATION = """
Dir::State "{work}/state";
Dir::State::status "/dev/null";
Dir::Cache "{work}/cache";
Dir::Etc::sourcelist "{work}/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Sandbox::User "root";
"""


def fetch(package: str) -> Path:
    """A root directory with a package and all that it needs, made once."""
    work = RESULTS / SUITE
    root = work / package
    if (root / "made").exists():
        return root
    for directory in ("state/lists/partial", "cache/archives/partial", *(f"{package}/{top}" for top in TOPS)):
        (work / directory).mkdir(parents=True, exist_ok=True)
    (work / "sources.list").write_text(f"deb http://deb.debian.org/debian {SUITE} main\n")
    (work / "apt.conf").write_text(CONFIGURATION.format(work=work))
    apt = ["env", f"APT_CONFIG={work}/apt.conf", "apt-get", "-qq"]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "-y", "--no-install-recommends", "--download-only", package], check=True)
    for archive in (work / "cache/archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        if not (root / link).exists():
            (root / link).symlink_to(f"usr/{link}")
    (root / "made").touch()
    return root


def install(guest: Guest, package: str, configuration: str, *programs: str) -> None:
    """In the guest these programs are the newer ones from now on, with a configuration file of the guest."""
    root = fetch(package)
    own = root / configuration.removeprefix("/")
    own.touch()
    mounts = "; ".join(f"mount --rbind /{top} {root}/{top}" for top in TOPS[:4])
    guest.run(f"{mounts}; mount --bind {configuration} {own}; mkdir -p /usr/local/sbin")
    for program in programs:
        guest.run(
            f"printf '#!/bin/sh\\nexec chroot {root} /usr/sbin/{program} \"$@\"\\n' > /usr/local/sbin/{program};"
            f" chmod +x /usr/local/sbin/{program}; hash -r"
        )
