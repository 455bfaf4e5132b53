"""tcmu-retryd with the kernel simulated; devices, storage, D-Bus service and configuration are the real ones.

usage: simulated_daemon.py BUS CONFIG-DIRECTORY STATE-DIRECTORY

`Export` makes a LUN with a simulated kernel side. Commands of an initiator come by stdin, one JSON object a line, each
answered by one on stdout:
    {"lun", "write": LBA, "text"} or {"lun", "read": LBA}   ->  {"number"}
    {"wait": number, "timeout": s}                          ->  {"status": int or null}
    {"abort": number}                                       ->  {}
    {"lun", "damage": true}                                 ->  {}
    {"lun", "resize": bytes}                                ->  {"problem": sentence, or ""}
    {"lun", "attention": true}                              ->  {"sense": hex of a TEST UNIT READY's sense}
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from tcmu_retry.backends.base import BackendError
from tcmu_retry.daemon.config import Source
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.simulation import BLOCK, Simulation
from tcmu_retry.dbus.bridge import Bridge
from tcmu_retry.dbus.service import serve
from tcmu_retry.retryd import signals
from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel


def initiator(service: Simulation, loop: asyncio.AbstractEventLoop) -> None:
    """In a thread of its own: carries out stdin."""
    commands: list[tuple[SimulatedKernel, SimulatedCommand]] = []

    def carry_out(asked: dict[str, Any]) -> dict[str, Any]:
        if "wait" in asked:
            command = commands[asked["wait"]][1]
            command.wait(asked["timeout"])
            return {"status": command.status}
        if "abort" in asked:
            kernel, command = commands[asked["abort"]]
            kernel.abort([command])
            return {}
        if "resize" in asked:
            device = service.device(asked["lun"])
            assert isinstance(device, Device)
            try:
                asyncio.run_coroutine_threadsafe(device.resize(asked["resize"]), loop).result()
            except BackendError as error:
                return {"problem": str(error)}
            return {"problem": ""}
        kernel = service.kernels[asked["lun"]]
        if "damage" in asked:
            kernel.damage()
            return {}
        if "attention" in asked:
            command = kernel.submit(bytes(6))
            command.wait(5)
            return {"sense": command.sense[:18].hex(" ")}
        if "write" in asked:
            data = asked["text"].encode().ljust(BLOCK, b"\0")
            command = kernel.submit(bytes([0x2A, 0, *asked["write"].to_bytes(4, "big"), 0, 0, 1, 0]), data)
        else:
            command = kernel.submit(bytes([0x28, 0, *asked["read"].to_bytes(4, "big"), 0, 0, 1, 0]), data_in=BLOCK)
        commands.append((kernel, command))
        return {"number": len(commands) - 1}

    for line in sys.stdin:
        sys.stdout.write(json.dumps(carry_out(json.loads(line))) + "\n")
        sys.stdout.flush()
    os._exit(0)


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    service = Simulation(Source(Path(sys.argv[2])), Path(sys.argv[3]))
    await serve(service, address=sys.argv[1])
    await Bridge(service, sys.argv[1]).start()
    threading.Thread(target=partial(initiator, service, asyncio.get_running_loop()), daemon=True).start()
    await signals(service).wait()


if __name__ == "__main__":
    asyncio.run(main())
