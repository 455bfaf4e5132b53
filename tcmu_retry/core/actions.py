"""What the engine tells its driver to do. A token names one command of one LUN for its whole life."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tcmu_retry.scsi.request import Direction
from tcmu_retry.scsi.sense import Sense

Token = int


class Verdict(enum.Enum):
    """An answer that is not sense data."""

    IGNORED = "ignored"  # GOOD without the effect: writes dropped, reads zero-filled (`ignore` only)
    BUSY = "busy"
    RESERVATION_CONFLICT = "reservation-conflict"
    ABORTED = "aborted"  # named by task management; the kernel sends no status of ours


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Try this command's I/O now, from byte 0; its end comes back through `Engine.finished`."""

    token: Token


@dataclass(frozen=True, slots=True)
class Complete:
    """Answer this command. `keep_buffer`: its I/O still runs, the kernel must keep the pages (KEEP_BUF)."""

    token: Token
    answer: Sense | Verdict
    keep_buffer: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Read one block to learn whether the storage is back; its end comes back through `Engine.probed`."""

    direction: Direction


@dataclass(frozen=True, slots=True)
class Reopen:
    """Open the backend again and check its identity; the outcome comes back through `Engine.reopened`."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Open: the pump may run plain commands unasked again. Emitted only with `open=True`; the pump closes it itself."""

    open: bool


@dataclass(frozen=True, slots=True)
class Emit:
    """Something a person wants to know; one per edge, never one per command."""

    code: str
    direction: Direction | None = None
    fields: Mapping[str, object] = field(default_factory=dict)


Action = Dispatch | Complete | Probe | Reopen | Gate | Emit
