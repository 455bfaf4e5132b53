"""What the pump asks of storage: blocking calls from worker threads, errors as OSError with the true errno."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class BackendError(Exception):
    """The storage cannot be used; the message is one sentence: what, where, what to do. `errno` goes to the kernel."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes storage the same after a reopen. Empty strings: the storage cannot say."""

    kind: str  # "file" or "block"
    size: int  # bytes
    unique: str  # "SCHEME:…", only compared within one scheme; file: file system + file handle; block: WWID, dm-uuid …
    physical: int = 0  # bytes of a physical block; 0: the storage does not say

    def difference(self, found: Identity) -> str | None:
        """One sentence naming how `found` is other storage than this, or None where it is the same.

        The sizes do not count: storage may grow, and whether it is large enough is the LUN's to say.
        """
        if self.kind != found.kind:
            return f"it was a {self.kind} and is a {found.kind} now"
        same_scheme = self.unique.partition(":")[0] == found.unique.partition(":")[0]
        if same_scheme and self.unique != found.unique:
            return f"its identity was {self.unique} and is {found.unique} now"
        return None


class Backend(Protocol):
    """One open storage. Every call but `close` may block for as long as the storage does, and may run in any thread.

    read and write behave as preadv and pwritev: they return the bytes moved, possibly fewer than asked.
    """

    @property
    def identity(self) -> Identity: ...

    @property
    def block_size(self) -> int:
        """Smallest I/O and alignment in bytes that the storage takes."""

    @property
    def can_discard(self) -> bool: ...

    @property
    def write_back(self) -> bool:
        """Whether what was written may stay volatile until the next flush; otherwise each change must be durable."""

    def size(self) -> int:
        """Bytes that it has now; it may have grown since it was opened."""

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int: ...

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        """durable: on stable media when it returns (RWF_DSYNC)."""

    def flush(self) -> None: ...

    def discard(self, offset: int, length: int) -> None:
        """Deallocate; the range reads as zeros afterwards."""

    def zero(self, offset: int, length: int, discard: bool) -> None:
        """Write zeros without sending them; `discard` allows deallocation. EOPNOTSUPP: do it by writes."""

    def close(self) -> None: ...


@runtime_checkable
class DirectBackend(Protocol):
    """Storage that may be read and written past its methods, where these would do nothing else.

    With `replay.Logged` that is so only for who has borrowed its log.
    """

    @property
    def descriptor(self) -> int | None:
        """The open file: preadv, pwritev with RWF_DSYNC, fdatasync, any number at once. None: call the methods."""

    def meaning(self, code: int) -> int:
        """What an errno from the descriptor says of the storage, as an errno. May block."""
