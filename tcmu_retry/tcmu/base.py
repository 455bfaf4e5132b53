"""The kernel's side of one LUN as its pump sees it; the real one is `uio.py`, the simulated one `simulated.py`."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Protocol

from tcmu_retry.tcmu.journal import Journal
from tcmu_retry.tcmu.ring import CommandEntry, TaskManagementEntry


class Channel(Protocol):
    """An open TCMU device: its shared memory and its two bells."""

    journal: Journal | None  # what is open, for the process after this one

    @property
    def memory(self) -> memoryview:
        """The whole mapping, writable, format B: mailbox, ring, data area."""

    def fileno(self) -> int:
        """Readable when the kernel queued entries; poll error bits mean that the device is gone."""

    @property
    def bell(self) -> int:
        """A file descriptor where a write of 4 bytes is the doorbell; -1: only `doorbell` is."""

    def acknowledge(self) -> None:
        """Consume the readiness; before the ring is scanned, never after. Raises OSError when the device is gone."""

    def doorbell(self) -> None:
        """Tell the kernel that completions were written; it processes them inside this call."""

    def free_kept_buffer(self, command_id: int) -> None:
        """Give a KEEP_BUF command's pages and id back to the kernel."""

    def close(self) -> None:
        """Give the device free for another opener. All views of `memory` made by the caller must be released before."""


def unmap(memory: memoryview) -> None:
    """End a mapping that nothing but this view holds. Raises BufferError while views of its views are alive."""
    mapping = memory.obj
    memory.release()
    assert isinstance(mapping, mmap.mmap)
    mapping.close()


class Door(Protocol):
    """How a LUN's ring is had. Each may block."""

    def open(self) -> Channel:
        """With what is in it. Raises OSError, RingError."""

    def open_anew(self) -> Channel:
        """With nothing in it: what was is answered BUSY. Raises OSError (EBUSY: I/O of its buffers is out), RingError.

        Nothing that this process or the kernel says of the ring is believed.
        """

    def block(self, blocked: bool) -> None:
        """Answer BUSY in the kernel to all commands from now on, or no longer. Raises OSError."""

    def exists(self) -> bool:
        """Whether there is this LUN."""


class CommandRing(Protocol):
    """The ring in a channel's memory; `ring.Ring` says what each means."""

    @property
    def unfetched(self) -> bool: ...

    def fetch(self) -> Sequence[CommandEntry | TaskManagementEntry]: ...

    def complete(
        self, number: int, status: int, sense: bytes = b"", read_len: int | None = None, keep_buffer: bool = False
    ) -> None: ...

    def settle(self) -> None: ...

    def close(self) -> None: ...
