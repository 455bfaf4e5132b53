"""CPU per command outside a guest: both pumps and a minimal C handler over a ring that a C program keeps full.

The CPU is the handler's own, all its threads and the kernel's work for them included; the storage is a file read and
written past the page cache.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import resource
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.file import open_backend
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.backends.shelf import Shelf
from tcmu_retry.pump.base import Broken, Shape
from tcmu_retry.pump.native.pump import NativePump
from tcmu_retry.pump.reference import ReferencePump
from tcmu_retry.scsi.request import Reply, Status
from tcmu_retry.tcmu.journal import Journal

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/bench"
RING = 8 << 20
FILE = 256 << 20
SECTOR = 512
BACK = ", writeback"
HANDLERS = ("minimal", "native", f"native{BACK}", "reference", f"reference{BACK}")
COUNTED = {"minimal": "main", "native": "loop_run", f"native{BACK}": "loop_run"}  # within which function
REPLAY_BYTES, SHELF = 64 << 20, 96 << 20  # as the daemon has them


@dataclass(frozen=True)
class Load:
    """What the simulated kernel asks for."""

    name: str
    depth: int
    size: int  # bytes of a command
    reads: int  # per cent


LOADS = (
    Load("4 KiB random read, QD 1", 1, 4096, 100),
    Load("4 KiB random read, QD 32", 32, 4096, 100),
    Load("4 KiB random write, QD 32", 32, 4096, 0),
    Load("256 KiB random read, QD 32", 32, 256 << 10, 100),
)


@dataclass(frozen=True)
class Result:
    """A command's cost. cpu: µs, of which user: in user mode; instructions: there too, where they were counted."""

    handler: str
    load: str
    iops: float
    cpu: float
    user: float
    instructions: float | None = None


class Channel:
    """A ring in a memfd and a socket, as a TCMU channel."""

    def __init__(self, memory: int, length: int, bell: int) -> None:
        self._map = mmap.mmap(memory, length)
        self.memory = memoryview(self._map)
        self.bell = bell
        journal = Journal(os.memfd_create("journal"), "bench")
        journal.begin(0)
        self.journal: Journal | None = journal

    def fileno(self) -> int:
        return self.bell

    def acknowledge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(self.bell, 4096):
                raise OSError(5, "the simulated kernel ended")

    def doorbell(self) -> None:
        os.write(self.bell, b"\0\0\0\0")

    def free_kept_buffer(self, command_id: int) -> None:
        raise AssertionError("nothing is aborted here")

    def close(self) -> None:
        self.memory.release()


