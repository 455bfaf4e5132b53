"""Carries out one command's request against a backend, in a worker thread.

A short transfer goes on within the attempt; no progress is EIO. Every attempt starts at byte 0: what an earlier one
moved was never acknowledged. COMPARE AND WRITE is the exception: once its compare has succeeded, a retry must not
compare again, for it may find its own half-written data.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence

from tcmu_retry.backends.base import Backend
from tcmu_retry.pump.base import Command
from tcmu_retry.scsi.request import Compare, Extent, Op, Request

CHUNK = 1 << 20  # bytes; scratch for compares and repeated patterns


def execute(command: Command, backend: Backend, buffers: list[memoryview], block_size: int) -> int | None:
    """Run command.request to its end, effects on stable media (the cache mode is write-through).

    The byte offset of a miscompare, or None. Raises OSError; the command is unanswered then and may be tried again.
    """
    request = command.request
    assert request is not None
    match request.op:
        case Op.READ:
            extent = request.extents[0]
            _read(backend, extent.offset, _cut(buffers, 0, extent.length))
        case Op.WRITE:
            extent = request.extents[0]
            _write(backend, extent.offset, _cut(buffers, 0, extent.length))
        case Op.FLUSH:
            backend.flush()
        case Op.UNMAP:
            for extent in request.extents:
                backend.discard(extent.offset, extent.length)
            backend.flush()
        case Op.WRITE_SAME:
            _write_same(request, backend, buffers, block_size)
        case Op.VERIFY:
            return _verify(request, backend, buffers, block_size)
        case Op.WRITE_AND_VERIFY:
            extent = request.extents[0]
            _write(backend, extent.offset, _cut(buffers, 0, extent.length))
            return _verify(request, backend, buffers, block_size)
        case Op.COMPARE_AND_WRITE:
            return _compare_and_write(command, request.extents[0], backend, buffers)
    return None


def _compare_and_write(command: Command, extent: Extent, backend: Backend, buffers: list[memoryview]) -> int | None:
    if not command.compared:
        offset = _compare(backend, extent, iter(_cut(buffers, 0, extent.length)))
        if offset is not None:
            return offset
        command.compared = True
    _write(backend, extent.offset, _cut(buffers, extent.length, extent.length))
    return None


def _verify(request: Request, backend: Backend, buffers: list[memoryview], block_size: int) -> int | None:
    extent = request.extents[0]
    match request.compare:
        case Compare.NONE:
            for piece, view in _scratch(extent):
                _read(backend, piece.offset, [view])
            return None
        case Compare.ALL:
            return _compare(backend, extent, iter(_cut(buffers, 0, extent.length)))
        case Compare.ONE_BLOCK:
            block = memoryview(b"".join(_cut(buffers, 0, block_size)))
            return _compare(backend, extent, (block for _ in range(extent.length // block_size)))


def _compare(backend: Backend, extent: Extent, expected: Iterator[memoryview]) -> int | None:
    """The offset, from the start of the extent, of the first byte that differs from the expected pieces in a row."""
    wanted = memoryview(b"")
    for piece, view in _scratch(extent):
        _read(backend, piece.offset, [view])
        done = 0
        while done < piece.length:
            wanted = wanted or next(expected)
            step = min(len(wanted), piece.length - done)
            found = view[done : done + step]
            if found != wanted[:step]:
                differs = next(index for index in range(step) if found[index] != wanted[index])
                return piece.offset - extent.offset + done + differs
            wanted = wanted[step:]
            done += step
    return None


def _write_same(request: Request, backend: Backend, buffers: list[memoryview], block_size: int) -> None:
    extent = request.extents[0]
    pattern = bytes(block_size) if request.zeroes else b"".join(_cut(buffers, 0, block_size))
    if not any(pattern):
        try:
            backend.zero(extent.offset, extent.length, discard=request.unmap)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        else:
            backend.flush()
            return
    filled = 0
    for piece, view in _scratch(extent):
        if len(view) > filled:
            view[:] = pattern * (len(view) // block_size)
            filled = len(view)
        _write(backend, piece.offset, [view])


def _scratch(extent: Extent) -> Iterator[tuple[Extent, memoryview]]:
    """The extent in pieces, each with the same memory, aligned as O_DIRECT wants it."""
    memory = memoryview(mmap.mmap(-1, min(CHUNK, max(extent.length, 1))))
    for offset in range(extent.offset, extent.end, CHUNK):
        length = min(CHUNK, extent.end - offset)
        yield Extent(offset, length), memory[:length]


def _cut(buffers: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """The bytes start … start+length of the buffers in a row. Raises OSError EFAULT where they are too short."""
    pieces = []
    for view in buffers:
        if length and start < len(view):
            piece = view[start : start + length]
            pieces.append(piece)
            length -= len(piece)
            start = 0
        else:
            start -= min(start, len(view))
    if length:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return pieces


def _read(backend: Backend, offset: int, buffers: list[memoryview]) -> None:
    while buffers:
        moved = backend.read(offset, buffers)
        offset, buffers = _advance(offset, buffers, moved)


def _write(backend: Backend, offset: int, buffers: list[memoryview]) -> None:
    while buffers:
        moved = backend.write(offset, buffers, durable=True)
        offset, buffers = _advance(offset, buffers, moved)


def _advance(offset: int, buffers: list[memoryview], moved: int) -> tuple[int, list[memoryview]]:
    if moved <= 0:
        raise OSError(errno.EIO, "no progress")
    return offset + moved, _cut(buffers, moved, sum(map(len, buffers)) - moved)
