"""The storage that is not there: what a LUN is served from between a lost backend and its reopen."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NoReturn

from tcmu_retry.backends.base import Identity


class AbsentBackend:
    """Every call fails with ENODEV, which is of class `gone`: a reopen comes before the next attempt."""

    can_discard = False
    write_back = False

    def __init__(self, identity: Identity, block_size: int) -> None:
        self.identity = identity
        self.block_size = block_size

    def _absent(self) -> NoReturn:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def size(self) -> int:
        self._absent()

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self._absent()

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        self._absent()

    def flush(self) -> None:
        self._absent()

    def discard(self, offset: int, length: int) -> None:
        self._absent()

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._absent()

    def close(self) -> None:
        pass
