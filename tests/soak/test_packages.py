"""The Debian packages' life on a machine that never had them, with Debian's own Python: installed, used as README says,
upgraded by apt while a LUN is written to, restarted, purged.

The initiators are the machine itself, as README shows, and QEMU's, on this side of the guest's network: it sends again
what is answered BUSY.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.shown import commands
from tests.soak.conftest import Record
from tests.soak.pasting import EXPORT, LOGIN, OUTAGE, REMOVE, USED, Reader, blocks
from tests.vm.guest import ROOT, kvm_works
from tests.vm.lab import eventually
from tests.vm.systemd import SystemdGuest

VERSION = "busctl get-property org.tcmu.Retry1 /org/tcmu/Retry1/manager org.tcmu.Retry1.Manager Version"
OLD, NEW = "0.1.0", "0.1.1"
WRITES = 50  # at a time
DIST = ROOT / "build/dist"
PACKED = ("tcmu_retry", "targetcli-plugin", "packaging", "meson.build", "pyproject.toml")
# This machine's rule that packages start nothing is not the guest's; mandb is left out, it reads every page there is.
# Where the guest is emulated a daemon has taken more than a minute to start; QEMU sends BUSY again for less than that.
# apt has one source, without a signature: a directory that the test puts packages into.
PREPARE = """
rm -rf "$new"/etc/apt/sources.list* "$new"/var/lib/apt/lists "$new"/var/cache/apt/*.bin
echo "deb [trusted=yes] file:$shared/repository ./" > "$new/etc/apt/sources.list"
mkdir -p "$new/var/lib/apt/lists/partial"
rm -f "$new/usr/sbin/policy-rc.d" "$new/var/lib/man-db/auto-update"
mkdir -p "$units/tcmu-retryd.service.d" "$units/tcmu-retry-unfreeze.service.d"
printf '[Service]\\nTimeoutStartSec=300\\n' > "$units/tcmu-retryd.service.d/slow.conf"
cat > "$units/tcmu-retry-unfreeze.service.d/slow.conf" <<'END'
[Service]
ExecStart=
ExecStart=sleep 240
ExecStart=/usr/bin/tcmu-retryd --unfreeze
TimeoutStartSec=400
END
"""
# What a machine writes while it runs, whoever is installed.
OTHERS = re.compile(
    r"/(var/log|var/cache|var/backups|var/tmp|var/lib/(apt|dpkg|systemd|polkit-1|iscsi|PackageKit)|tmp|root|etc/(iscsi|ld.so.cache|\.updated))\b"
    r"|/usr/share/(mime|man)/|/etc/rtslib-fb-target|/__pycache__|/lost\+found"
)


def build(version: str) -> list[Path]:
    """The packages of a version; made anew if a source is younger."""
    packages = [DIST / f"tcmu-retry_{version}_amd64.deb", DIST / f"targetcli-retry_{version}_all.deb"]
    sources = subprocess.run(["git", "ls-files", *PACKED], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    changed = max((ROOT / source).stat().st_mtime for source in sources.splitlines())
    if not all(package.exists() and package.stat().st_mtime > changed for package in packages):
        subprocess.run([ROOT / "packaging/build.sh", sys.executable, version, "deb"], check=True)
    return packages


def offer(guest: SystemdGuest, packages: list[Path]) -> None:
    """These are what the guest's apt can have."""
    repository = guest.shared / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    for package in packages:
        shutil.copy(package, repository)
    with (repository / "Packages").open("wb") as index:
        subprocess.run(["dpkg-scanpackages", "."], cwd=repository, stdout=index, check=True)
    apt(guest, "update")


def apt(guest: SystemdGuest, command: str) -> str:
    """What it says."""
    return guest.run(f"apt-get {command} 2>&1", timeout=900, DEBIAN_FRONTEND="noninteractive").out


class Writer:
    """Writes at the LUN again and again, from outside; whoever sees an error ends.

    Not as fast as it can: the LUN would take what apt needs of an emulated processor.
    """

    def __init__(self, target: str) -> None:
        self.rounds = 0
        self.error = ""
        self.longest = 0.0
        self._target = target
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        command = [
            "qemu-img", "bench", "-f", "raw", "-w", "-c", str(WRITES), "-d", "4", "-s", "4096",
            "-t", "none", self._target,
        ]  # fmt: skip
        while not self._end.is_set() and not self.error:
            began = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            self.longest = max(self.longest, time.monotonic() - began)
            self.rounds += 1
            if done.returncode:
                self.error = done.stdout + done.stderr
            self._end.wait(1)

    def goes_on(self) -> None:
        before = self.rounds
        eventually(lambda: self.rounds > before + 1 or self.error, 120, "writes")
        assert not self.error, self.error

    def end(self) -> None:
        self._end.set()
        self._thread.join(180)
        assert not self._thread.is_alive(), "a write never ended"


@pytest.fixture(scope="module")
def guest() -> Iterator[SystemdGuest]:
    build(OLD)
    guest = SystemdGuest("packages", disks=0, forward=3260, prepare=PREPARE)
    try:
        yield guest
    finally:
        guest.close()


def written(guest: SystemdGuest) -> set[str]:
    """Files that the guest has written and that are still there, and directories that this machine has not."""
    root = "$(for disk in /sys/block/vd*; do [ $(cat $disk/serial) = root ] && echo /dev/${disk##*/}; done)"
    listed = guest.run(
        f"mkdir -p /run/upper && mount {root} /run/upper && find /run/upper/upper -mindepth 1 -printf '%y /%P\\n';"
        " umount /run/upper; rmdir /run/upper",
        timeout=120,
    ).out
    found = {line[2:] for line in listed.splitlines() if line[0] != "d" or not Path(line[2:]).is_dir()}
    return {path for path in found if not OTHERS.search(path) or re.search(r"tcmu.retry|targetcli.retry", path)}


