"""The daemon without a kernel: LUNs over simulated rings, with initiators and faults by script.

Devices, engines, storage, configuration, D-Bus and command line are the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from tcmu_retry.backends.base import Backend, BackendError
from tcmu_retry.backends.filters.wrapper import Wrapper
from tcmu_retry.daemon.api import ApiError, ExportRequest, ExportResult
from tcmu_retry.daemon.config import DeviceConfig, Source
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.offload import offload
from tcmu_retry.daemon.script import Fault, Load, Ok, Script, Step
from tcmu_retry.daemon.service import Service
from tcmu_retry.scsi.request import Direction
from tcmu_retry.tcmu.configfs import ATTRIBUTES
from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel

SIZE = 8 << 20  # of a LUN whose size nobody gave
BLOCK = 512
TRANSFER = 64  # blocks in a command of the script's initiators
DEPTH = 32  # commands that an initiator has open at once
TICK = 0.02  # seconds
READ_10, WRITE_10 = 0x28, 0x2A


class Faults:
    """What a LUN's storage does wrong now; set by the main loop, met by the pump's workers."""

    def __init__(self) -> None:
        self._errors: dict[Direction, int] = {}
        self._delays: dict[Direction, float] = {}
        self._over = threading.Event()  # of delays

    def begin(self, fault: Fault) -> None:
        for direction in fault.directions:
            if fault.delay:
                self._over.clear()
                self._delays[direction] = fault.delay
            else:
                self._errors[direction] = fault.errno

    def end(self) -> None:
        """What hangs returns."""
        self._errors.clear()
        self._delays.clear()
        self._over.set()

    def meet(self, direction: Direction) -> None:
        """Raises OSError, or returns late."""
        if delay := self._delays.get(direction):
            self._over.wait(delay)
        if code := self._errors.get(direction):
            raise OSError(code, os.strerror(code))


class FaultyStorage(Wrapper):
    """Storage under a script."""

    def __init__(self, below: Backend, faults: Faults) -> None:
        super().__init__(below)
        self._faults = faults

    def _before(self, direction: Direction, offset: int | None, length: int) -> None:
        self._faults.meet(direction)


class Simulation(Service):
    """Everything but LIO: `export` makes a LUN whose kernel is simulated."""

    def __init__(self, source: Source, state: Path) -> None:
        """state: a directory, also for the storage of a script's LUNs."""
        super().__init__(source, state)
        self.kernels: dict[str, SimulatedKernel] = {}
        self._faults: dict[str, Faults] = {}
        self._rates: dict[str, float] = {}
        self._files = state

    async def start(self) -> None:
        """There is no kernel to listen to."""

    async def stop(self, hand_over: bool = False) -> None:
        await self._leave()

    async def export(self, request: ExportRequest) -> ExportResult:
        if problem := self.check_config(request.config):
            raise ApiError("InvalidArgument", problem)
        if request.name in self.kernels:
            raise ApiError("InvalidArgument", f"there is a backstore {request.name} already; choose another name")
        kernel = SimulatedKernel()
        lun = Lun(
            request.name,
            lambda: f"serial-{request.name}",
            request.config,
            request.size or SIZE,
            BLOCK,
            f"uio-{request.name}",
            attributes=lambda: dict(ATTRIBUTES),
            windows=dict,
        )
        self._faults[request.name] = Faults()
        try:
            await self._luns.serve(lun, self._source.device(request.config), kernel, True)
        except BackendError as error:
            raise ApiError("BackendUnavailable", str(error)) from error
        self.kernels[request.name] = kernel
        settings = [("backstore", "cmd_time_out", "0")]
        return ExportResult(request.target or "iqn.simulated", request.portals, 0, "wwn", settings)

    async def unexport(self, name: str) -> None:
        self.device(name)
        await self._luns.forget(f"uio-{name}")
        self.kernels.pop(name).remove()
        await offload(self._keep.forget, name)

    def _open_storage(self, name: str, config: DeviceConfig) -> Backend:
        return FaultyStorage(super()._open_storage(name, config), self._faults[name])

    # ---- scripts

    async def play(self, script: Script) -> None:
        """Make the script's LUNs and let its time begin. Raises ApiError."""
        for new in script.luns:
            path = self._files / f"{new.name}.img"
            with path.open("wb") as file:
                file.truncate(new.size)
            config = ";".join(filter(None, [str(path), "buffered=true", new.settings]))
            await self.export(ExportRequest(new.name, config, size=new.size, any_initiator=True))
            self._tasks.spawn(self._initiator(new.name, new.size))
        self._tasks.spawn(self._carry_out(script.steps))

    async def _carry_out(self, steps: Sequence[Step]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while steps:
            for step in steps:
                await asyncio.sleep(began + step.at - loop.time())
                self._do(step)
            if steps[-1].what is not None:
                return
            began += steps[-1].at

    def _do(self, step: Step) -> None:
        match step.what:
            case Load(rate):
                self._rates[step.lun] = rate
            case Fault():
                self._faults[step.lun].begin(step.what)
            case Ok():
                self._faults[step.lun].end()

    async def _initiator(self, name: str, size: int) -> None:
        """Reads and writes by turns, one place after the other, as long as there is the LUN."""
        places = range(0, size // BLOCK - TRANSFER + 1, TRANSFER)
        opened: list[SimulatedCommand] = []
        count, owed = 0, 0.0
        while kernel := self.kernels.get(name):
            opened = [command for command in opened if command.status is None]
            owed = min(owed + self._rates.get(name, 0.0) * TICK, DEPTH)
            while owed >= 1 and len(opened) < DEPTH:
                owed -= 1
                cdb = bytes([READ_10 if count % 2 else WRITE_10, 0])
                cdb += places[count // 2 % len(places)].to_bytes(4, "big") + bytes([0, 0, TRANSFER, 0])
                data = bytes(TRANSFER * BLOCK)
                with contextlib.suppress(OSError):  # it is just being removed
                    opened.append(kernel.submit(cdb, data_in=len(data)) if count % 2 else kernel.submit(cdb, data))
                count += 1
            await asyncio.sleep(TICK)
