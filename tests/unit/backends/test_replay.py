"""Write-back over storage that loses its cache: after a good flush nothing acknowledged before it is missing."""

from __future__ import annotations

import errno
import os
import threading
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.backends.base import Backend, Identity
from tcmu_retry.backends.replay import RECORD, ReplayLog
from tcmu_retry.backends.shelf import Shelf

SIZE = 16 * 512


@dataclass
class Volatile:
    """Storage with a cache that a restart throws away, and whose calls fail when told to."""

    medium: bytearray = field(default_factory=lambda: bytearray(SIZE))
    cache: bytearray = field(default_factory=lambda: bytearray(SIZE))
    failing: int = 0  # so many calls from now on fail; each loses the cache, as a restart behind our back does
    can_discard: bool = True
    write_back: bool = False
    identity: Identity = field(default_factory=lambda: Identity("file", SIZE, ""))
    block_size: int = 512
    calls: list[str] = field(default_factory=list)

    def restart(self) -> None:
        self.cache[:] = self.medium

    def _may_fail(self, call: str) -> None:
        self.calls.append(call)
        if self.failing:
            self.failing -= 1
            self.restart()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self._may_fail("read")
        [buffer] = buffers
        buffer[:] = self.cache[offset : offset + len(buffer)]
        return len(buffer)

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        self._may_fail("write")
        data = b"".join(buffers)
        self.cache[offset : offset + len(data)] = data
        if durable:
            self.medium[offset : offset + len(data)] = data
        return len(data)

    def flush(self) -> None:
        self._may_fail("flush")
        self.medium[:] = self.cache

    def discard(self, offset: int, length: int) -> None:
        self.zero(offset, length, True)

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._may_fail("zero")
        self.cache[offset : offset + length] = bytes(length)

    def close(self) -> None:
        pass


def block(number: int) -> bytes:
    return bytes([number % 255 + 1]) * 512


def write(backend: Backend, place: int, number: int) -> None:
    backend.write(place * 512, [memoryview(block(number))], durable=False)


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 12), st.integers(1, 4)),
    st.tuples(st.just("zero"), st.integers(0, 12), st.integers(1, 4)),
    st.tuples(st.just("flush"), st.just(0), st.just(0)),
    st.tuples(st.just("fail"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("reopen"), st.just(0), st.just(0)),
)


def survives(steps: Sequence[tuple[str, int, int]], logged: bool) -> bool:
    """Whether at every good flush the medium has all that was acknowledged before it."""
    storage = Volatile()
    log = ReplayLog(1 << 20)
    backend: Backend = log.over(storage) if logged else storage
    wanted = bytearray(SIZE)
    for number, (what, place, count) in enumerate(steps):
        offset, data = place * 512, block(number) * count
        try:
            match what:
                case "write":
                    backend.write(offset, [memoryview(data)], durable=False)
                    wanted[offset : offset + len(data)] = data
                case "zero":
                    backend.zero(offset, len(data), False)
                    wanted[offset : offset + len(data)] = bytes(len(data))
                case "flush":
                    backend.flush()
                    if storage.medium != wanted:
                        return False
                case "fail":
                    storage.failing = place
                case "reopen":
                    storage.restart()
                    storage.failing = 0
                    backend = log.over(storage) if logged else storage
        except OSError:
            continue  # not acknowledged: a retry of it comes as a step of its own, or not at all
    return True


@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, max_size=30))
def test_what_was_acknowledged_before_a_good_flush_is_on_the_medium(steps: list[tuple[str, int, int]]) -> None:
    assert survives(steps, logged=True)


def test_without_the_log_the_same_loses_data() -> None:
    """The control: a failed flush that is simply repeated says GOOD for data that is gone."""
    steps = [("write", 0, 1), ("fail", 1, 0), ("flush", 0, 0), ("flush", 0, 0)]
    assert not survives(steps, logged=False)
    assert survives(steps, logged=True)


