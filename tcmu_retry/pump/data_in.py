"""A reply's Data-In, put where the kernel takes it."""

from __future__ import annotations

from tcmu_retry.pump.base import Command
from tcmu_retry.scsi.request import Op, Reply, Status


def put(memory: memoryview, command: Command, reply: Reply) -> int | None:
    """Into a command's buffer, which the ring's memory has; the value for READ_LEN, or None for the whole buffer.

    The kernel copies the buffer whatever the status is, and a reused data block still holds another command's data:
    what is not written is zeroed, even where a command has no Data-In and somebody asked for some. READ_LEN cannot
    say 0.
    """
    request = command.request
    data = reply.data
    if data is None:
        if request is not None and request.takes_data:
            return None
        if request is not None and request.op is Op.READ and reply.status is Status.GOOD:
            return request.length if request.length < command.data_length else None
        data = b""
    done = 0
    for offset, length in command.iovs:
        piece = data[done : done + length]
        done += len(piece)
        memory[offset : offset + length] = piece.ljust(length, b"\0")
    return done if 0 < done < command.data_length else None
