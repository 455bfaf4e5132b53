"""The logical unit: what it is and the state that its commands look at and change."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tcmu_retry.scsi.request import Request
from tcmu_retry.scsi.sense import Sense

GRANULE = 4096  # bytes; what storage likes to write and to deallocate in one piece
MAXIMUM_UNMAP = 512 << 20  # bytes of one UNMAP
MAXIMUM_UNMAP_DESCRIPTORS = 256
MAXIMUM_WRITE_SAME = 16 << 20  # bytes
MAXIMUM_COMPARE = 255  # blocks


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """What INQUIRY tells of the disk. serial: the LUN's WWN, stable for its life; name: the backstore's, for people."""

    serial: str
    name: str
    vendor: str = "TCMU"  # 8 characters at most
    product: str = "tcmu-retry"  # 16
    revision: str = "1"  # 4


class CopyStatus(enum.Enum):
    """COPY COMMAND STATUS of RECEIVE COPY STATUS (SPC-4 §6.18.2)."""

    RUNNING = 0
    DONE = 1
    FAILED = 2


@dataclass(slots=True)
class Copy:
    """An EXTENDED COPY that an initiator may ask about. request None: there was nothing to copy.

    held: after its end, too; its initiator did not say that its result may be discarded.
    """

    request: Request | None
    status: CopyStatus
    held: bool


@dataclass(slots=True)
class Unit:
    """Plain state; who changes it is its commands and `Disk`.

    descriptor_sense, software_write_protect: D_SENSE and SWP of the control mode page.
    stopped: by START STOP UNIT. It lives as long as the daemon: a disk that lost its power starts again by itself.
    resting: idle or standby by START STOP UNIT, as REQUEST SENSE tells it; the next access to the medium ends it.
    health: what TEST UNIT READY says while the storage is away, or None.
    copies: by list identifier, a byte.
    """

    identity: DiskIdentity
    block_size: int
    blocks: int
    exponent: int  # 2 to this many logical blocks are a physical one
    can_discard: bool
    rotation_rate: int
    protected: bool  # read-only by configuration
    write_back: bool  # WCE: GOOD for a write may mean a volatile cache
    descriptor_sense: bool = False
    software_write_protect: bool = False
    stopped: bool = False
    resting: Sense | None = None
    health: Sense | None = None
    attentions: list[Sense] = field(default_factory=list)
    copies: dict[int, Copy] = field(default_factory=dict)

    @property
    def read_only(self) -> bool:
        return self.protected or self.software_write_protect

    def count(self, size: int) -> int:
        """`size` bytes in blocks, one at least."""
        return max(size // self.block_size, 1)
