"""The native pump with a replay log: it keeps it as the log itself would, and gives it back whenever it is wanted."""

from __future__ import annotations

import fcntl
import os
import random
import weakref
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.backends.shelf import WRITE, Record, Shelf
from tcmu_retry.pump.base import Finished
from tcmu_retry.pump.native import core
from tcmu_retry.scsi.request import Status
from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel
from tests.unit.killed import stepped
from tests.unit.pump.loop import Loop
from tests.unit.pump.rig import BLOCK, BLOCKS, REPLAY_BYTES, SHELF, SYNC, block, patiently, read, write
from tests.unit.pump.test_native import NativeRig, OnFile, runs


class Back(NativeRig):
    """Write-back over a file; `left`: what stands on the shelf."""

    write_back = True
    log: ReplayLog

    def __init__(self, limit: int = REPLAY_BYTES, **how) -> None:
        self._limit = limit
        self.shelf = os.memfd_create("shelf", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.shelf)
        super().__init__(**how)

    def make_log(self) -> ReplayLog:
        shelf = Shelf(os.dup(self.shelf), "vm1", SHELF)
        shelf.begin()
        return ReplayLog(self._limit, shelf)

    def left(self) -> list[Record]:
        return Shelf(os.dup(self.shelf), "vm1", SHELF).resume()

    def noted(self) -> list[tuple[int, bytes]]:
        return [(record.offset // BLOCK, bytes(record.data)) for record in self.left()]

    def native_writes(self) -> int:
        return self.pump._ring.counters()["writes"]


@pytest.fixture
def make_rig() -> type[Back]:
    return Back


def test_what_was_written_stands_on_the_shelf_until_a_flush(rig):
    for number, letter in enumerate("abc"):
        assert rig.answer(rig.kernel.submit(write(number, 1), block(letter))) == Status.GOOD
    assert rig.noted() == [(0, block("a")), (1, block("b")), (2, block("c"))]
    assert rig.answer(rig.kernel.submit(SYNC)) == Status.GOOD
    assert rig.noted() == []
    assert rig.answer(rig.kernel.submit(write(3, 2), block("d") + block("e"))) == Status.GOOD
    assert rig.noted() == [(3, block("d") + block("e"))]
    assert rig.native_writes() == 4
    assert rig.storage.calls == []


def test_a_flush_covers_what_had_ended_before_it_was_submitted(batch):
    """A write and a flush of one batch run side by side: the flush says nothing of the write."""
    commands = [batch.kernel.submit(write(1), block("a")), batch.kernel.submit(SYNC)]
    batch.start()
    assert {batch.answer(command) for command in commands} == {Status.GOOD}
    assert batch.noted() == [(1, block("a"))]
    assert batch.answer(batch.kernel.submit(SYNC)) == Status.GOOD
    assert batch.noted() == []
    assert batch.storage.calls == []


def test_writes_that_overlap_come_one_after_the_other(batch):
    """All in one batch; on the shelf and on the medium the last one stands, and what lies beside them does not wait."""
    commands = [batch.kernel.submit(write(1, 2), block(letter) * 2) for letter in "abcdefgh"]
    commands += [batch.kernel.submit(write(2, 2), block("i") * 2), batch.kernel.submit(write(5), block("z"))]
    batch.start()
    assert {batch.answer(command) for command in commands} == {Status.GOOD}
    noted = [data[:1] for place, data in batch.noted() if place != 5]
    assert b"".join(noted) == b"abcdefghi"
    assert batch.storage.on_medium(1) == block("h")
    assert batch.storage.on_medium(2) == block("i")
    assert batch.native_writes() == len(commands)


def test_a_write_that_waits_for_another_is_handed_over_and_waits_on(rig):
    """One hangs in the storage, one overlaps it; the gate closes: the second is a worker's, and comes after it."""
    readable, writable = os.pipe2(os.O_CLOEXEC)
    os.write(writable, bytes(fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)))
    rig.storage.turn_into(writable)
    one = rig.kernel.submit(write(1), block("a"))
    two = rig.kernel.submit(write(1), block("b"))
    runs(rig, 2)
    assert [command.id for command in rig.close_gate()] == [one.id, two.id]
    rig.storage.heal()
    assert (one.status, two.status) == (None, None)
    assert rig.storage.calls == []
    os.read(readable, 4096)
    assert (rig.answer(one), rig.answer(two)) == (Status.GOOD, Status.GOOD)
    assert rig.noted() == [(1, block("a")), (1, block("b"))]
    assert rig.storage.calls == [("write", 1)]
    assert rig.storage.on_medium(1) == block("b")
    for _ in range(2):
        assert rig.next(Finished).error == 0
    os.close(readable)


def test_a_full_log_is_flushed_and_never_grows_beyond_its_bound(make_rig):
    rig = make_rig(limit=20 * BLOCK)
    rig.start()
    for number in range(300):
        assert rig.answer(rig.kernel.submit(write(number % BLOCKS), block("f"))) == Status.GOOD
        assert sum(len(record.data) for record in rig.left()) <= 21 * BLOCK
    assert rig.storage.calls.count(("flush", 0)) < 300 / 8
    assert rig.native_writes() > 200
    rig.end()


def test_a_log_that_is_flushed_in_time_is_never_full(make_rig):
    rig = make_rig(limit=20 * BLOCK)
    rig.start()
    for number in range(200):
        assert rig.answer(rig.kernel.submit(write(number % BLOCKS), block("f"))) == Status.GOOD
        assert rig.answer(rig.kernel.submit(SYNC)) == Status.GOOD
    assert rig.storage.calls == []
    assert rig.pump._ring.counters()["others"] == 200
    rig.end()


def test_without_flushes_the_loop_flushes_in_time_and_no_python_runs(make_rig):
    rig = make_rig(limit=300 * BLOCK)
    rig.start()
    for number in range(1000):
        assert rig.answer(rig.kernel.submit(write(number % BLOCKS), block("f"))) == Status.GOOD
        assert sum(len(record.data) for record in rig.left()) <= 300 * BLOCK
    assert rig.native_writes() == 1000
    assert rig.storage.calls == []
    rig.end()


def test_where_that_flush_fails_everything_is_made_again(make_rig):
    """The storage takes writes and forgets them, and cannot flush."""
    rig = make_rig(limit=60 * BLOCK)
    rig.start()
    rig.storage.turn_into(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    for number in range(30):
        assert rig.answer(rig.kernel.submit(write(number), block("f"))) == Status.GOOD
    patiently(lambda: rig.log._sure is None)
    rig.storage.heal()
    assert rig.answer(rig.kernel.submit(SYNC)) == Status.GOOD
    assert all(rig.storage.on_medium(number) == block("f") for number in range(30))
    rig.end()


def test_the_loop_gets_the_log_back_under_a_load_that_never_pauses(make_rig):
    """A probe takes it away; what follows never lets the workers run dry by itself."""
    rig = make_rig(ring=1 << 18)
    rig.start()
    out = [rig.kernel.submit(write(number), block("a")) for number in range(32)]
    rig.done()
    before = rig.native_writes()
    for _ in range(20):
        for number in range(32):
            patiently(lambda number=number: out[number].status is not None)
            out[number] = rig.kernel.submit(write(number), block("b"))
    for command in out:
        assert rig.answer(command) == Status.GOOD
    assert rig.native_writes() > before
    rig.end()


def test_whoever_else_wants_the_log_gets_it(rig):
    assert rig.answer(rig.kernel.submit(write(1), block("a"))) == Status.GOOD
    assert rig.log.count() == 1
    assert rig.answer(rig.kernel.submit(write(2), block("b"))) == Status.GOOD
    rig.pump._backend.flush()
    assert rig.log.count() == 0
    assert rig.answer(rig.kernel.submit(write(3), block("c"))) == Status.GOOD
    rig.pump.stop()
    assert rig.log.count() == 1


def test_a_shelf_that_began_anew_is_given_back_whole(rig):
    """Flushed, so that the next record stands at the beginning, and the end mark behind it where the last one ended."""
    for number in range(3):
        assert rig.answer(rig.kernel.submit(write(number), block("a"))) == Status.GOOD
        assert rig.answer(rig.kernel.submit(SYNC)) == Status.GOOD
        assert rig.log.count() == 0
        assert rig.answer(rig.kernel.submit(write(number), block("b"))) == Status.GOOD
        assert rig.log.count() == 1
        assert rig.noted() == [(number, block("b"))]
        assert rig.answer(rig.kernel.submit(SYNC)) == Status.GOOD


def test_what_ran_when_it_was_given_back_is_noted_as_it_ends(rig):
    """A read hangs; the gate closes; the log is asked for everything at once, and waits for it."""
    feed = rig.storage.become_a_pipe()
    hanging = rig.kernel.submit(read(1), data_in=BLOCK)
    patiently(lambda: rig.pump.statistics().in_flight == 1)
    rig.close_gate()
    assert rig.log._users == 1
    os.write(feed, block("r"))
    assert rig.answer(hanging) == Status.GOOD
    patiently(lambda: rig.log._users == 0)
    os.close(feed)
    list(rig.pump.events())


def test_a_failure_makes_everything_again_before_the_next_flush(rig):
    """Written, GOOD; the storage restarts without its cache, and fails a write; the flush brings the first back."""
    assert rig.answer(rig.kernel.submit(write(1), block("a"))) == Status.GOOD
    rig.storage.fill_up()
    bad = rig.kernel.submit(write(2), block("b"))
    patiently(lambda: any(getattr(event, "error", 0) for event in rig.pump.events()))
    os.pwrite(rig.storage.file, bytes(BLOCK * BLOCKS), 0)
    rig.storage.heal()
    assert bad.status is None
    rig.pump.gate(True)
    assert rig.answer(rig.kernel.submit(SYNC)) == Status.GOOD
    assert rig.storage.on_medium(1) == block("a")


STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "write", "sync", "crash", "turn", "close"]), st.integers(0, 5)),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(steps=STEPS, choices=st.lists(st.integers(0, 29), max_size=12))
def test_what_was_acknowledged_before_a_good_flush_outlives_a_crash_of_the_storage(steps, choices):
    """Writes that run side by side, flushes, and storage that goes back to what it had flushed and fails."""
    rig = Back()
    loop = Loop(rig, choices)
    rig.start()
    out: list[tuple[int, bytes, SimulatedCommand]] = []
    wanted = bytearray(BLOCKS * BLOCK)
    durable = bytes(wanted)

    def answered(commands: list[SimulatedCommand]) -> bool:
        loop.turn()
        return all(command.status is not None for command in commands)

    def drain() -> None:
        patiently(lambda: answered([command for _, _, command in out]))
        for place, data, command in out:
            if command.status == Status.GOOD:
                wanted[place * BLOCK : (place + 1) * BLOCK] = data
        out.clear()

    def failed(failures: int, bad: SimulatedCommand) -> bool:
        loop.turn()
        return rig.pump.statistics().errors > failures or bad.status is not None

    def sync() -> None:
        nonlocal durable
        drain()
        command = rig.kernel.submit(SYNC)
        patiently(lambda: answered([command]))
        if command.status == Status.GOOD:
            durable = os.pread(rig.storage.file, len(wanted), 0)
            wrong = [at for at in range(BLOCKS) if durable[at * BLOCK :][:BLOCK] != wanted[at * BLOCK :][:BLOCK]]
            assert not wrong

    try:
        for number, (what, place) in enumerate([*steps, ("sync", 0)]):
            match what:
                case "write":
                    if any(place == other for other, _, _ in out):
                        drain()  # in which order two of them end is nobody's business
                    data = bytes((number + 1,)) * BLOCK
                    out.append((place, data, rig.kernel.submit(write(place), data)))
                case "sync":
                    sync()
                case "crash":
                    drain()
                    rig.storage.fill_up()
                    failures = rig.pump.statistics().errors
                    bad = rig.kernel.submit(write(7), block("x"))
                    patiently(partial(failed, failures, bad))
                    if rig.pump.statistics().errors > failures:  # or it never came there, and nobody could know
                        os.pwrite(rig.storage.file, durable, 0)
                    rig.storage.heal()
                    out.append((7, block("x"), bad))
                case "turn":
                    loop.turn()
                case "close":
                    rig.pump.gate(False)
    finally:
        rig.storage.heal()
        rig.end()


