"""What holding costs: 10,000 commands of a simulated kernel, held by a real device; and how fast they get out.

usage: python -m bench.held
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

from tcmu_retry.backends.base import Identity
from tcmu_retry.core.initiators import PROFILES
from tcmu_retry.core.policy import DEFAULT, Budgets, change
from tcmu_retry.daemon import records
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.tcmu.configfs import ATTRIBUTES
from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel

HELD = 10_000
BLOCK = 4096
IDLE = 10.0  # seconds
SIMULATOR = ("simulated.py", "held.py", "tracemalloc.py", "threading.py")  # each of its commands has an Event


class Storage:
    """It swallows what is written, or fails, and says when each write ended well, and the process's CPU by then."""

    block_size = BLOCK
    can_discard = True
    write_back = False
    identity = Identity("file", HELD * BLOCK, "")

    def __init__(self) -> None:
        self.away = False
        self.ended: list[tuple[float, float]] = []

    def size(self) -> int:
        return self.identity.size

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        return self.write(offset, buffers, False)

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        if self.away:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.ended.append((time.monotonic(), time.process_time()))
        return sum(map(len, buffers))

    def flush(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        pass

    def zero(self, offset: int, length: int, discard: bool) -> None:
        pass

    def close(self) -> None:
        pass


class NoRecords(records.Records):
    """No LUN was ever here before."""

    def find(self, name: str, config: str) -> None:
        return None

    def keep(self, name: str, record: records.Record) -> None:
        pass


def device(storage: Storage) -> Device:
    """A LUN that tries nothing by itself for an hour, with room for all."""
    lun = Lun("vm1", lambda: "serial", "/nowhere", HELD * BLOCK, BLOCK, "uio0", lambda: dict(ATTRIBUTES), dict)
    policy = change(DEFAULT, {"retry_interval": "1h", "retry_max_interval": "1h"})
    config = DeviceConfig("/nowhere", policy=policy, budgets=Budgets(held=2 * HELD), initiator=PROFILES["linux"])
    return Device(
        lun, config, lambda discards, _: Disk(DiskIdentity("serial", "vm1"), BLOCK, lun.size, can_discard=discards),
        lambda: storage, lambda _: None, lambda _: None, lambda _: None,
        records.Memory(NoRecords(Path()), "vm1", "/nowhere"), {}, lambda _: None,
    )  # fmt: skip


def submit(kernel: SimulatedKernel) -> list[SimulatedCommand]:
    """A write to each block."""
    return [kernel.submit(bytes([0x2A, 0, *lba.to_bytes(4, "big"), 0, 0, 1, 0]), bytes(BLOCK)) for lba in range(HELD)]


def python_memory(served: Device) -> int:
    """Bytes of Python objects that were allocated since tracing began, without the simulator's, CDBs and iovs."""
    told = [tracemalloc.Filter(False, f"*{name}") for name in SIMULATOR]
    total = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(told).traces)
    for command in served._commands._commands.values():
        total -= sys.getsizeof(command.cdb) + sys.getsizeof(command.iovs)
        total -= sum(sys.getsizeof(iov) + sum(map(sys.getsizeof, iov)) for iov in command.iovs)
    return total


async def until(what: Callable[[], bool]) -> None:
    """Let the main loop run until something is so that nobody tells of."""
    while not what():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)


async def story(memory: bool) -> dict[str, float]:
    """All of them held, a while with nothing due, the storage back and a probe. memory: measure that, not the rest."""
    storage, kernel = Storage(), SimulatedKernel(ring=8 << 20, data=2 * HELD * 4096)
    served = device(storage)
    await served.attach(kernel, fresh=True)
    storage.away = True
    result: dict[str, float] = {}
    if memory:
        tracemalloc.start()
    began = time.monotonic()
    commands = submit(kernel)
    await until(lambda: served.status().held == HELD)
    result["arrival"] = time.monotonic() - began
    await asyncio.sleep(0.5)
    if memory:
        result["bytes"] = python_memory(served) / HELD
        tracemalloc.stop()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.sleep(IDLE)
        after = resource.getrusage(resource.RUSAGE_SELF)
        result["idle"] = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / IDLE
    storage.away = False
    served.kick()
    await until(lambda: commands[-1].status is not None and all(command.status is not None for command in commands))
    assert all(command.status == 0 for command in commands), "held, and then not answered GOOD"
    result["first"], result["first_cpu"] = (b - a for a, b in zip(storage.ended[0], storage.ended[1], strict=True))
    result["last"] = storage.ended[-1][0] - storage.ended[0][0]
    await served.withdraw()
    await served.detach()
    return result


def measure() -> dict[str, float]:
    """bytes of memory a command; idle: share of a processor; arrival, first, first_cpu, last: seconds."""
    memory = asyncio.run(story(True))
    return {**asyncio.run(story(False)), "bytes": memory["bytes"]}


if __name__ == "__main__":
    print(json.dumps(measure()))
