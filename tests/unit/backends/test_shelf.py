"""What was acknowledged and not flushed outlives the daemon, whenever it is killed."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcmu_retry.backends import shelf as module
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.backends.shelf import WRITE, ZERO, Record, Shelf, ShelfError
from tests.unit.backends.test_replay import Volatile, block, write
from tests.unit.killed import Killed, killed_at

STEPS = {module.__file__}
ROOM = 2048


class Daemons:
    """One after the other, over one file."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("shelf", os.MFD_CLOEXEC)
        Shelf(os.dup(self.fd), "vm1", ROOM).begin()

    def next(self) -> tuple[Shelf, list[Record]]:
        shelf = Shelf(os.dup(self.fd), "vm1", ROOM)
        return shelf, shelf.resume()

    def end(self) -> None:
        os.close(self.fd)


def noted(records: list[Record]) -> list[bytes]:
    return [bytes(record.data) for record in records]


# Bytes to note; or a flush of all but so many of the last.
STORY = st.lists(st.one_of(st.integers(0, 600), st.tuples(st.integers(0, 3))), min_size=1, max_size=12)


@given(STORY, STORY)
@example([301, 326], [86, (0,), 419, 467, 550, 121, (1,)])  # killed as it moves on, and then written around the end
@settings(max_examples=30, deadline=None)
def test_killed_at_any_step_nothing_noted_is_missing_and_nothing_comes_from_nowhere(
    before: list[int | tuple[int]], story: list[int | tuple[int]]
) -> None:
    """Notes of any size and flushes, killed at each line: what was noted is there, in order, and only that."""
    step = 0
    while True:
        step += 1
        daemons = Daemons()
        shelf, _ = daemons.next()
        kept: list[bytes] = []
        number = 0
        maybe: list[list[bytes]] = []  # what there may be if it is killed now

        def play(
            story: list[int | tuple[int]],
            shelf: Shelf = shelf,
            kept: list[bytes] = kept,
            maybe: list[list[bytes]] = maybe,
        ) -> None:
            nonlocal number
            for what in story:
                if isinstance(what, tuple):
                    stays = kept[max(len(kept) - what[0], 0) :]
                    maybe[:] = [[*kept], [*stays]]
                    if len(shelf._live) > what[0]:
                        shelf.flushed(list(shelf._live)[-what[0] - 1])
                    kept[:] = stays
                else:
                    number += 1
                    data = bytes([number]) * what
                    maybe[:] = [[*kept], [*kept, data]]
                    if shelf.put(WRITE, number, len(data), [memoryview(data)]) is not None:
                        kept.append(data)
                maybe[:] = [[*kept]]

        play(before)
        maybe[:] = [[*kept]]
        done = False
        try:
            with killed_at(step, STEPS):
                play(story)
                done = True
        except Killed:
            pass
        try:
            shelf, left = daemons.next()
        except ShelfError as error:
            assert "not complete" in str(error)
        else:
            assert noted(left) in maybe
            more = b"more" * 10
            if shelf.put(WRITE, 1, len(more), [memoryview(more)]) is not None:
                expected = [*noted(left), more]
                assert noted(daemons.next()[1]) == expected
        daemons.end()
        if done:
            break


def test_storage_that_loses_its_cache_after_the_daemon_was_killed_loses_nothing() -> None:
    """Written, trimmed and written over; killed; the storage restarts; the next daemon's flush makes it true."""
    daemons, storage = Daemons(), Volatile()
    backend = ReplayLog(1 << 20, daemons.next()[0]).over(storage)
    write(backend, 0, 1)
    write(backend, 1, 2)
    backend.zero(0, 512, discard=True)
    write(backend, 1, 3)
    storage.restart()
    shelf, left = daemons.next()
    assert [record.kind for record in left] == [WRITE, WRITE, module.ZERO_UNMAP, WRITE]
    backend = ReplayLog(1 << 20, shelf, left).over(storage)
    backend.flush()
    assert storage.medium[:1024] == bytes(512) + block(3)
    assert daemons.next()[1] == []
    daemons.end()


def test_what_was_written_during_a_flush_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    daemons, storage = Daemons(), Volatile()
    backend = ReplayLog(1 << 20, daemons.next()[0]).over(storage)
    write(backend, 0, 1)
    flush = storage.flush

    def late() -> None:
        write(backend, 1, 2)
        flush()

    monkeypatch.setattr(storage, "flush", late)
    backend.flush()
    assert noted(daemons.next()[1]) == [block(2)]
    daemons.end()


def test_without_room_the_next_daemon_knows_until_all_is_flushed() -> None:
    daemons, storage = Daemons(), Volatile()
    backend = ReplayLog(1 << 20, daemons.next()[0]).over(storage)
    for number in range(8):
        write(backend, number, number)
    with pytest.raises(ShelfError, match="not complete"):
        daemons.next()
    backend.flush()
    write(backend, 0, 9)
    assert noted(daemons.next()[1]) == [block(9)]
    daemons.end()


def test_a_log_that_is_not_known_makes_one_flush_fail_as_a_disk_s_would() -> None:
    log = ReplayLog(1 << 20, lost=True)
    backend = log.over(Volatile())
    with pytest.raises(OSError, match="may be lost") as failure:
        backend.flush()
    assert failure.value.errno == errno.EREMOTEIO
    backend.flush()


@pytest.mark.parametrize(
    ("place", "value", "message"), [(0, b"x", "left no log"), (8, b"\2", "version 2"), (128, b"x", "another device")]
)
def test_a_log_of_others_is_not_believed(place: int, value: bytes, message: str) -> None:
    daemons = Daemons()
    os.pwrite(daemons.fd, value, place)
    with pytest.raises(ShelfError, match=message):
        daemons.next()
    daemons.end()


def test_what_an_initiator_wrote_is_not_taken_for_a_record() -> None:
    """Data that looks like the record that would come next, where the end of the records is after a round."""
    daemons = Daemons()
    shelf, _ = daemons.next()
    fake = module._HEAD.pack(7, 0, 512, ZERO, 0)
    for _ in range(3):
        shelf.put(WRITE, 0, 512, [memoryview(fake * 16)])
    shelf.flushed(shelf.number)
    shelf.put(WRITE, 0, 512, [memoryview(b"x" * 512)])
    shelf.flushed(shelf.number)
    shelf.put(WRITE, 0, 512, [memoryview(b"y" * 32)])
    assert shelf.number == 6
    assert noted(daemons.next()[1]) == [b"y" * 32]
    daemons.end()
