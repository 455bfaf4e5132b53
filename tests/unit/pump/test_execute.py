"""One request against storage that transfers short, fails, or changes under it: which calls are made, what is left."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_retry.backends.base import Identity
from tcmu_retry.pump.base import Command
from tcmu_retry.pump.execute import CHUNK, execute
from tcmu_retry.scsi.request import COPY_PIECE, Compare, Extent, Op, Request

BLOCK = 512
Fault = int | OSError | None  # bytes moved at most, an error, or nothing


@dataclass
class FakeBackend:
    """Storage in memory. `script`: what happens to the first calls, in order."""

    medium: bytearray
    script: list[Fault] = field(default_factory=list)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    block_size: int = BLOCK
    can_discard: bool = True
    write_back: bool = False
    can_zero: bool = True

    @property
    def identity(self) -> Identity:
        return Identity("file", len(self.medium), "")

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        wanted = sum(map(len, buffers))
        moved = self._next("read", offset, wanted, most=wanted)
        taken = self.medium[offset : offset + moved]
        for view in buffers:
            piece, taken = taken[: len(view)], taken[len(view) :]
            view[: len(piece)] = piece
        return moved

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        data = b"".join(buffers)
        assert offset + len(data) <= len(self.medium), "a write beyond the medium"
        assert durable, "write-through LUNs write durably"
        moved = self._next("write", offset, len(data), most=len(data))
        self.medium[offset : offset + moved] = data[:moved]
        return moved

    def flush(self) -> None:
        self._next("flush")

    def discard(self, offset: int, length: int) -> None:
        self._next("discard", offset, length)
        self.medium[offset : offset + length] = bytes(length)

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._next("zero", offset, length, discard)
        if not self.can_zero:
            raise OSError(errno.EOPNOTSUPP, "")
        self.medium[offset : offset + length] = bytes(length)

    def close(self) -> None:
        raise AssertionError("an attempt does not close the storage")

    def _next(self, *call: object, most: int = 0) -> int:
        self.calls.append(call)
        happens = self.script.pop(0) if self.script else None
        if isinstance(happens, OSError):
            raise happens
        return most if happens is None else min(happens, most)


def failure(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def command(op: Op, *extents: tuple[int, int], compare: Compare = Compare.NONE, **flags: bool) -> Command:
    """Extents in blocks."""
    ranges = tuple(Extent(first * BLOCK, count * BLOCK) for first, count in extents)
    return Command(1, 1, b"", (), 0.0, Request(op, ranges, compare=compare, **flags))


def split(data: bytes | bytearray, sizes: Iterable[int] = ()) -> list[memoryview]:
    """Views of one memory as the ring has them: in pieces."""
    memory = memoryview(bytearray(data))
    pieces = []
    for size in sizes:
        pieces.append(memory[:size])
        memory = memory[size:]
    return [*pieces, memory]


def pattern(blocks: int, seed: int = 1) -> bytes:
    return b"".join(bytes([(seed + number) % 256]) * BLOCK for number in range(blocks))


SHORT, NOTHING, EIO = BLOCK, 0, failure(errno.EIO)

TABLE = [
    # what, command, Data-Out, faults of the calls in order → calls, outcome
    ("read", command(Op.READ, (2, 3)), b"", [], [("read", 1024, 1536)], None),
    ("short read", command(Op.READ, (2, 3)), b"", [SHORT], [("read", 1024, 1536), ("read", 1536, 1024)], None),
    ("torn read", command(Op.READ, (2, 3)), b"", [700], [("read", 1024, 1536), ("read", 1536, 1024)], None),
    ("end of file", command(Op.READ, (2, 3)), b"", [NOTHING], [("read", 1024, 1536)], errno.EIO),
    ("half a block", command(Op.READ, (2, 3)), b"", [SHORT, 100],
     [("read", 1024, 1536), ("read", 1536, 1024)], errno.EIO),
    ("write", command(Op.WRITE, (0, 2)), pattern(2), [], [("write", 0, 1024)], None),
    ("short write", command(Op.WRITE, (0, 2)), pattern(2), [SHORT], [("write", 0, 1024), ("write", 512, 512)], None),
    ("full", command(Op.WRITE, (0, 2)), pattern(2), [SHORT, failure(errno.ENOSPC)],
     [("write", 0, 1024), ("write", 512, 512)], errno.ENOSPC),
    ("too little data", command(Op.WRITE, (0, 2)), pattern(1), [], [], errno.EINVAL),
    ("too much data", command(Op.WRITE, (0, 1)), pattern(2), [], [("write", 0, 512)], None),
    ("no blocks", command(Op.WRITE, (5, 0)), b"", [], [], None),
    ("flush", command(Op.FLUSH), b"", [], [("flush",)], None),
    ("flush fails", command(Op.FLUSH), b"", [EIO], [("flush",)], errno.EIO),
    ("unmap", command(Op.UNMAP, (1, 1), (4, 0), (6, 2)), b"", [],
     [("discard", 512, 512), ("discard", 3072, 1024), ("flush",)], None),
    ("unmap fails", command(Op.UNMAP, (1, 1), (6, 2)), b"", [EIO], [("discard", 512, 512)], errno.EIO),
    ("unmap's flush fails", command(Op.UNMAP, (1, 1)), b"", [None, EIO],
     [("discard", 512, 512), ("flush",)], errno.EIO),
    ("zeroes", command(Op.WRITE_SAME, (1, 2), zeroes=True), b"", [], [("zero", 512, 1024, False), ("flush",)], None),
    ("zero pattern", command(Op.WRITE_SAME, (1, 2), unmap=True), bytes(BLOCK), [],
     [("zero", 512, 1024, True), ("flush",)], None),
    ("zero not known", command(Op.WRITE_SAME, (1, 2), zeroes=True), b"", [failure(errno.EOPNOTSUPP)],
     [("zero", 512, 1024, False), ("write", 512, 1024)], None),
    ("zero fails", command(Op.WRITE_SAME, (1, 2), zeroes=True), b"", [EIO], [("zero", 512, 1024, False)], errno.EIO),
    ("unmap keeps a pattern", command(Op.WRITE_SAME, (1, 2), unmap=True), pattern(1), [], [("write", 512, 1024)], None),
    ("verify", command(Op.VERIFY, (1, 2)), b"", [], [("read", 512, 1024)], None),
    ("verify a bad block", command(Op.VERIFY, (1, 2)), b"", [failure(errno.ENODATA)], [("read", 512, 1024)],
     errno.ENODATA),
    ("write and verify", command(Op.WRITE_AND_VERIFY, (1, 2), compare=Compare.ALL), pattern(2), [],
     [("write", 512, 1024), ("read", 512, 1024)], None),
    ("compare and write", command(Op.COMPARE_AND_WRITE, (0, 1)), bytes(BLOCK) + pattern(1), [],
     [("read", 0, 512), ("write", 0, 512)], None),
    ("compare and half a write", command(Op.COMPARE_AND_WRITE, (0, 1)), bytes(BLOCK), [], [], errno.EINVAL),
]  # fmt: skip


@pytest.mark.parametrize(("task", "data", "faults", "calls", "outcome"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])  # fmt: skip
def test_calls(
    task: Command, data: bytes, faults: list[Fault], calls: list[tuple[object, ...]], outcome: int | None
) -> None:
    """Which backend calls a request becomes, and where it ends when one of them fails."""
    backend = FakeBackend(bytearray(8 * BLOCK), list(faults))
    buffers = split(data or bytes(3 * BLOCK), [100])
    if outcome is None:
        assert execute(task, backend, buffers, BLOCK) is None
    else:
        with pytest.raises(OSError) as raised:
            execute(task, backend, buffers, BLOCK)
        assert raised.value.errno == outcome
    assert backend.calls == calls


def test_read_leaves_the_rest_of_the_buffers_alone() -> None:
    """A Data-In buffer larger than the transfer is not touched behind it."""
    backend = FakeBackend(bytearray(pattern(8)))
    buffers = split(b"\xff" * 3 * BLOCK, [300, 900])
    execute(command(Op.READ, (1, 2)), backend, buffers, BLOCK)
    assert b"".join(buffers) == pattern(2, seed=2) + b"\xff" * BLOCK


@pytest.mark.parametrize(
    ("expected", "compare", "found"),
    [
        (pattern(3), Compare.ALL, None),
        (pattern(2) + b"\x03" * 511 + b"\0", Compare.ALL, 3 * BLOCK - 1),
        (b"\0" + pattern(3)[1:], Compare.ALL, 0),
        (pattern(1), Compare.ONE_BLOCK, BLOCK),
        (b"\x01" * 511 + b"\0", Compare.ONE_BLOCK, 511),
    ],
)
def test_verify_tells_the_first_byte_that_differs(expected: bytes, compare: Compare, found: int | None) -> None:
    """MISCOMPARE is an outcome with an offset, not an error that would be retried."""
    backend = FakeBackend(bytearray(pattern(3)))
    assert execute(command(Op.VERIFY, (0, 3), compare=compare), backend, split(expected, [7]), BLOCK) == found


def test_miscompare_writes_nothing() -> None:
    """COMPARE AND WRITE over other data leaves the medium as it is, and may be compared again."""
    backend = FakeBackend(bytearray(pattern(2)))
    task = command(Op.COMPARE_AND_WRITE, (0, 2))
    assert execute(task, backend, split(pattern(1) + bytes(BLOCK) + pattern(2, 9), [1024]), BLOCK) == BLOCK
    assert backend.medium == pattern(2)
    assert not task.compared


def test_retry_of_the_write_phase_does_not_compare() -> None:
    """After a failed write phase the medium may hold half of the new data: the retry writes, whatever is there."""
    backend = FakeBackend(bytearray(pattern(2)), [None, SHORT, EIO])
    task = command(Op.COMPARE_AND_WRITE, (0, 2))
    buffers = split(pattern(2) + pattern(2, 9), [700])
    with pytest.raises(OSError):
        execute(task, backend, buffers, BLOCK)
    assert backend.medium != pattern(2)
    backend.calls.clear()
    assert execute(task, backend, buffers, BLOCK) is None
    assert backend.calls == [("write", 0, 1024)]
    assert backend.medium == pattern(2, 9)


def test_retry_of_the_compare_phase_compares_again() -> None:
    """A compare that could not read has compared nothing."""
    backend = FakeBackend(bytearray(pattern(1)), [EIO])
    task = command(Op.COMPARE_AND_WRITE, (0, 1))
    with pytest.raises(OSError):
        execute(task, backend, split(pattern(1) + pattern(1, 9)), BLOCK)
    assert not task.compared


@pytest.mark.parametrize(
    ("task", "data", "script", "done"),
    [
        (command(Op.COMPARE_AND_WRITE, (0, 1)), bytes(BLOCK) + pattern(1), [], 1),
        (command(Op.WRITE, (0, 3)), pattern(3), [SHORT], 1),
        (command(Op.UNMAP, (0, 1), (2, 1)), b"", [], 1),
        (command(Op.WRITE_AND_VERIFY, (0, 1)), pattern(1), [], 1),
    ],
)
def test_no_step_begins_after_the_answer(task: Command, data: bytes, script: list[Fault], done: int) -> None:
    """A command aborted while one call of it runs makes no further call: no late write over newer data."""

    class Answering(FakeBackend):
        def _next(self, *call: object, most: int = 0) -> int:
            task.answered = True
            return super()._next(*call, most=most)

    backend = Answering(bytearray(8 * BLOCK), list(script))
    with pytest.raises(OSError) as raised:
        execute(task, backend, split(data), BLOCK)
    assert raised.value.errno == errno.ECANCELED
    assert len(backend.calls) == done


def test_write_same_goes_in_pieces() -> None:
    """A pattern over more than the scratch memory: pieces of at most 1 MiB, the last one shorter, to the byte."""
    blocks = CHUNK // BLOCK * 2 + 3
    backend = FakeBackend(bytearray((blocks + 2) * BLOCK))
    block = bytes(range(256)) * 2
    execute(command(Op.WRITE_SAME, (1, blocks)), backend, split(block, [100]), BLOCK)
    assert [call[2] for call in backend.calls] == [CHUNK, CHUNK, 3 * BLOCK]
    assert backend.medium == bytes(BLOCK) + block * blocks + bytes(BLOCK)


# ---- against a model: whatever is transferred short, the medium ends as if all had gone at once

BLOCKS = 16
extents = st.integers(0, BLOCKS - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(0, BLOCKS - first)))
shorts = st.lists(st.one_of(st.none(), st.integers(BLOCK, 4 * BLOCK)), max_size=6)
cuts = st.lists(st.integers(0, 2 * BLOCK), max_size=6)
mediums = st.integers(0, 255).map(lambda seed: bytearray(pattern(BLOCKS, seed)))


@given(mediums, extents, shorts, cuts, st.integers(0, 255))
def test_write_then_read(
    medium: bytearray, where: tuple[int, int], faults: list[Fault], cut: list[int], seed: int
) -> None:
    """Short transfers lose, repeat and shift nothing, and touch nothing outside the extent."""
    start, length = where[0] * BLOCK, where[1] * BLOCK
    backend = FakeBackend(bytearray(medium), list(faults))
    new = pattern(where[1], seed)
    execute(command(Op.WRITE, where), backend, split(new, cut), BLOCK)
    medium[start : start + length] = new
    assert backend.medium == medium

    backend.script = list(faults)
    into = split(bytes(length), cut)
    execute(command(Op.READ, where), backend, into, BLOCK)
    assert b"".join(into) == new


@given(mediums, extents, shorts, st.binary(min_size=BLOCK, max_size=BLOCK), st.booleans(), st.booleans())
def test_write_same(
    medium: bytearray, where: tuple[int, int], faults: list[Fault], block: bytes, unmap: bool, can_zero: bool
) -> None:
    """Every block of the extent is the pattern, by whichever way it was written."""
    start, length = where[0] * BLOCK, where[1] * BLOCK
    backend = FakeBackend(bytearray(medium), list(faults), can_zero=can_zero)
    execute(command(Op.WRITE_SAME, where, unmap=unmap), backend, split(block), BLOCK)
    medium[start : start + length] = block * where[1]
    assert backend.medium == medium


@given(mediums, extents, shorts, cuts, st.data())
def test_compare_and_write(
    medium: bytearray, where: tuple[int, int], faults: list[Fault], cut: list[int], data: st.DataObject
) -> None:
    """All is written if all is equal; else nothing is, and the offset is that of the first difference."""
    start, length = where[0] * BLOCK, where[1] * BLOCK
    expected = bytearray(medium[start : start + length])
    differs = data.draw(st.one_of(st.none(), st.integers(0, length - 1))) if length else None
    if differs is not None:
        expected[differs] ^= 1
    new = pattern(where[1], 77)
    backend = FakeBackend(bytearray(medium), list(faults))
    outcome = execute(command(Op.COMPARE_AND_WRITE, where), backend, split(bytes(expected) + new, cut), BLOCK)
    assert outcome == differs
    if differs is None:
        medium[start : start + length] = new
    assert backend.medium == medium


@given(mediums, extents, st.lists(st.one_of(st.integers(0, 3 * BLOCK), st.just(EIO)), max_size=8), st.integers(0, 255))
def test_retried_until_done(medium: bytearray, where: tuple[int, int], faults: list[Fault], seed: int) -> None:
    """Attempts that fail at any place, repeated from byte 0, end as one that did not."""
    backend = FakeBackend(bytearray(medium), list(faults))
    buffers = split(pattern(where[1], seed))
    while True:
        try:
            execute(command(Op.WRITE, where), backend, buffers, BLOCK)
        except OSError as error:
            assert error.errno == errno.EIO
        else:
            break
    medium[where[0] * BLOCK : sum(where) * BLOCK] = pattern(where[1], seed)
    assert backend.medium == medium


@given(st.binary(min_size=4 * BLOCK, max_size=4 * BLOCK), st.binary(min_size=2 * BLOCK, max_size=2 * BLOCK))
def test_or_write_sets_bits_and_a_retry_changes_nothing_more(old: bytes, bits: bytes) -> None:
    """The write fails half done; the second attempt starts at byte 0 and the outcome is that of one attempt."""
    backend = FakeBackend(bytearray(old), [None, SHORT, EIO])
    task = command(Op.OR_WRITE, (1, 2))
    with pytest.raises(OSError, match="Input"):
        execute(task, backend, split(bits, [100]), BLOCK)
    execute(task, backend, split(bits, [100]), BLOCK)
    middle = bytes(some | other for some, other in zip(old[BLOCK:], bits, strict=False))
    assert backend.medium == old[:BLOCK] + middle + old[3 * BLOCK :]


SHIFTED = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 4))


@given(
    segments=st.lists(SHIFTED, min_size=1, max_size=4),
    faults=st.lists(st.sampled_from([None, None, SHORT, EIO]), max_size=20),
)
def test_a_copy_that_is_retried_ends_as_if_nothing_had_failed(
    segments: list[tuple[int, int, int]], faults: list[Fault]
) -> None:
    """Sources that overlap their destination, or that an earlier segment has overwritten: each is read once."""
    model = bytearray(pattern(16))
    for source, destination, count in segments:
        model[destination * BLOCK : (destination + count) * BLOCK] = model[source * BLOCK : (source + count) * BLOCK]
    task = command(Op.COPY, *(pair for one, other, count in segments for pair in ((one, count), (other, count))))
    backend = FakeBackend(bytearray(pattern(16)), list(faults))
    for _ in range(len(faults) + 1):
        with contextlib.suppress(OSError):
            execute(task, backend, [], BLOCK)
            break
    assert backend.medium == model


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_long_copy_over_itself_moves_the_data_whole(shift: int) -> None:
    """Longer than a piece, so that the order of the pieces counts."""
    blocks = 2 * COPY_PIECE // BLOCK + 3
    before = os.urandom((blocks + 2) * BLOCK)
    backend = FakeBackend(bytearray(before))
    execute(command(Op.COPY, (1, blocks), (1 + shift, blocks)), backend, [], BLOCK)
    at = (1 + shift) * BLOCK
    assert backend.medium[at : at + blocks * BLOCK] == before[BLOCK : BLOCK + blocks * BLOCK]