def test_a_flush_without_an_error_before_it_writes_nothing_again() -> None:
    storage = Volatile()
    backend = ReplayLog(1 << 20).over(storage)
    for number in range(5):
        write(backend, number, number)
    backend.flush()
    backend.flush()
    assert storage.calls == ["write"] * 5 + ["flush"] * 2


def test_a_good_flush_empties_the_log_and_a_rewritten_block_is_kept_once() -> None:
    storage = Volatile()
    log = ReplayLog(1 << 20)
    backend = log.over(storage)
    for number in range(100):
        write(backend, 3, number)
    assert log.count() == 1
    assert log.weight == 512 + RECORD
    backend.flush()
    assert log.count() == 0
    assert log.weight == 0


def test_a_full_log_flushes_before_it_takes_more() -> None:
    storage = Volatile()
    log = ReplayLog(4 * 512)
    backend = log.over(storage)
    for number in range(16):
        write(backend, number, number)
        assert log.weight <= 4 * 512 + 512 + RECORD
    assert "flush" in storage.calls
    storage.calls.clear()
    storage.failing = 99
    with pytest.raises(OSError, match="Input/output"):
        for number in range(16):
            write(backend, number, number)


def test_a_reopened_backend_gets_everything_before_it_is_used() -> None:
    storage = Volatile()
    log = ReplayLog(1 << 20)
    write(log.over(storage), 1, 1)
    write(log.over(storage), 2, 2)
    storage.restart()
    storage.failing = 1
    with pytest.raises(OSError, match="Input/output"):
        log.over(storage)
    log.over(storage)
    assert storage.cache[512:1536] == block(1) + block(2)


def test_overlapping_changes_are_made_one_after_the_other() -> None:
    """A write that overlaps a running one waits for it; one beside it does not."""
    running, go_on = threading.Event(), threading.Event()

    class Slow(Volatile):
        def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
            if not running.is_set():
                running.set()
                assert go_on.wait(10)
            return super().write(offset, buffers, durable)

    storage = Slow()
    backend = ReplayLog(1 << 20).over(storage)
    first = threading.Thread(target=write, args=(backend, 1, 1))
    first.start()
    assert running.wait(10)
    write(backend, 5, 5)
    second = threading.Thread(target=write, args=(backend, 1, 2))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    go_on.set()
    first.join(10)
    second.join(10)
    assert storage.cache[512:1024] == block(2)


class Restarting(Volatile):
    """Restarts in the middle of its next flush; a read beside that notices, the flush does not."""

    backend: Backend
    once = True

    def flush(self) -> None:
        if self.once:
            self.once = False
            self.failing = 1
            beside = threading.Thread(target=self._read)
            beside.start()
            beside.join(10)
        super().flush()

    def _read(self) -> None:
        with pytest.raises(OSError, match="Input/output"):
            self.backend.read(0, [memoryview(bytearray(512))])


def test_a_flush_beside_an_error_proves_nothing() -> None:
    """Written, GOOD    a flush begins    the storage restarts without its cache; a read fails    the flush succeeds"""
    storage = Restarting()
    log = ReplayLog(1 << 20)
    storage.backend = log.over(storage)
    write(storage.backend, 1, 1)
    with pytest.raises(OSError, match="Input/output"):
        storage.backend.flush()
    assert log.count() == 1
    storage.backend.flush()
    assert storage.medium[512:1024] == block(1)


class Direct(Volatile):
    """Takes whole blocks only, as O_DIRECT does, and may take but a part of them, or of a block."""

    most = SIZE

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        data = b"".join(buffers)
        if offset % 512 or len(data) % 512:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().write(offset, [memoryview(data)[: self.most]], durable)


