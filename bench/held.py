"""What 10,000 held commands cost: memory, CPU while they wait, and the time to let them go.

The real device, engine and pump over a simulated kernel, in one process; the storage is a file whose calls fail while
another file exists.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tcmu_retry.backends import filters
from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.file import open_backend
from tcmu_retry.core.policy import DEFAULT, Budgets, change
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.device import Device, Lun
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.tcmu.configfs import ATTRIBUTES
from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 512
SIZE = 64 << 20
COUNT = 10_000
IDLE = 5.0  # seconds


@dataclass(frozen=True)
class Held:
    """memory: bytes a command of Python's. cpu: per cent of one CPU while all wait. Seconds from the first GOOD on."""

    count: int
    memory: float
    cpu: float
    next: float
    last: float


class Stamps:
    """When each command was answered."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self._end = SimulatedCommand.end

    def __enter__(self) -> Stamps:
        def end(command: SimulatedCommand, status: int, sense: bytes = b"") -> None:
            self.at.append(time.monotonic())
            self._end(command, status, sense)

        SimulatedCommand.end = end  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        SimulatedCommand.end = self._end  # type: ignore[method-assign]


def _storage(path: Path, trigger: Path) -> Backend:
    return filters.apply(open_backend(str(path)), {"error": {"errno": "ETIMEDOUT", "while_file": str(trigger)}})


async def _held(directory: Path, traced: bool) -> Held:
    path, trigger = directory / "storage", directory / "away"
    with path.open("wb") as file:
        file.truncate(SIZE)
    trigger.touch()
    kernel = SimulatedKernel(ring=4 << 20, data=COUNT * 4096 + (1 << 20))
    policy = change(DEFAULT, {"retry_interval": "1h", "retry_max_interval": "1h"})
    config = DeviceConfig(str(path), policy=policy, budgets=Budgets(held=2 * COUNT, held_bytes=1 << 30))
    lun = Lun("bench", lambda: "bench", SIZE, BLOCK, "uio0", lambda: dict(ATTRIBUTES), dict)
    device = Device(
        lun,
        config,
        partial(_disk, lun),
        lambda: _storage(path, trigger),
        lambda notice: None,
        lambda device: None,
        {},
        lambda changes: None,
    )
    await device.attach(kernel.open, fresh=True)
    gc.collect()
    if traced:
        tracemalloc.start()
        before = _ours()
    commands = []
    for number in range(COUNT):
        cdb = struct.pack(">BxIxHx", 0x2A, number, 1)
        commands.append(kernel.submit(cdb, bytes(BLOCK)))
    await _until(lambda: device.status().held == COUNT)
    await asyncio.sleep(0.5)
    memory = 0.0
    if traced:
        gc.collect()
        memory = (_ours() - before) / COUNT
        tracemalloc.stop()
    cpu = _cpu()
    await asyncio.sleep(IDLE)
    cpu = _cpu() - cpu
    with Stamps() as ended:
        trigger.unlink()
        device.kick()
        await _until(lambda: all(command.status is not None for command in commands))
    assert {command.status for command in commands} == {0}
    await device.withdraw()
    await device.detach()
    return Held(COUNT, memory, 100 * cpu / IDLE, ended.at[1] - ended.at[0], ended.at[-1] - ended.at[0])


def _disk(lun: Lun, can_discard: bool) -> Disk:
    return Disk(DiskIdentity("bench", "bench"), lun.block_size, lun.size, can_discard=can_discard)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _ours() -> int:
    """Bytes allocated by the project, but for the simulated kernel."""
    package = str(ROOT / "tcmu_retry")
    found = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, "*/simulated.py")])
    return sum(
        statistic.size
        for statistic in found.statistics("filename")
        if statistic.traceback[0].filename.startswith(package)
    )


async def _until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not what():
        assert time.monotonic() < until, "it never happened"
        await asyncio.sleep(0.002)


def measure() -> Held:
    """Memory from one run, for tracing slows it down, the rest from another."""
    traced, timed = (_run(mode) for mode in ("memory", "time"))
    return Held(COUNT, traced["memory"], timed["cpu"], timed["next"], timed["last"])


def _run(mode: str) -> dict[str, float]:
    out = subprocess.run(
        [sys.executable, "-m", "bench.held", mode], cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=300
    ).stdout
    found: dict[str, float] = json.loads(out)
    return found


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        print(json.dumps(asyncio.run(_held(Path(name), sys.argv[1] == "memory")).__dict__))