def show(guest: SystemdGuest, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(guest.run(["tcmu-retry", "--json", *arguments], timeout=120).out)
    return answer


def unit(guest: SystemdGuest, name: str) -> str:
    return guest.run(f"systemctl show --value -p {name} tcmu-retryd").out.strip()


def version(guest: SystemdGuest) -> str:
    """The running daemon's."""
    return guest.run(VERSION, timeout=120).out.split('"')[1]


def renew(guest: SystemdGuest, command: str) -> str:
    """Have the new daemon take over as the page says; what the command says of it."""
    done = guest.run(command, timeout=400, check=False)
    if done.code:  # it waits for a minute, in which an emulated processor may not have started Python
        assert "after it was restarted" in done.err, done
        assert not kvm_works()
    eventually(lambda: guest.look(f"{VERSION} | grep -F '\"{NEW}\"'"), 300, "the new daemon")
    return " ".join((done.out or done.err).split())


@pytest.fixture(scope="module")
def before(guest: SystemdGuest) -> set[str]:
    """What it had written when it knew nothing of the packages."""
    return written(guest)


def test_installed_and_used_as_readme_says(guest: SystemdGuest, before: set[str], record: Record) -> None:
    """apt's packages on a clean Debian 12, with its own Python: the unit runs, and README's five-minute path passes."""
    reader = Reader(guest)
    install = commands("docs/packages.md", "Debian")[0]
    reader.paste(0, install.text.replace("apt install", "apt install -y"))
    installing = reader.seconds.pop(0)
    eventually(lambda: unit(guest, "ActiveState") == "active", 300, "the unit, started by its package")
    assert guest.run("head -c 18 /usr/bin/tcmu-retryd").out.startswith("#!/usr/bin/python3")
    assert version(guest) == OLD

    pasted = blocks()
    for number in (EXPORT, LOGIN, OUTAGE, REMOVE, USED):
        reader.paste(number, pasted[number])
    assert "<svg" in guest.run(f"cat {ROOT}/outage.svg; rm {ROOT}/outage.svg").out
    record(installing=f"{installing:.0f} s", readme_path=f"{sum(reader.seconds.values()):.0f} s")


def test_upgraded_and_restarted_under_writes(guest: SystemdGuest, record: Record) -> None:
    """`apt upgrade` under writes leaves the daemon alone, and `tcmu-retry upgrade` takes the new one: 0 errors."""
    config = "/srv/vm1.img;retry_interval=1s;error.errno=EIO;error.while_file=/run/away"
    made = show(guest, "export", "vm1", config, "--any-initiator")["export"]
    writer = Writer(f"iscsi://127.0.0.1:{guest.forwarded}/{made['iqn']}/0")
    try:
        writer.goes_on()
        guest.run("touch /run/away")
        eventually(lambda: show(guest, "queue", "list", "vm1")["held"], 120, "held writes")
        guest.run("rm /run/away; tcmu-retry queue retry vm1", timeout=120)
        writer.goes_on()

        daemon = unit(guest, "MainPID")
        offer(guest, build(NEW))
        said = apt(guest, "upgrade -y")
        assert f"tcmu-retryd goes on as version {OLD}" in said, said
        assert guest.run("dpkg-query -W -f '${Version}' tcmu-retry").out == NEW
        assert unit(guest, "MainPID") == daemon
        assert version(guest) == OLD
        writer.goes_on()

        said = renew(guest, commands("docs/packages.md", "Debian")[1].text)
        writer.goes_on()
    finally:
        writer.end()
    assert not writer.error
    assert not guest.run("systemctl list-units --failed --no-legend 'tcmu-retry*'").out
    record(
        restart=said, writes=f"{writer.rounds * WRITES}, 0 errors; {WRITES} of them took {writer.longest:.1f} s at most"
    )


def test_purged_without_a_trace(guest: SystemdGuest, before: set[str], record: Record) -> None:
    """`apt purge` after the LUN is unexported: no file, no unit, no process is left of either package."""
    guest.run("tcmu-retry unexport vm1; rm /srv/vm1.img", timeout=120)
    assert "Traceback" not in guest.run("journalctl -b -o cat -u tcmu-retryd").out
    apt(guest, "purge -y targetcli-retry tcmu-retry")
    assert guest.run("pgrep -f '[t]cmu-retryd'", check=False).code, "the daemon still runs"
    assert not guest.run("systemctl list-units --all --no-legend 'tcmu-retry*'").out.strip()
    left = sorted(written(guest) - before)
    assert not left, left
    record(left="nothing")
