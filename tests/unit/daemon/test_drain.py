"""A drain ends when nothing is out any more, whoever closed the gate before: over the native pump and a real file."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tcmu_retry.backends.base import Backend, BackendError
from tcmu_retry.backends.file import FileBackend, open_backend
from tcmu_retry.daemon import storage as storage_module
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.pauses import DRAIN_SECONDS
from tcmu_retry.daemon.records import Memory as Remembered
from tcmu_retry.daemon.records import Records
from tcmu_retry.daemon.storage import Place
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.tcmu.simulated import SimulatedKernel
from tests.unit.daemon.rig import Memory, NoRecords, Rig, served, until

SIZE, BLOCK = 1 << 20, 4096
SYNCHRONIZE = bytes((0x35,)).ljust(10, b"\0")


def test_a_drain_after_a_failure_does_not_wait_for_a_gate_that_nobody_asked_to_close(tmp_path: Path) -> None:
    """The native pump closes the gate by itself at a failure, and says so before it knows what the failure means."""
    path = tmp_path / "storage"
    path.write_bytes(bytes(SIZE))
    opened: list[FileBackend] = []

    def storage() -> Backend:
        backend = open_backend(str(path))
        assert isinstance(backend, FileBackend)
        opened.append(backend)
        return backend

    async def story() -> float:
        kernel = SimulatedKernel()
        device = Device(
            Lun("vm1", lambda: "vm1", str(path), SIZE, BLOCK, "uio0", dict, dict),
            DeviceConfig(str(path)),
            lambda can_discard, _: Disk(DiskIdentity("vm1", "vm1"), BLOCK, SIZE, can_discard=can_discard),
            storage,
            lambda notice: None,
            lambda device: None,
            lambda device: None,
            Remembered(Records(tmp_path), "vm1", str(path)),
            {},
            lambda changes: None,
        )
        await device.attach(kernel, fresh=True)
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, opened[0].descriptor or -1, inheritable=False)
        os.close(full)
        command = kernel.submit(struct.pack(">BxIxHx", 0x2A, 1, 1), b"d" * BLOCK)
        while not device.status().held:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
        began = time.monotonic()
        await device.drain()
        assert command.status is None, "it stays held"
        await device.withdraw()
        took = time.monotonic() - began
        await device.detach()
        return took

    assert asyncio.run(asyncio.wait_for(story(), 30)) < DRAIN_SECONDS / 2


def test_a_persons_undrain_does_not_let_a_write_go_to_the_storage_that_is_just_left() -> None:
    """Written, GOOD, not flushed    moved: the new storage gets it, and is slow    undrain, another write: it waits
    moved    GOOD    a flush: the new storage has both
    """

    async def story() -> None:
        async with served("writeback") as rig:
            assert await rig.answer(rig.write(4, b"first")) == "GOOD"
            new = Memory(write_back=True)
            let_go = new.hang["write"] = threading.Event()
            moving = asyncio.create_task(rig.device.move(place(rig, new)))
            await until(lambda: "write" in new.calls, "the first write, again")
            rig.device.undrain()
            second = rig.write(5, b"second")
            await rig.held(1)
            let_go.set()
            await moving
            assert await rig.answer(second) == "GOOD"
            answers = [await rig.answer(rig.kernel.submit(SYNCHRONIZE)) for _ in range(2)]
            assert answers == ["06/28/00", "GOOD"], "the medium may have changed"
            new.lose()
            assert new.at(4).startswith(b"first")
            assert new.at(5).startswith(b"second")

    asyncio.run(story())


def test_a_move_that_took_too_long_says_nothing_of_the_storage_it_was_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, GOOD    the flush fails, and the cache is lost with it    moved: the new storage takes too long, refused
    the old I/O goes on at once    the new storage returns after all    the flush: the old storage has what was written
    """
    monkeypatch.setattr(storage_module, "ASK_SECONDS", 0.05)

    async def story() -> None:
        async with served("writeback") as rig:
            assert await rig.answer(rig.write(4, b"first")) == "GOOD"
            rig.storage.errors["flush"] = errno.EIO
            flush = rig.kernel.submit(SYNCHRONIZE)
            await rig.held(1)
            rig.storage.lose()
            rig.storage.errors.clear()
            new = Memory(write_back=True)
            let_go = new.hang["write"] = threading.Event()
            with pytest.raises(BackendError, match="did not answer"):
                await rig.device.move(place(rig, new))
            assert await rig.answer(rig.read(9)) == "GOOD"
            let_go.set()
            await until(lambda: new.at(4).startswith(b"first"), "the new storage's return")
            rig.device.kick()
            assert await rig.answer(flush) == "GOOD"
            rig.storage.lose()
            assert rig.storage.at(4).startswith(b"first")

    asyncio.run(story())


def place(rig: Rig, storage: Memory) -> Place:
    config = replace(rig.device.config, path="/new")
    return Place("/new", config, lambda: storage, Remembered(NoRecords(Path()), "vm1", "/new"))
