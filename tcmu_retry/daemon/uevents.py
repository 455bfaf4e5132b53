"""The kernel's uevents that matter here: a uio device came, a block device came or changed.

Both are hints that save waiting. Events of source "kernel" come without udevd too; device nodes exist by then
(devtmpfs).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pyudev

log = logging.getLogger(__name__)


class Uevents:
    """Calls back in the main loop: uio(name) for a new uio device, block(name) for a new or changed block device."""

    def __init__(self, uio: Callable[[str], None], block: Callable[[str], None]) -> None:
        self._uio = uio
        self._block = block
        self._monitor: pyudev.Monitor | None = None

    def start(self) -> None:
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        monitor.filter_by("uio")
        monitor.filter_by("block")
        monitor.start()
        self._monitor = monitor
        asyncio.get_running_loop().add_reader(monitor.fileno(), self._readable)

    def close(self) -> None:
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor = None

    def _readable(self) -> None:
        assert self._monitor is not None
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                if device.subsystem == "uio" and device.action == "add":
                    self._uio(device.sys_name)
                elif device.subsystem == "block" and device.action in ("add", "change"):
                    self._block(device.sys_name)
        except OSError as error:
            log.warning("uevents were lost (%s); timers and the netlink events of the kernel go on", error)
