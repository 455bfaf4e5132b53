"""A drain ends when nothing is out any more, whoever closed the gate before: over the native pump and a real file."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from pathlib import Path

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.file import FileBackend, open_backend
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.device import DRAIN_SECONDS, Device
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.records import Memory, Records
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.tcmu.simulated import SimulatedKernel

SIZE, BLOCK = 1 << 20, 4096


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
            Memory(Records(tmp_path), "vm1", str(path)),
            {},
            lambda changes: None,
        )
        await device.attach(kernel.open, fresh=True)
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
