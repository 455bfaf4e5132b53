"""Carries out one command's request against a backend, or a probe, in a worker thread.

A short transfer goes on within the attempt; no progress is EIO. Every attempt starts at byte 0: what an earlier one
moved was never acknowledged. Two are exceptions. Once the compare of COMPARE AND WRITE has succeeded, a retry must not
compare again, for it may find its own half-written data. A COPY may write over what it was to read: each piece is read
once, kept until it is written, and a retry goes on with it.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat

from tcmu_retry.backends.base import Backend
from tcmu_retry.pump.base import Command
from tcmu_retry.scsi.request import COPY_PIECE, Compare, Extent, Op, Request

CHUNK = 1 << 20  # bytes; scratch for compares and repeated patterns


def execute(
    command: Command,
    backend: Backend,
    buffers: list[memoryview],
    block_size: int,
    compared: Callable[[Command], None] = lambda command: None,
) -> int | None:
    """Run command.request to its end, effects where the backend's cache mode says: on stable media unless write-back.

    The byte offset of a miscompare, or None. compared: told that COMPARE AND WRITE is about to write. Raises OSError;
    the command is unanswered then and may be tried again. ECANCELED: it was answered (aborted) between two steps, and
    the next one was not begun.
    """
    assert command.request is not None
    return _Attempt(command, command.request, backend, buffers, block_size, compared).run()


def probe(backend: Backend) -> int:
    """Read one block; the errno of how that went, or 0."""
    page = mmap.mmap(-1, max(mmap.PAGESIZE, backend.block_size))  # aligned, as O_DIRECT wants it
    try:
        return 0 if backend.read(0, [memoryview(page)[: backend.block_size]]) else errno.EIO
    except OSError as error:
        return error.errno or errno.EIO


class _Attempt:
    """One try at one command. Offsets and lengths in bytes."""

    __slots__ = ("_backend", "_block_size", "_buffers", "_command", "_compared", "_request")

    def __init__(
        self,
        command: Command,
        request: Request,
        backend: Backend,
        buffers: list[memoryview],
        block_size: int,
        compared: Callable[[Command], None],
    ) -> None:
        self._command = command
        self._request = request
        self._backend = backend
        self._buffers = buffers
        self._block_size = block_size
        self._compared = compared

    def run(self) -> int | None:
        request = self._request
        match request.op:
            case Op.READ:
                (extent,) = request.extents
                self._read(extent.offset, _cut(self._buffers, 0, extent.length))
            case Op.WRITE:
                (extent,) = request.extents
                self._write(extent.offset, _cut(self._buffers, 0, extent.length))
            case Op.FLUSH:
                self._flush()
            case Op.UNMAP:
                self._unmap()
            case Op.WRITE_SAME:
                self._write_same(request.extents[0])
            case Op.COMPARE_AND_WRITE:
                return self._compare_and_write(request.extents[0])
            case Op.VERIFY:
                return self._verify(request.extents[0])
            case Op.WRITE_AND_VERIFY:
                (extent,) = request.extents
                self._write(extent.offset, _cut(self._buffers, 0, extent.length))
                return self._verify(extent)
            case Op.OR_WRITE:
                self._or_write(request.extents[0])
            case Op.COPY:
                self._copy()
        return None

    def _or_write(self, extent: Extent) -> None:
        for piece, view in _scratch(extent):
            self._read(piece.offset, [view])
            bits = b"".join(_cut(self._buffers, piece.offset - extent.offset, piece.length))
            both = int.from_bytes(view, "little") | int.from_bytes(bits, "little")
            view[:] = both.to_bytes(piece.length, "little")
            self._write(piece.offset, [view])

    def _copy(self) -> None:
        command = self._command
        for source, destination in islice(_pieces(self._request.extents), command.copied, None):
            if command.piece is None:
                piece = memoryview(mmap.mmap(-1, source.length))
                self._read(source.offset, [piece])
                command.piece = piece
            self._write(destination.offset, [command.piece])
            command.piece = None
            command.copied += 1

    def _unmap(self) -> None:
        for extent in self._request.extents:
            if extent.length:  # a block descriptor of no blocks is no error (SBC-4 5.35.2)
                self._step()
                self._backend.discard(extent.offset, extent.length)
        self._harden()

    def _write_same(self, extent: Extent) -> None:
        size = self._block_size
        pattern = bytes(size) if self._request.zeroes else b"".join(_cut(self._buffers, 0, size))
        if not any(pattern) and self._zeroed(extent):
            return
        filled = False
        for piece, view in _scratch(extent):
            if not filled:  # the first piece is the longest
                view[:] = pattern * (len(view) // size)
                filled = True
            self._write(piece.offset, [view])

    def _zeroed(self, extent: Extent) -> bool:
        self._step()
        try:
            self._backend.zero(extent.offset, extent.length, self._request.unmap)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
        self._harden()
        return True

    def _compare_and_write(self, extent: Extent) -> int | None:
        new = _cut(self._buffers, extent.length, extent.length)
        if not self._command.compared:
            offset = self._compare(extent, iter(_cut(self._buffers, 0, extent.length)))
            if offset is not None:
                return offset
            self._command.compared = True
            self._compared(self._command)
        self._write(extent.offset, new)
        return None

    def _verify(self, extent: Extent) -> int | None:
        match self._request.compare:
            case Compare.NONE:
                for piece, view in _scratch(extent):
                    self._read(piece.offset, [view])
                return None
            case Compare.ALL:
                return self._compare(extent, iter(_cut(self._buffers, 0, extent.length)))
            case Compare.ONE_BLOCK:
                block = memoryview(b"".join(_cut(self._buffers, 0, self._block_size)))
                return self._compare(extent, repeat(block))

    def _compare(self, extent: Extent, expected: Iterator[memoryview]) -> int | None:
        """The offset, from the start of the extent, of the first byte that differs from the pieces in a row."""
        wanted = memoryview(b"")
        for piece, view in _scratch(extent):
            self._read(piece.offset, [view])
            done = 0
            while done < piece.length:
                wanted = wanted or next(expected)
                step = min(len(wanted), piece.length - done)
                found = view[done : done + step]
                if found != wanted[:step]:
                    return piece.offset - extent.offset + done + _difference(found, wanted[:step])
                wanted = wanted[step:]
                done += step
        return None

    def _read(self, offset: int, buffers: list[memoryview]) -> None:
        self._transfer(self._backend.read, offset, buffers)

    def _write(self, offset: int, buffers: list[memoryview]) -> None:
        request = self._request
        # WRITE AND VERIFY looks at the medium, not at a cache (SBC-4 5.49).
        durable = not self._backend.write_back or request.fua or request.op is Op.WRITE_AND_VERIFY
        self._transfer(lambda at, rest: self._backend.write(at, rest, durable), offset, buffers)

    def _transfer(
        self, move: Callable[[int, Sequence[memoryview]], int], offset: int, buffers: list[memoryview]
    ) -> None:
        left = sum(map(len, buffers))
        while left:
            self._step()
            moved = move(offset, buffers)
            moved -= moved % self._backend.block_size  # O_DIRECT goes on at whole blocks only
            if moved <= 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            left -= moved
            if left:
                offset += moved
                buffers = _cut(buffers, moved, left)

    def _harden(self) -> None:
        """After a change that could not be made durable by itself."""
        if not self._backend.write_back or self._request.fua:
            self._flush()

    def _flush(self) -> None:
        self._step()
        self._backend.flush()

    def _step(self) -> None:
        """Before each call of the backend: nothing starts for a command that was answered or aborted meanwhile."""
        if self._command.answered:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


def _difference(found: memoryview, wanted: memoryview) -> int:
    """The first index at which two pieces of one length differ, by halves: byte by byte 8 MiB take seconds."""
    low, high = 0, len(found)  # equal before low, a difference before high
    while high - low > 1:
        middle = (low + high) // 2
        if found[low:middle] == wanted[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _pieces(extents: tuple[Extent, ...]) -> Iterator[tuple[Extent, Extent]]:
    """Sources and destinations of a COPY in order. Of ranges that overlap, what will be overwritten is copied first."""
    for source, destination in zip(extents[::2], extents[1::2], strict=True):
        starts = range(0, source.length, COPY_PIECE)
        for at in reversed(starts) if source.offset < destination.offset < source.end else starts:
            length = min(COPY_PIECE, source.length - at)
            yield Extent(source.offset + at, length), Extent(destination.offset + at, length)


def _scratch(extent: Extent) -> Iterator[tuple[Extent, memoryview]]:
    """The extent in pieces, each with the same memory, aligned as O_DIRECT wants it."""
    memory = memoryview(mmap.mmap(-1, min(CHUNK, max(extent.length, 1))))
    for offset in range(extent.offset, extent.end, CHUNK):
        length = min(CHUNK, extent.end - offset)
        yield Extent(offset, length), memory[:length]


def _cut(buffers: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """The bytes start … start+length of the buffers in a row. Raises OSError EINVAL where they are too short."""
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
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return pieces