def compile_all() -> None:
    """The two C programs, if they are not there."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("kernel", "minimal"):
        source, made = ROOT / f"bench/{name}.c", BUILD / name
        if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", made, source, "-luring"], check=True)


@contextlib.contextmanager
def storage(directory: Path) -> Iterator[Path]:
    """A file that is really there, so that no read meets a hole."""
    path = directory / "bench.img"
    with path.open("wb") as file:
        for _ in range(FILE >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    yield path
    path.unlink()


def run(handler: str, load: Load, path: Path, seconds: float) -> Result:
    """One handler under one load; in a process of its own."""
    out = _start(handler, load, path, seconds).stdout.split()
    commands, user, system, iops = int(out[0]), int(out[1]), int(out[2]), float(out[3])
    return Result(handler, load.name, iops, (user + system) / commands, user / commands)


def _start(handler: str, load: Load, path: Path, seconds: float, *under: str) -> subprocess.CompletedProcess[str]:
    told = map(str, (handler, load.depth, load.size, load.reads, seconds, path, *under))
    around = () if handler == "minimal" else under
    return subprocess.run(
        [*around, sys.executable, "-m", "bench.outside", *told], cwd=ROOT, check=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE if under else None, timeout=seconds + (120 if under else 30),
    )  # fmt: skip


def instructions(handler: str, load: Load, path: Path, seconds: float) -> float:
    """In user mode a command, within the function that answers them all and what that calls."""
    under = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--toggle-collect={COUNTED[handler]}")
    done = _start(handler, load, path, seconds, *under)
    return int(re.findall(r"Collected : (\d+)", done.stderr)[-1]) / int(done.stdout.split()[0])


def _one(handler: str, depth: int, size: int, reads: int, seconds: float, path: str, under: list[str]) -> None:
    """Prints commands, µs of user and system CPU, commands a second. under: what to run the minimal handler with."""
    length = RING + depth * size
    memory = os.memfd_create("tcmu")
    os.ftruncate(memory, length)
    os.pwrite(memory, struct.pack("<HHII", 2, 0xF, 128, RING - 128), 0)
    ours, theirs = socket.socketpair()
    blocks = FILE // SECTOR
    arguments = [BUILD / "kernel", memory, theirs.fileno(), depth, size, reads, blocks, seconds]
    kernel = subprocess.Popen(
        [str(a) for a in arguments], pass_fds=(memory, theirs.fileno()), stdout=subprocess.PIPE, text=True
    )
    theirs.close()
    if handler == "minimal":
        file = os.open(path, os.O_RDWR | os.O_DIRECT)
        fds = (memory, ours.fileno(), file)
        line = subprocess.run(
            list(map(str, (*under, BUILD / "minimal", memory, length, ours.fileno(), file))),
            pass_fds=fds, stdout=subprocess.PIPE, text=True, check=True,
        ).stdout  # fmt: skip
        done, user, system = map(int, line.split())
    else:
        kind = NativePump if handler.startswith("native") else ReferencePump
        backend = open_backend(path)
        if handler.endswith(BACK):
            shelf = Shelf(os.memfd_create("shelf"), "bench", SHELF)
            shelf.begin()
            backend = ReplayLog(REPLAY_BYTES, shelf).over(backend)
        done, user, system = _pump(kind, memory, length, ours, backend)
    assert kernel.stdout is not None
    counted, micros = map(int, kernel.stdout.read().split())
    assert kernel.wait() == 0
    assert done >= counted
    print(done, user, system, counted / micros * 1e6)


def _pump(
    kind: type[ReferencePump], memory: int, length: int, bell: socket.socket, backend: Backend
) -> tuple[int, int, int]:
    bell.setblocking(False)
    channel = Channel(memory, length, bell.fileno())
    pump = kind("bench", channel, backend, SECTOR, lambda sense: Reply(Status.CHECK_CONDITION, sense.fixed()))
    pump.shape(Shape(SECTOR, FILE // SECTOR, True))
    pump.start()
    before = resource.getrusage(resource.RUSAGE_SELF)
    bell.send(b"\0\0\0\0")
    select.select([pump], [], [])
    (event,) = pump.events()
    assert isinstance(event, Broken), event  # the simulated kernel has ended
    after = resource.getrusage(resource.RUSAGE_SELF)
    statistics = pump.statistics()
    pump.stop()
    return (
        statistics.reads + statistics.writes,
        round((after.ru_utime - before.ru_utime) * 1e6),
        round((after.ru_stime - before.ru_stime) * 1e6),
    )


def measure(directory: Path, seconds: float = 3.0, rounds: int = 3) -> list[Result]:
    """Each handler under each load; of the rounds the one with the least CPU, for noise only adds."""
    compile_all()
    results = []
    with storage(directory) as path:
        for load in LOADS:
            for handler in HANDLERS:
                if handler.endswith(BACK) and load.reads == 100:
                    continue
                tried = [run(handler, load, path, seconds) for _ in range(rounds)]
                best = min(tried, key=lambda result: result.cpu)
                if load.depth == 32 and load.size == 4096 and handler in COUNTED:
                    best = replace(best, instructions=instructions(handler, load, path, seconds))
                results.append(best)
    return results


if __name__ == "__main__":
    what, depth, size, reads, seconds, file, *around = sys.argv[1:]
    _one(what, int(depth), int(size), int(reads), float(seconds), file, around)