@pytest.mark.parametrize("most", [0, 100, 512, 700])
def test_what_ends_within_a_block_is_made_again_in_whole_blocks(most: int) -> None:
    """Otherwise it could never be made again, and no flush would ever succeed."""
    storage = Direct()
    storage.most = most
    log = ReplayLog(1 << 20)
    backend = log.over(storage)
    assert backend.write(512, [memoryview(block(1) + block(2))], durable=False) == most // 512 * 512
    storage.most = SIZE
    storage.restart()
    log.over(storage).flush()
    assert storage.medium[512:1536] == (block(1) + block(2))[: most // 512 * 512].ljust(1024, b"\0")


class Thick(Direct):
    """Cannot discard or zero, or not any more."""

    def zero(self, offset: int, length: int, discard: bool) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_storage_that_can_discard_no_more_gets_zeros() -> None:
    """A device mapper table was exchanged: a discard that was acknowledged must not keep the LUN from coming back."""
    log = ReplayLog(1 << 20)
    before = log.over(Direct())
    before.discard(512, 2048)
    before.zero(8192 - 1024, 1024, False)
    now = Thick(medium=bytearray(b"o" * SIZE), cache=bytearray(b"o" * SIZE))
    log.over(now).flush()
    assert now.medium == b"o" * 512 + bytes(2048) + b"o" * (8192 - 1024 - 2560) + bytes(1024)


@pytest.mark.parametrize("what", ["write", "zero"])
def test_the_log_is_as_large_as_it_says(what: str) -> None:
    """A trim of a fragmented file system makes changes without data by the hundred thousand before it flushes."""
    log = ReplayLog(1 << 30)
    backend = log.over(Volatile(medium=bytearray(4000 * 512), cache=bytearray(4000 * 512)))
    tracemalloc.start()
    for place in range(4000):
        if what == "write":
            write(backend, place, place)
        else:
            backend.zero(place * 512, 512, False)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 < taken / log.weight < 1.2


@pytest.mark.parametrize("fails", [False, True])
def test_all_who_find_the_log_full_wait_for_one_flush(fails: bool) -> None:
    """Four writes find it full while the first one's flush runs: they go on, or fail, with that."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Volatile):
        def flush(self) -> None:
            begun.set()
            assert go_on.wait(10)
            super().flush()

    found = 0

    class Log(ReplayLog):
        def _is_full(self) -> bool:
            nonlocal found
            full = super()._is_full()
            found += full
            return full

    storage = Slow()
    backend = Log(5 * (512 + RECORD)).over(storage)
    for number in range(6):
        write(backend, number, number)
    storage.failing = fails
    errors: list[int | None] = []

    def late(number: int) -> None:
        try:
            write(backend, 8 + number, number)
        except OSError as error:
            errors.append(error.errno)

    threads = [threading.Thread(target=late, args=(number,)) for number in range(4)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    while found < 5:  # the first one looks twice
        os.sched_yield()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert storage.calls.count("flush") == 1
    assert errors == [errno.EIO] * 4 * fails


def test_whether_the_log_is_full_is_looked_at_while_nobody_writes_it() -> None:
    """A pump's writers are threads; one that looked while another put something there found it changing."""

    class Watched(Shelf):
        @property
        def used(self) -> int:
            assert log._free._is_owned()  # type: ignore[attr-defined]
            return super().used

    shelf = Watched(os.memfd_create("shelf", os.MFD_CLOEXEC), "vm1", 1 << 20)
    shelf.begin()
    log = ReplayLog(1 << 18, shelf)
    backend = log.over(Volatile())
    write(backend, 0, 1)


def test_who_waits_for_a_log_that_is_lent_has_it_before_it_is_lent_again() -> None:
    """
    waiter    count(): asks for it, and waits
    borrower  gives it back, wants it again at once, faster than the waiter is awake: not yet
    """
    asked = threading.Event()
    shelf = Shelf(os.memfd_create("shelf", os.MFD_CLOEXEC), "vm1", 1 << 20)
    shelf.begin()
    log = ReplayLog(1 << 18, shelf)
    storage = Volatile()
    log.over(storage)
    assert log.lend(storage, SIZE, asked.set) is not None
    waiter = threading.Thread(target=log.count, daemon=True)
    waiter.start()
    assert asked.wait(10)
    with log._free:
        log.give_back([])
        assert log.lend(storage, SIZE, asked.set) is None
    waiter.join(10)
    assert log.lend(storage, SIZE, asked.set) is not None
