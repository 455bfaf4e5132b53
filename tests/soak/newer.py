"""Programs of the next Debian for a guest that runs this one: unpacked beside it, and run in a change root."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.soak.parts import RESULTS
from tests.vm.guest import Guest

SUITE = "trixie"
SHARED = ("dev", "proc", "run", "sys", "tmp")
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
    work = RESULTS / SUITE / package
    root = work / "root"
    made = work / "made"
    if made.exists():
        return root
    for directory in ("state/lists/partial", "cache/archives/partial", "root/etc", *(f"root/{top}" for top in SHARED)):
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
    made.touch()
    return root


def install(guest: Guest, package: str, *programs: str) -> Path:
    """In the guest these programs of /usr/sbin are the newer ones from now on. Their root, whose /etc is empty."""
    root = fetch(package)
    shares = "; ".join(f"mount --rbind /{top} {root}/{top}" for top in SHARED)
    guest.run(f"{shares}; mount -t tmpfs none {root}/etc; mkdir -p /run/newer")
    for program in programs:
        guest.run(
            f"printf '#!/bin/sh\\nexec chroot {root} /usr/sbin/{program} \"$@\"\\n' > /run/newer/{program}"
            f" && chmod +x /run/newer/{program} && mount --bind /run/newer/{program} /usr/sbin/{program}"
        )
    return root


def remove(guest: Guest, package: str, *programs: str) -> None:
    """The guest has its own programs back."""
    root = fetch(package)
    places = [*(f"/usr/sbin/{program}" for program in programs), *(f"{root}/{top}" for top in (*SHARED, "etc"))]
    guest.run("; ".join(f"mount --make-rslave {place}; umount -lR {place}" for place in places), check=False)
