"""An NBD server with a volatile cache is killed: what a flush called GOOD is there though the cache is not.

nbdkit's cache filter keeps what is written in a file that nobody else has and that goes with it; a flush brings it to
the medium.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.soak.conftest import Record
from tests.vm.lab import Lab, Lun, Storage, eventually

MEDIUM, LINK = "/run/nbd/medium", "/run/nbd/disk"
FORGETFUL = (
    "from tcmu_retry.backends.replay import ReplayLog;"
    " ReplayLog._make = lambda self, changes, backend: setattr(self, '_sure', backend);"
    " from tcmu_retry.retryd import main; main()"
)


class Server:
    """nbdkit, and the kernel's client of it under a name that stays, as udev's links by identity do."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.pid, self.starts = lab, 0, 0

    def start(self) -> None:
        """A new process and a new /dev/nbdN: while somebody has the old one open, no client takes it again."""
        guest, number = self.lab.guest, self.starts
        self.starts += 1
        guest.run(
            f"nbdkit -P /run/nbd/pid{number} -p {10809 + number} --filter=cache file {MEDIUM} cache=writeback &&"
            f" nbd-client -nonetlink 127.0.0.1 {10809 + number} /dev/nbd{number}"
        )
        self.pid = int(guest.run(f"cat /run/nbd/pid{number}").out)
        size = f"blockdev --getsize64 /dev/nbd{number}"
        eventually(lambda: guest.look(size) == str(64 << 20), 20, f"/dev/nbd{number}")
        guest.run(f"ln -sfn /dev/nbd{number} {LINK}")

    def kill(self) -> None:
        gone = f"while [ -e /proc/{self.pid} ]; do sleep 0.1; done"
        self.lab.guest.run(f"kill -9 {self.pid}; {gone}")

    def medium(self, sector: int) -> bytes:
        """What outlives the server."""
        return self.lab.guest.run(f"dd if={MEDIUM} bs=512 skip={sector} count=1 status=none | tr -d '\\0'").out.encode()


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    guest = lab.guest
    guest.run(f"modprobe nbd nbds_max=4 && mkdir -p /run/nbd && rm -f {MEDIUM} && truncate -s 64M {MEDIUM}")
    made = Server(lab)
    made.start()
    yield made
    for lun in lab.luns:
        guest.run(f"iscsiadm -m node -T {lun.iqn} --logout", check=False)
        lab.call("unexport", lun.name)
    guest.run(f"for n in 0 1; do nbd-client -d /dev/nbd$n; done; kill -9 {made.pid}; rmmod nbd", check=False)


def story(lab: Lab, server: Server) -> tuple[bytes, bytes]:
    """What the medium has of two writes, both acknowledged before a flush that said GOOD, the cache lost between them.

    `early` is written    the server is killed, its cache with it    it is started again    `later` is written    flush
    """
    lun = lab.export(Storage(lab.guest, "nbd", 0, 64), "cache=writeback;retry_interval=500ms", path=LINK)
    lun.login(300)
    write(lab, lun, 8, "early")
    assert server.medium(8) == b"", "the server has no cache; this shows nothing"
    server.kill()
    lun.write(64, "later", "later.log")
    lun.wait_held()
    server.start()
    assert lab.wait_end("later.log", 90) == 0
    lab.guest.run(f"sg_sync {lun.generic}", timeout=90)
    return server.medium(8), server.medium(64)


def write(lab: Lab, lun: Lun, sector: int, text: str) -> None:
    lun.write(sector, text, f"{text}.log")
    assert lab.wait_end(f"{text}.log", 30) == 0


def test_what_a_flush_called_good_is_there_after_the_cache_was_lost(lab: Lab, server: Server, record: Record) -> None:
    """nbdkit with a write-back cache is killed by SIGKILL between a write and its flush: nothing is missing."""
    early, later = story(lab, server)
    assert early.startswith(b"early")
    assert later.startswith(b"later")
    record(after_the_flush="both writes on the medium, the one before the server's death too")


def test_without_the_replay_log_the_first_write_is_missing(lab: Lab, server: Server, record: Record) -> None:
    """The same, the daemon's replay log switched off: the write before the server's death is lost, as it must be."""
    lab.stop_daemon()
    lab.runs += 1
    lab.daemon = lab.guest.start([sys.executable, "-c", FORGETFUL, "--debug"], "forgetful.log", **lab.environment)
    lab.wait_daemon()
    try:
        early, _ = story(lab, server)
    finally:
        lab.guest.run("iscsiadm -m node --logout", check=False)
        lab.call("unexport", "nbd")
        lab.stop_daemon()
        lab.start_daemon()
        lab.wait_daemon()
    assert early == b""
    record(after_the_flush="the write before the server's death is missing")
