"""The disk: one CDB in, one request for the storage or one reply out."""

from __future__ import annotations

from collections.abc import Callable

from tcmu_retry.scsi import opcodes
from tcmu_retry.scsi.cdb import Task
from tcmu_retry.scsi.request import GOOD, Reply, Request, Status
from tcmu_retry.scsi.sense import (
    CAPACITY_CHANGED,
    NOT_READY_STOPPED,
    WRITE_PROTECTED,
    CheckCondition,
    Sense,
)
from tcmu_retry.scsi.unit import CopyStatus, DiskIdentity, Unit

__all__ = ["Disk", "DiskIdentity"]

INQUIRY, REQUEST_SENSE = 0x12, 0x03  # never meet a unit attention (SAM-5 §5.14); REPORT LUNS is the kernel's


class Disk:
    """A direct access block device. Pure: its state changes by commands and by whoever owns it, its data is elsewhere.

    The kernel does not tell from which initiator a command came: a unit attention goes to whoever comes next, and mode
    parameters are shared without one, because it would hit the very initiator that changed them.
    """

    def __init__(
        self,
        identity: DiskIdentity,
        block_size: int,
        size: int,
        *,
        can_discard: bool,
        physical: int = 0,
        read_only: bool = False,
        rotation_rate: int = 1,
        write_back: bool = False,
    ) -> None:
        """size: bytes, a multiple of block_size. rotation_rate: 1 non-rotating, 0 unknown, else turns per minute.

        physical: bytes of a physical block; what makes no power of two of logical blocks is not told.
        """
        self._unit = Unit(
            identity, block_size, _blocks(size, block_size), _exponent(physical, block_size), can_discard,
            rotation_rate, read_only, write_back,
        )  # fmt: skip

    def handle(self, cdb: bytes, data_length: int, data_out: Callable[[], bytes]) -> Request | Reply:
        """What a command comes to. data_length: bytes of its buffers, 0 without; data_out gathers them, if needed."""
        try:
            outcome = self._carry_out(Task(cdb, data_length, data_out))
        except CheckCondition as refusal:
            return self.sense_reply(refusal.sense)
        if isinstance(outcome, Request):
            return outcome
        # b"" and not None where there are buffers: what an earlier command left in them must not go out.
        return Reply(Status.GOOD, data=(outcome or b"")[:data_length]) if data_length else GOOD

    def _carry_out(self, task: Task) -> Request | bytes | None:
        unit = self._unit
        if unit.attentions and task.cdb[:1] not in (bytes((INQUIRY,)), bytes((REQUEST_SENSE,))):
            raise CheckCondition(unit.attentions.pop(0))
        command, handler = opcodes.find(task.cdb, unit.can_discard)
        if command.access is not opcodes.Access.NONE and unit.stopped:
            raise CheckCondition(NOT_READY_STOPPED)
        if command.access is not opcodes.Access.NONE:
            unit.resting = None
        if command.access is opcodes.Access.WRITE and unit.read_only:
            raise CheckCondition(WRITE_PROTECTED)
        return handler(unit, task)

    def sense_reply(self, sense: Sense) -> Reply:
        """CHECK CONDITION in the format that the control mode page asks for."""
        data = sense.descriptors() if self._unit.descriptor_sense else sense.fixed()
        return Reply(Status.CHECK_CONDITION, data)

    @property
    def plain(self) -> bool:
        """Nothing stands against running commands by `cdb.plain` unasked: no attention waits, it is awake."""
        unit = self._unit
        return not (unit.attentions or unit.stopped or unit.resting)

    def copied(self, request: Request, good: bool) -> None:
        """A COPY that `handle` asked for has ended; initiators may ask how."""
        copies = self._unit.copies
        for list_id, copy in list(copies.items()):
            if copy.request is request and copy.held:
                copy.status = CopyStatus.DONE if good else CopyStatus.FAILED
            elif copy.request is request:
                del copies[list_id]

    @property
    def read_only(self) -> bool:
        """By configuration, or because an initiator set SWP."""
        return self._unit.read_only

    @property
    def identity(self) -> DiskIdentity:
        """What INQUIRY tells."""
        return self._unit.identity

    @identity.setter
    def identity(self, identity: DiskIdentity) -> None:
        self._unit.identity = identity

    @property
    def block_size(self) -> int:
        return self._unit.block_size

    @property
    def blocks(self) -> int:
        return self._unit.blocks

    @property
    def health(self) -> Sense | None:
        """What TEST UNIT READY answers instead of GOOD; nothing else depends on it but REQUEST SENSE."""
        return self._unit.health

    @health.setter
    def health(self, sense: Sense | None) -> None:
        self._unit.health = sense

    def attention(self, sense: Sense) -> None:
        """Establish a unit attention; once, however often it is established before somebody took it."""
        if sense not in self._unit.attentions:
            self._unit.attentions.append(sense)

    def resize(self, size: int) -> None:
        """The medium has `size` bytes from now on; initiators learn of it by a unit attention."""
        blocks = _blocks(size, self._unit.block_size)
        if blocks != self._unit.blocks:
            self._unit.blocks = blocks
            self.attention(CAPACITY_CHANGED)


def _blocks(size: int, block_size: int) -> int:
    if size <= 0 or size % block_size:
        raise ValueError(f"a disk of {size} bytes has no whole number of blocks of {block_size} bytes")
    return size // block_size


def _exponent(physical: int, block_size: int) -> int:
    count, rest = divmod(physical, block_size)
    return 0 if rest or count.bit_count() != 1 else count.bit_length() - 1
