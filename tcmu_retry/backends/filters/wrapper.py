"""What filters share: every call passes `_before`, then goes to the backend below."""

from __future__ import annotations

from collections.abc import Sequence

from tcmu_retry.backends.base import Backend, Identity
from tcmu_retry.scsi.request import Direction


class Wrapper:
    """A backend over another; a filter overrides `_before`."""

    def __init__(self, below: Backend) -> None:
        self._below = below

    def _before(self, direction: Direction, offset: int | None, length: int) -> None:
        """Runs before each call, in its thread. offset None: a flush, which concerns no range. May raise OSError."""

    @property
    def identity(self) -> Identity:
        return self._below.identity

    @property
    def block_size(self) -> int:
        return self._below.block_size

    @property
    def can_discard(self) -> bool:
        return self._below.can_discard

    @property
    def write_back(self) -> bool:
        return self._below.write_back

    def size(self) -> int:
        return self._below.size()

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self._before(Direction.READ, offset, sum(map(len, buffers)))
        return self._below.read(offset, buffers)

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        self._before(Direction.WRITE, offset, sum(map(len, buffers)))
        return self._below.write(offset, buffers, durable)

    def flush(self) -> None:
        self._before(Direction.WRITE, None, 0)
        self._below.flush()

    def discard(self, offset: int, length: int) -> None:
        self._before(Direction.WRITE, offset, length)
        self._below.discard(offset, length)

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._before(Direction.WRITE, offset, length)
        self._below.zero(offset, length, discard)

    def close(self) -> None:
        self._below.close()
