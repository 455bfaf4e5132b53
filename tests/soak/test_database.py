"""A database on ext4 on a LUN, through an outage, the death of the daemon, and another outage."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from tests.soak.conftest import Record
from tests.vm.guest import ROOT
from tests.vm.lab import Lab, Lun, eventually

PROGRAM = f"{sys.executable} {ROOT}/tests/soak/database.py"
MODES = {"writethrough": "delete", "writeback": "wal"}  # SQLite's ways to commit


@dataclass
class Database:
    """SQLite in a directory of its own, under a program that commits as fast as it can."""

    lab: Lab
    lun: Lun
    pid: int = 0

    @property
    def directory(self) -> str:
        return f"/run/databases/{self.lun.name}"

    def begin(self, mode: str) -> None:
        self.lab.guest.run(
            f"mkfs.ext4 -q {self.lun.disk} && mkdir -p {self.directory} && mount {self.lun.disk} {self.directory}"
        )
        self.pid = self.lab.guest.start(f"exec {PROGRAM} fill {self.directory}/bank {mode}", f"{self.lun.name}.log")

    @property
    def committed(self) -> int:
        """The last number that the program was told is committed."""
        lines = self.lab.log(f"{self.lun.name}.log").splitlines()
        return int(lines[-1]) if lines else 0

    def wait_more(self, count: int = 20) -> None:
        goal = self.committed + count
        eventually(lambda: self.committed >= goal, 200, f"more commits of {self.lun.name}")

    def end(self) -> str:
        """What is wrong with database and file system, "" for nothing."""
        run = self.lab.guest.run
        run(f"kill -9 {self.pid}; while [ -e /proc/{self.pid} ]; do sleep 0.1; done", timeout=120)
        run(f"umount {self.directory}", timeout=120)
        found = run(f"fsck.ext4 -fn {self.lun.disk}", check=False, timeout=120)
        wrong = str(found) if found.code else ""
        run(f"mount {self.lun.disk} {self.directory}")
        wrong += run(f"{PROGRAM} check {self.directory}/bank {self.committed}", timeout=120).out
        run(f"umount {self.directory}", timeout=120)
        return wrong


def test_a_database_rides_out_outage_death_and_outage(lab: Lab, record: Record) -> None:
    """SQLite on ext4 through outage, SIGKILL in it, and a second outage: nothing committed is missing, fsck is clean.

    commits run    the storage fails    all is held    SIGKILL, another daemon    20 s  the storage is back
    commits go on    it hangs    SIGKILL    5 s  it goes on    commits go on    it fails    10 s  it is back
    """
    luns = [lab.lun(cache, f"retry_interval=500ms;cache={cache}", size=96, timeout=180) for cache in MODES]
    databases = [Database(lab, lun) for lun in luns]
    for database in databases:
        database.begin(MODES[database.lun.name])
    commits_go_on(databases)
    began = [database.committed for database in databases]

    storage(luns, "fail")
    for lun in luns:
        lun.wait_held()
    lab.kill_daemon()
    time.sleep(20)
    storage(luns, "back")
    commits_go_on(databases)

    storage(luns, "hang")
    time.sleep(2)
    lab.kill_daemon()
    time.sleep(5)
    storage(luns, "go_on")
    commits_go_on(databases)

    storage(luns, "fail")
    time.sleep(10)
    storage(luns, "back")
    commits_go_on(databases)

    kernel = lab.guest.run("dmesg").out
    assert "I/O error" not in kernel, kernel[-3000:]
    for database, before in zip(databases, began, strict=True):
        assert database.end() == ""
        mode = f"{database.lun.name}, journal_mode {MODES[database.lun.name]}"
        record(**{mode: f"{database.committed - before} commits over three outages and two kills, none missing"})


def commits_go_on(databases: list[Database]) -> None:
    for database in databases:
        database.wait_more()


def storage(luns: list[Lun], what: str) -> None:
    """fail, hang, back or go_on, for all."""
    for lun in luns:
        getattr(lun.storage, what)()
