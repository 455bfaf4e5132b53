"""A LUN between a simulated kernel and storage in memory: what an initiator and a medium see of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from tcmu_retry.backends.base import Identity
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.core.initiators import PROFILES, Profile
from tcmu_retry.core.policy import DEFAULT, change
from tcmu_retry.daemon import records
from tcmu_retry.daemon.api import Notice, PolicyOptions
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.wishes import Wishes
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.scsi.request import Direction
from tcmu_retry.scsi.sense import parse
from tcmu_retry.tcmu.configfs import ATTRIBUTES
from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel

BLOCK = 512
BLOCKS = 128
PATIENCE = 10.0  # seconds; nothing takes as long unless it hangs


class Memory:
    """Storage in memory.

    errors: what a call of this name fails with, until it is taken out. spared: calls of this name that go well first.
    torn: bytes that a failing change leaves on the medium all the same. hang: calls of this name wait for the event.
    calls: names, in their order. With write_back, what was not flushed goes with `lose`.
    """

    block_size = BLOCK
    can_discard = True

    def __init__(self, write_back: bool) -> None:
        self.write_back = write_back
        self.medium = bytearray(BLOCKS * BLOCK)
        self.stable = bytes(self.medium)
        self.errors: dict[str, int] = {}
        self.spared: dict[str, int] = {}
        self.torn = 0
        self.hang: dict[str, threading.Event] = {}
        self.calls: list[str] = []

    @property
    def identity(self) -> Identity:
        return Identity("file", len(self.medium), "")

    def fail(self, error: int) -> None:
        self.errors = dict.fromkeys(("read", "write", "flush", "discard", "zero"), error)

    def lose(self) -> None:
        """The cache is gone."""
        self.medium[:] = self.stable

    def at(self, lba: int, count: int = 1) -> bytes:
        return bytes(self.medium[lba * BLOCK : (lba + count) * BLOCK])

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self._enter("read")
        done = 0
        for view in buffers:
            view[:] = self.medium[offset + done : offset + done + len(view)]
            done += len(view)
        return done

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        moved = self._change("write", offset, b"".join(buffers))
        if durable:
            self.stable = bytes(self.medium)
        return moved

    def flush(self) -> None:
        self._enter("flush")
        self.stable = bytes(self.medium)

    def discard(self, offset: int, length: int) -> None:
        self._change("discard", offset, bytes(length))

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._change("zero", offset, bytes(length))

    def close(self) -> None:
        pass

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if name in self.hang:
            assert self.hang[name].wait(PATIENCE), f"{name} was never let go"
        if name in self.errors and self.spared.get(name, 0):
            self.spared[name] -= 1
        elif error := self.errors.get(name, 0):
            raise OSError(error, os.strerror(error))

    def _change(self, name: str, offset: int, data: bytes) -> int:
        try:
            self._enter(name)
        except OSError:
            data = data[: self.torn]
            self.medium[offset : offset + len(data)] = data
            raise
        self.medium[offset : offset + len(data)] = data
        return len(data)


class NoRecords(records.Records):
    """No LUN was ever here before."""

    def find(self, name: str, config: str) -> None:
        return None

    def keep(self, name: str, record: records.Record) -> None:
        pass


class Rig:
    """A served LUN. Nothing is tried again by itself for an hour: the test kicks."""

    def __init__(
        self,
        cache: str = "writethrough",
        policy: Mapping[str, str] | None = None,
        kernel: SimulatedKernel | None = None,
        initiator: Profile = PROFILES["linux"],
        wishes: Wishes | None = None,
        replay: ReplayLog | None = None,
    ) -> None:
        self.sharers = ""  # who else waits for this LUN's answers
        self.kernel = kernel or SimulatedKernel()
        self.storage = Memory(write_back=cache == "writeback")
        self.notices: list[Notice] = []
        self.lost: list[Device] = []
        words = {"retry_interval": "1h", "retry_max_interval": "1h", **(policy or {})}
        self.errors: dict[str, Exception] = {}  # what a look at the kernel's tree ("wwn"), or an "open", raises
        lun = Lun(
            "vm1",
            self._wwn,
            "/nowhere",
            BLOCKS * BLOCK,
            BLOCK,
            "uio0",
            lambda: dict(ATTRIBUTES),
            dict,
            sharers=lambda: self.sharers,
        )
        self.device = Device(
            lun,
            DeviceConfig("/nowhere", cache=cache, policy=change(DEFAULT, words), initiator=initiator),
            lambda discards, _: Disk(
                DiskIdentity("serial", "vm1"), BLOCK, lun.size, can_discard=discards, write_back=self.storage.write_back
            ),
            self._open,
            self.notices.append,
            lambda _: None,
            self.lost.append,
            records.Memory(NoRecords(Path()), "vm1", "/nowhere"),
            {},
            lambda _: None,
            replay=replay,
            wishes=wishes,
        )

    def _wwn(self) -> str:
        if "wwn" in self.errors:
            raise self.errors["wwn"]
        return "serial"

    def _open(self) -> Memory:
        if "open" in self.storage.hang:
            assert self.storage.hang["open"].wait(PATIENCE), "open was never let go"
        if "open" in self.errors:
            raise self.errors["open"]
        return self.storage

    def state(self, side: Direction) -> str:
        status = self.device.status()
        return (status.read if side is Direction.READ else status.write).state

    async def policy(self, dry_run: bool = False, **changes: str) -> None:
        """In keyword arguments __ stands for the dot."""
        words = {key.replace("__", "."): value for key, value in changes.items()}
        await self.device.set_policy(words, PolicyOptions(dry_run=dry_run))

    def write(self, lba: int, data: bytes) -> SimulatedCommand:
        data = data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")
        count = len(data) // BLOCK
        return self.kernel.submit(bytes([0x2A, 0, *lba.to_bytes(4, "big"), 0, *count.to_bytes(2, "big"), 0]), data)

    def read(self, lba: int, count: int = 1) -> SimulatedCommand:
        cdb = bytes([0x28, 0, *lba.to_bytes(4, "big"), 0, *count.to_bytes(2, "big"), 0])
        return self.kernel.submit(cdb, data_in=count * BLOCK)

    async def answer(self, command: SimulatedCommand) -> str:
        """`GOOD`, another status in hexadecimal, or KEY/ASC/ASCQ."""
        await until(lambda: command.status is not None, f"an answer to {command.cdb.hex(' ')}")
        assert command.status is not None
        if command.status == 2:
            return str(parse(command.sense))
        return {0: "GOOD", 8: "BUSY", 0x18: "RESERVATION CONFLICT", 0x40: "TASK ABORTED"}[command.status]

    async def held(self, count: int) -> None:
        await until(lambda: self.device.status().held == count, f"{count} held commands")

    async def online(self) -> None:
        await until(
            lambda: all(self.state(side) == "online" for side in Direction) and not self.device.status().held, "online"
        )


@contextlib.asynccontextmanager
async def served(
    cache: str = "writethrough",
    policy: Mapping[str, str] | None = None,
    kernel: SimulatedKernel | None = None,
    initiator: Profile = PROFILES["linux"],
    replay: ReplayLog | None = None,
) -> AsyncIterator[Rig]:
    """A LUN being served; each command must have been answered when it goes."""
    rig = Rig(cache, policy, kernel, initiator, replay=replay)
    await rig.device.attach(rig.kernel, fresh=True)
    try:
        yield rig
    finally:
        for event in rig.storage.hang.values():
            event.set()
        await rig.device.withdraw()
        await until(lambda: not rig.device.busy, "the end of all I/O")
        await rig.device.detach()
    assert not rig.kernel.broken
    assert not rig.kernel.open_ids


async def until(what: Callable[[], bool], name: str) -> None:
    """Let loop and threads run until something is so that nobody tells of."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, f"it never came: {name}"
        await asyncio.sleep(0.001)
