"""The kernel's door to a LUN's ring; see `tcmu.base.Door`."""

from __future__ import annotations

from collections.abc import Callable

from tcmu_retry.daemon import takeover
from tcmu_retry.tcmu import configfs
from tcmu_retry.tcmu.uio import SYS, UioChannel, UioDevice, find


class KernelDoor:
    """Of one uio device."""

    def __init__(self, uio: UioDevice, fresh: bool, unproven: Callable[[int, str], None]) -> None:
        """fresh, unproven: as for `takeover.open_channel`."""
        self._uio = uio
        self._fresh = fresh
        self._unproven = unproven

    def open(self) -> UioChannel:
        return takeover.open_channel(self._uio, self._fresh, self._unproven)

    def open_anew(self) -> UioChannel:
        takeover.forget(self._uio)
        return takeover.open_channel(self._uio, False, lambda count, reason: None)

    def block(self, blocked: bool) -> None:
        configfs.block(self._uio, blocked)

    def exists(self) -> bool:
        """What cannot be read, for want of a file descriptor for example, is there."""
        return (SYS / self._uio.uio).exists() and find(self._uio.uio) in (None, self._uio)