# ---- killed


HEAD = slice(12, 16)


def serve_all(loop: core.Core) -> None:
    while loop.unfetched or loop.out:
        loop.run()


class World:
    """A kernel, storage, and a shelf with two records, for a process that serves a flush and two writes of a batch."""

    def __init__(self) -> None:
        self.kernel = SimulatedKernel(ring=4096, data=64 * 4096)
        self.channel = self.kernel.open()
        self.storage = OnFile()
        self.file = os.memfd_create("shelf", os.MFD_CLOEXEC)
        self.shelf = Shelf(os.dup(self.file), "vm1", SHELF)
        self.shelf.begin()
        for letter in "no":
            self.shelf.put(WRITE, 0, BLOCK, [memoryview(block(letter))])
        self.kernel.submit(read(0), data_in=BLOCK)
        self.first = bytes(self.channel.memory[HEAD])
        self.sync = self.kernel.submit(SYNC)
        self.writes = {letter: self.kernel.submit(write(ord(letter) % 8), block(letter)) for letter in "ab"}

    def serve(self, begin: Callable[[], None]) -> None:
        """What the process does. io_uring belongs to whom has made it."""
        loop = core.Core(self.channel.memory)
        loop.prepare(self.channel.fileno(), -1, os.eventfd(0), [])
        loop.enable()
        loop.serve(self.storage.descriptor, BLOCK, BLOCKS, 1 << 20, True)
        loop.lend(self.shelf.lend(), REPLAY_BYTES)
        head = bytes(self.channel.memory[HEAD])
        self.channel.memory[HEAD] = self.first  # so that making the slots is over when it begins
        serve_all(loop)
        self.channel.memory[HEAD] = head
        begin()
        serve_all(loop)

    def check(self) -> None:
        self.channel.doorbell()
        records = Shelf(os.dup(self.file), "vm1", SHELF).resume()
        assert all(record.data == bytes(record.data[:1]) * BLOCK for record in records)
        left = [chr(record.data[0]) for record in records]
        assert left[:2] == ["n", "o"] or not {"n", "o"} & set(left)
        if self.sync.status is not None:
            assert "n" not in left
        new = [letter for letter in left if letter in "ab"]
        assert len(new) == len(set(new))
        assert set(new) >= {letter for letter, command in self.writes.items() if command.status is not None}

    def end(self) -> None:
        self.channel.close()
        self.storage.close()
        os.close(self.file)


def test_killed_at_any_instruction_what_was_answered_stands_on_the_shelf():
    """A flush and two writes, 20 times killed somewhere in it: what the kernel saw answered is there, once."""
    chance = random.Random(11)
    length = 10**9
    for _ in range(21):
        world = World()
        steps = stepped(world.serve, chance.randrange(length) if length < 10**9 else length)
        if length == 10**9:
            length = steps
            world.channel.doorbell()
            assert {world.sync.status, *(command.status for command in world.writes.values())} == {Status.GOOD}
        world.check()
        world.end()
