"""The native pump's loop: storage with a file, run by io_uring. What both pumps share is in `both/`."""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.backends.file import open_backend
from tcmu_retry.pump import select as selection
from tcmu_retry.pump.base import Arrived, Broken, Closed, Finished, Shape, TaskManagement
from tcmu_retry.pump.native import core
from tcmu_retry.pump.native import pump as native
from tcmu_retry.pump.native.pump import NativePump
from tcmu_retry.pump.reference import ReferencePump
from tcmu_retry.pump.select import make_pump
from tcmu_retry.scsi.cdb import EXCLUDING, MAXIMUM_TRANSFER, plain
from tcmu_retry.scsi.request import BUSY, GOOD, Op, Status
from tcmu_retry.tcmu.ring import layout
from tcmu_retry.tcmu.simulated import SimulatedChannel, SimulatedKernel
from tests.unit.pump.loop import Loop, check
from tests.unit.pump.rig import (
    ABORTED,
    BLOCK,
    BLOCKS,
    INQUIRY,
    PATIENCE,
    SYNC,
    Rig,
    Storage,
    block,
    make_log,
    patiently,
    read,
    write,
)


class OnFile(Storage):
    """Storage whose medium is a file. `turn_into` makes its descriptor something else, `heal` the file again."""

    def __init__(self) -> None:
        super().__init__()
        self.file = os.memfd_create("medium", os.MFD_CLOEXEC)
        os.ftruncate(self.file, BLOCKS * BLOCK)
        self.descriptor = os.dup(self.file)

    def turn_into(self, fd: int) -> None:
        os.dup2(fd, self.descriptor, inheritable=False)
        os.close(fd)

    def fill_up(self) -> None:
        self.turn_into(os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC))

    def become_a_pipe(self) -> int:
        """I/O waits for, and reads give, what is written to the result."""
        readable, writable = os.pipe2(os.O_CLOEXEC)
        self.turn_into(readable)
        return writable

    def heal(self) -> None:
        os.dup2(self.file, self.descriptor, inheritable=False)

    def meaning(self, code: int) -> int:
        self.calls.append(("meaning", code))
        return self.errors.get(("meaning", code), code)  # type: ignore[return-value]

    def read(self, offset, buffers):
        self._enter("read", offset)
        return os.preadv(self.descriptor, buffers, offset)

    def write(self, offset, buffers, durable):
        self._enter("write", offset)
        return os.pwritev(self.descriptor, buffers, offset)

    def on_medium(self, lba: int) -> bytes:
        return os.pread(self.file, BLOCK, lba * BLOCK)

    def close(self) -> None:
        os.close(self.file)
        os.close(self.descriptor)


class NativeRig(Rig):
    pump_class = NativePump
    storage: OnFile

    def __init__(self, **how) -> None:
        super().__init__(storage=OnFile(), **how)

    def end(self) -> None:
        super().end()
        self.storage.close()


def runs(rig: Rig, count: int = 1) -> None:
    """Wait until so much I/O is out."""
    patiently(lambda: rig.pump.statistics().in_flight == count)


@pytest.fixture(scope="module", params=["writethrough", "writeback"])
def cache(request):
    NativeRig.write_back = request.param == "writeback"
    yield
    NativeRig.write_back = False


@pytest.fixture
def make_rig(cache) -> type[NativeRig]:
    return NativeRig


# ---- what is plain


CDBS = st.one_of(
    st.binary(min_size=1, max_size=16),
    st.builds(
        lambda opcode, rest: (bytes((opcode,)) + rest).ljust({0: 6, 1: 10, 4: 16, 5: 12}[opcode >> 5], b"\0"),
        st.sampled_from([0x08, 0x0A, 0x28, 0x2A, 0x35, 0x88, 0x8A, 0x91, 0xA8, 0xAA]),
        st.one_of(
            st.binary(max_size=5),
            st.tuples(st.sampled_from(b"\0\x08\x10\x18\x02\x01"), st.binary(max_size=3)).map(
                lambda parts: bytes(parts[:1]) + parts[1].rjust(8, b"\0")
            ),
        ),
    ),
)
OPS = {core.READ: Op.READ, core.WRITE: Op.WRITE, core.FLUSH: Op.FLUSH}


@settings(max_examples=3000)
@given(
    cdb=CDBS,
    block_size=st.sampled_from([512, 4096]),
    blocks=st.sampled_from([8, 1 << 16, 1 << 33]),
    writable=st.booleans(),
    fits=st.booleans(),
)
def test_c_and_python_agree_on_what_is_plain(cdb, block_size, blocks, writable, fits):
    length = 0
    if fits and (wanted := plain(cdb, 0, block_size, blocks, True)) is None:
        for candidate in (
            {
                cdb[4] or 256,
                int.from_bytes(cdb[7:9], "big"),
                int.from_bytes(cdb[6:10], "big"),
                int.from_bytes(cdb[10:14], "big"),
            }
            if len(cdb) > 5
            else ()
        ):
            wanted = plain(cdb, candidate * block_size, block_size, blocks, True)
            length = candidate * block_size if wanted else length
    expected = plain(cdb, length, block_size, blocks, writable)
    found = core.plain(cdb, length, block_size, blocks, MAXIMUM_TRANSFER, writable)
    if expected is None or found is None:
        assert expected is found is None
        return
    op, offset, size, fua = found
    assert (OPS[op], size, fua) == (expected.op, expected.length, expected.fua)
    assert not expected.extents or expected.extents[0].offset == offset


# ---- success


def test_data_goes_to_the_file_and_back_past_the_methods(rig):
    assert rig.answer(rig.kernel.submit(write(3, 2), block("a") + block("b"))) == Status.GOOD
    assert rig.answer(rig.kernel.submit(SYNC)) == Status.GOOD
    back = rig.kernel.submit(read(4), data_in=BLOCK)
    assert rig.answer(back) == Status.GOOD
    assert back.data == block("b")
    assert (rig.storage.on_medium(3), rig.storage.on_medium(4)) == (block("a"), block("b"))
    assert rig.storage.calls == []
    rig.pump.stop()
    assert not list(rig.pump.events())
    statistics = rig.pump.statistics()
    assert (statistics.reads, statistics.writes, statistics.others, statistics.errors) == (1, 1, 1, 0)
    assert (statistics.read_bytes, statistics.written_bytes) == (BLOCK, 2 * BLOCK)
    assert statistics.in_flight == 0


def test_a_file_past_the_page_cache(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    backend = open_backend(str(path))
    kernel = SimulatedKernel(ring=4096, data=1 << 20)
    pump = NativePump("vm1", kernel.open(), backend, 4096, Rig.sense_reply)
    pump.shape(Shape(4096, 256, True))
    pump.start()
    out = kernel.submit(write(3, 2), b"a" * 4096 + b"b" * 4096)
    assert out.wait(PATIENCE)
    back = kernel.submit(read(4), data_in=4096)
    assert back.wait(PATIENCE)
    assert (out.status, back.status, back.data) == (0, 0, b"b" * 4096)
    assert pump._ring.counters()["writes"] == 1
    pump.stop()
    backend.close()


def test_a_buffered_file_is_served_by_its_methods(tmp_path):
    """Through the page cache an error goes to whoever asks first, so its writes must come one by one."""
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    backend = open_backend(str(path), buffered=True)
    kernel = SimulatedKernel(ring=4096, data=1 << 20)
    pump = NativePump("vm1", kernel.open(), backend, 512, Rig.sense_reply)
    pump.shape(Shape(512, 256, True))
    pump.start()
    out = kernel.submit(write(3), block("a"))
    assert out.wait(PATIENCE)
    assert out.status == 0
    assert pump._ring.counters()["writes"] == 0
    assert pump.statistics().writes == 1
    pump.stop()
    backend.close()


def test_a_buffer_in_many_pieces(batch):
    """More than a slot has room for: every other block of the data area is taken by another command."""
    rig = batch
    rig.start()
    small = [rig.kernel.submit(INQUIRY, data_in=96) for _ in range(60)]
    arrived = [rig.next(Arrived).command for _ in small]
    for command in arrived[::2]:
        rig.pump.complete(command, GOOD)
    rig.done()
    data = os.urandom(25 * 4096)
    rig.storage.turn_into(os.memfd_create("larger", os.MFD_CLOEXEC))
    os.ftruncate(rig.storage.descriptor, 1 << 20)
    rig.pump.shape(Shape(BLOCK, 2048, True))
    rig.done()
    assert rig.answer(rig.kernel.submit(write(1, 200), data)) == Status.GOOD
    back = rig.kernel.submit(read(1, 200), data_in=len(data))
    assert rig.answer(back) == Status.GOOD
    assert back.data == data
    assert os.pread(rig.storage.descriptor, len(data), BLOCK) == data
    assert rig.pump._ring.counters()["reads"] == 1


def test_more_commands_than_io_uring_takes_at_once(batch):
    """All in one batch, and they wait for each other in a pipe."""
    rig = batch
    feed = rig.storage.become_a_pipe()
    commands = [rig.kernel.submit(read(0), data_in=BLOCK) for _ in range(3 * core.ENTRIES)]
    rig.start()
    runs(rig, len(commands))
    for _ in commands:
        os.write(feed, block("p"))
    assert {rig.answer(command) for command in commands} == {Status.GOOD}
    assert {command.data for command in commands} == {block("p")}
    os.close(feed)


def test_an_answer_does_not_wait_for_what_came_behind_it(batch):
    """A write ends in the turn in which the loop comes back for an INQUIRY, which nobody answers."""
    rig = batch
    rig.storage.turn_into(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))  # no wait: it ends as it is submitted
    command = rig.kernel.submit(write(1), block("a"))
    rig.kernel.submit(INQUIRY, data_in=96)
    rig.start()
    assert rig.answer(command) == Status.GOOD
    rig.next(Arrived)


class Bell(SimulatedChannel):
    """With the doorbell on a file descriptor, as uio has it."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        channel = kernel.open()
        self.__dict__ = channel.__dict__
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def bell(self) -> int:
        return self._ours.fileno()

    def _listen(self) -> None:
        while self._theirs.recv(4096):
            self._kernel.doorbell()

    def hang_up(self) -> None:
        self._ours.close()
        self._thread.join(PATIENCE)
        self._theirs.close()


class Instructions:
    """Counts those of Python in threads that start within."""

    def __init__(self) -> None:
        self.executed = 0

    def __enter__(self) -> Instructions:
        threading.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        threading.settrace(None)  # type: ignore[arg-type]

    def _trace(self, frame: FrameType, event: str, _: object) -> Callable[..., object]:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self.executed += event == "opcode"
        return self._trace


@pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces")
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", [NativePump, ReferencePump])
def test_no_python_runs_for_a_command_that_succeeds(kind):
    """On the reference pump the same counter counts, so it does count."""
    kernel = SimulatedKernel()
    channel = Bell(kernel)
    storage = OnFile()
    backend = make_log().over(storage) if NativeRig.write_back else storage
    with Instructions() as instructions:
        pump = kind("vm1", channel, backend, BLOCK, Rig.sense_reply)
        pump.shape(Shape(BLOCK, BLOCKS, True))
        pump.start()
        first = kernel.submit(write(0), block("0"))
        assert first.wait(PATIENCE)
    patiently(lambda: pump.statistics().in_flight == 0)
    before = instructions.executed
    assert before
    for number in range(200):
        out = kernel.submit(write(number % BLOCKS), block("a"))
        back = kernel.submit(read(number % BLOCKS), data_in=BLOCK)
        flush = kernel.submit(SYNC)
        for command in (out, back, flush):
            assert command.wait(PATIENCE)
            assert command.status == Status.GOOD
    executed = instructions.executed - before
    if kind is NativePump:
        assert executed == 0
        assert pump._ring.counters()["writes"] == 201
    else:
        assert executed > 600
    pump.stop()
    channel.hang_up()
    storage.close()


# ---- failure


def test_a_failure_closes_the_gate_at_once_and_hands_over_what_runs(rig):
    feed = rig.storage.become_a_pipe()
    reading = rig.kernel.submit(read(1), data_in=BLOCK)
    runs(rig)
    bad = rig.kernel.submit(write(2), block("b"))  # a pipe's end for reading: EBADF
    running = rig.next(Closed).running
    assert [command.cdb for command in running] == [read(1), write(2)]
    assert [command.request.op for command in running] == [Op.READ, Op.WRITE]
    assert running[0].serial < running[1].serial
    finished = rig.next(Finished)
    assert (finished.command, finished.error, finished.running) == (running[1], errno.EBADF, ())
    rig.kernel.submit(write(3), block("c"))
    assert rig.next(Arrived).command.cdb == write(3), "from now on everything is asked for"
    assert (bad.status, reading.status) == (None, None)
    os.write(feed, block("r"))
    late = rig.next(Finished)
    assert (late.command, late.error) == (running[0], 0)
    assert rig.answer(reading) == Status.GOOD
    assert reading.data == block("r")
    assert rig.storage.calls == [("meaning", errno.EBADF)]
    os.close(feed)


def test_what_an_error_means_is_asked_of_the_storage(rig):
    """A disk that was pulled says EIO or ENOSPC, and is gone."""
    rig.storage.errors["meaning", errno.ENOSPC] = errno.ENODEV
    rig.storage.fill_up()
    rig.kernel.submit(write(2), block("b"))
    rig.next(Closed)
    assert rig.next(Finished).error == errno.ENODEV


@pytest.mark.parametrize(
    "failure", [OSError(errno.EBADF, "closed"), ZeroDivisionError("ours")], ids=["storage", "ours"]
)
def test_a_storage_that_cannot_say_what_an_error_means_leaves_it_as_it_is(rig, monkeypatch, failure):
    """It was closed for a reopen, for example. A worker that ended here would leave the command unanswered for ever."""

    def meaning(code):
        raise failure

    monkeypatch.setattr(rig.storage, "meaning", meaning)
    rig.storage.fill_up()
    rig.kernel.submit(write(2), block("b"))
    rig.next(Closed)
    assert rig.next(Finished).error == errno.ENOSPC


def test_a_failed_command_goes_on_as_in_the_reference_pump(rig):
    rig.storage.fill_up()
    command = rig.kernel.submit(write(2), block("b"))
    rig.next(Closed)
    failed = rig.next(Finished)
    assert failed.error == errno.ENOSPC
    assert command.status is None
    rig.storage.heal()
    rig.pump.dispatch(failed.command)
    assert rig.next(Finished).error == 0
    assert rig.answer(command) == Status.GOOD
    assert rig.storage.on_medium(2) == block("b")
    rig.open_gate()
    if rig.write_back:  # what the failure may have cost is made good first
        assert rig.answer(rig.kernel.submit(SYNC)) == Status.GOOD
    before = len(rig.storage.calls)
    assert rig.answer(rig.kernel.submit(write(3), block("c"))) == Status.GOOD
    assert len(rig.storage.calls) == before, "it is the loop's again"


def test_a_short_transfer_is_no_error_and_starts_again_at_byte_0(rig):
    feed = rig.storage.become_a_pipe()
    command = rig.kernel.submit(read(2), data_in=BLOCK)
    runs(rig)
    os.pwrite(rig.storage.file, block("w"), 2 * BLOCK)
    rig.storage.heal()
    os.write(feed, b"short")
    (running,) = rig.next(Closed).running
    finished = rig.next(Finished)
    assert (finished.command, finished.error) == (running, 0)
    assert rig.answer(command) == Status.GOOD
    assert command.data == block("w")
    assert rig.storage.calls == [("read", 2)]
    os.close(feed)


def test_a_short_file_is_an_error(rig):
    os.ftruncate(rig.storage.file, BLOCK)
    rig.kernel.submit(read(2), data_in=BLOCK)
    rig.next(Closed)
    assert rig.next(Finished).error == errno.EIO


def test_the_gate_closes_before_the_next_entry_is_fetched(batch):
    """Whatever comes after a failure is asked for: no write may run beside a held one that it overlaps."""
    batch.storage.fill_up()
    batch.start()
    bad = batch.kernel.submit(write(2), block("b"))
    batch.next(Closed)
    batch.storage.heal()
    for lba in range(5):
        batch.kernel.submit(write(lba), block("x"))
    kinds = [batch.next(object) for _ in range(6)]
    assert sorted(type(event).__name__ for event in kinds) == ["Arrived"] * 5 + ["Finished"]
    assert bad.status is None
    assert batch.storage.on_medium(2) == bytes(BLOCK)


# ---- the gate, task management


def test_closing_hands_over_what_the_loop_runs(rig):
    feed = rig.storage.become_a_pipe()
    command = rig.kernel.submit(read(1), data_in=BLOCK)
    runs(rig)
    (running,) = rig.close_gate()
    assert (running.cdb, running.id) == (read(1), command.id)
    assert rig.close_gate() == (), "handed over once"
    assert rig.pump.statistics().in_flight == 1
    os.write(feed, block("r"))
    assert rig.next(Finished).command is running
    assert rig.answer(command) == Status.GOOD
    assert rig.pump.statistics().in_flight == 0
    os.close(feed)


def test_what_runs_is_shown_while_it_runs(rig):
    feed = rig.storage.become_a_pipe()
    rig.kernel.submit(read(1), data_in=BLOCK)
    runs(rig)
    ((shown, _),) = rig.pump.running()
    assert shown.request.extents[0].offset == BLOCK
    (taken,) = rig.close_gate()
    assert taken.serial == shown.serial
    assert [command for command, _ in rig.pump.running()] == [taken]
    os.write(feed, block("r"))
    rig.next(Finished)
    assert rig.pump.running() == []
    os.close(feed)


def test_an_aborted_command_that_runs_is_answered_and_keeps_its_buffer(rig):
    feed = rig.storage.become_a_pipe()
    command = rig.kernel.submit(read(1), data_in=BLOCK)
    runs(rig)
    rig.kernel.abort([command])
    event = rig.next(TaskManagement)
    assert event.commands == event.running
    (running,) = event.running
    rig.pump.complete(running, ABORTED)
    assert rig.answer(command) == Status.TASK_ABORTED
    assert rig.kernel.kept_ids == {running.id}
    os.write(feed, block("r"))
    finished = rig.next(Finished)
    assert (finished.command, finished.error) == (running, 0)
    assert rig.kernel.kept_ids == frozenset()
    os.close(feed)


def test_nothing_is_tried_again_for_a_command_that_was_answered(rig):
    """A short transfer starts again, but not behind an answer."""
    feed = rig.storage.become_a_pipe()
    command = rig.kernel.submit(read(1), data_in=BLOCK)
    runs(rig)
    (running,) = rig.close_gate()
    rig.pump.complete(running, BUSY)
    assert rig.answer(command) == Status.BUSY
    os.write(feed, b"short")
    assert rig.next(Finished).error == errno.EIO
    assert rig.storage.calls == []
    assert rig.kernel.kept_ids == frozenset()
    os.close(feed)


def test_an_abort_finds_the_commands_of_its_own_batch_not_started(batch):
    aborted, kept = batch.kernel.submit(write(1), block("a")), batch.kernel.submit(write(2), block("b"))
    batch.kernel.abort([aborted])
    batch.start()
    event = batch.next(TaskManagement)
    assert event.commands == ()
    assert batch.answer(aborted) == Status.TASK_ABORTED
    assert batch.answer(kept) == Status.GOOD
    assert (batch.storage.on_medium(1), batch.storage.on_medium(2)) == (bytes(BLOCK), block("b"))


@pytest.mark.parametrize("opcode", sorted(EXCLUDING))
def test_beside_what_reads_and_then_writes_nothing_runs_unasked(batch, opcode):
    cdb = bytes((opcode,)).ljust(16, b"\0")
    batch.kernel.submit(write(1), block("a"))
    batch.kernel.submit(cdb, bytes(BLOCK))
    batch.kernel.submit(write(2), block("b"))
    batch.start()
    arrived = batch.next(Arrived)
    assert arrived.command.cdb == cdb
    assert [command.cdb for command in arrived.running] == [write(1)]
    assert batch.next(Arrived).command.cdb == write(2)
    assert batch.storage.on_medium(2) == bytes(BLOCK)


def test_what_is_not_plain_does_not_keep_the_plain_ones_of_its_batch(batch):
    first = batch.kernel.submit(write(1), block("a"))
    other = batch.kernel.submit(INQUIRY, data_in=96)
    last = batch.kernel.submit(write(2), block("b"))
    batch.start()
    arrived = batch.next(Arrived).command
    assert arrived.cdb == INQUIRY
    assert (batch.answer(first), batch.answer(last)) == (Status.GOOD, Status.GOOD)
    assert other.status is None
    assert batch.storage.calls == []


# ---- the end


def test_a_ring_that_is_overwritten_under_the_loops_io_breaks_the_pump(rig):
    """An entry without a length, before its completion: the loop does not walk on the spot for ever."""
    feed = rig.storage.become_a_pipe()
    rig.kernel.submit(read(1), data_in=BLOCK)
    runs(rig)
    struct.pack_into("<I", rig.channel.memory, layout(rig.channel.memory)[0], 0)
    os.write(feed, block("r"))
    assert "an entry of 0 bytes" in rig.next(Broken).message
    os.close(feed)


def test_stopping_with_io_out_does_not_wait_and_the_device_stays_open_until_it_returns():
    rig = NativeRig()
    rig.start()
    feed = rig.storage.become_a_pipe()
    command = rig.kernel.submit(read(1), data_in=BLOCK)
    runs(rig)
    stopper = threading.Thread(target=rig.pump.stop, daemon=True)
    stopper.start()
    stopper.join(PATIENCE)
    assert not stopper.is_alive(), "stop hangs"
    assert command.status is None
    with pytest.raises(OSError, match="busy"):
        rig.kernel.open()
    os.write(feed, block("r"))
    kernel, storage, thread = rig.kernel, rig.storage, rig.pump._thread
    thread.join(PATIENCE)
    assert not thread.is_alive()
    del rig, stopper, thread
    storage.close()
    gc.collect()
    kernel.open().close()
    os.close(feed)


# ---- any mix


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "write", "read", "read", "sync", "compare", "inquiry", "abort", "fail", "heal", "turn", "close"]
        ),
        st.integers(0, 7),
    ),
    max_size=60,
)


@pytest.mark.usefixtures("cache")
@settings(deadline=None, max_examples=200)
@given(steps=STEPS, choices=st.lists(st.integers(0, 29), max_size=20), late=st.booleans())
def test_any_mix_is_answered_once_each(steps, choices, late):
    """As in `both/`, with io_uring and a file that fills up and is healed."""
    rig = NativeRig()
    loop = Loop(rig, choices)
    disturbances = {"fail": lambda _: rig.storage.fill_up(), "heal": lambda _: rig.storage.heal()}
    sent = loop.play(steps, late, disturbances)
    rig.storage.heal()
    try:
        loop.until_answered(sent)
    finally:
        rig.end()
    check(rig, sent)


# ---- which pump


class Refused(core.Core):
    def prepare(self, *_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def make(monkeypatch):
    """Makes a pump over nothing much, with TCMU_RETRY_PUMP set."""
    selection._say.cache_clear()

    def make(forced: str | None) -> ReferencePump:
        monkeypatch.delenv(selection.VARIABLE, raising=False)
        if forced is not None:
            monkeypatch.setenv(selection.VARIABLE, forced)
        pump = make_pump("vm1", SimulatedKernel().open(), Storage(), BLOCK, Rig.sense_reply)
        pump.stop()
        return pump  # type: ignore[return-value]

    return make


@pytest.mark.parametrize(
    ("forced", "kind"), [(None, NativePump), ("native", NativePump), ("reference", ReferencePump), ("", NativePump)]
)
def test_the_native_pump_is_the_one_that_is_used(make, forced, kind):
    assert type(make(forced)) is kind


def test_where_io_uring_is_forbidden_the_reference_pump_runs_and_one_line_says_so(make, monkeypatch, caplog):
    monkeypatch.setattr(native, "Core", Refused)
    with caplog.at_level(logging.WARNING):
        assert type(make(None)) is ReferencePump
        assert type(make(None)) is ReferencePump
    (record,) = caplog.records
    assert "io_uring cannot be had (Operation not permitted)" in record.message


def test_where_it_is_not_built_the_reference_pump_runs(make, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tcmu_retry.pump.native.pump", None)
    importlib.reload(selection)
    with caplog.at_level(logging.WARNING):
        assert type(make(None)) is ReferencePump
    assert "it is not built" in caplog.text
    monkeypatch.undo()
    importlib.reload(selection)


def test_it_is_loaded_with_the_daemon_not_by_its_first_lun_when_a_package_may_have_brought_another_version():
    look = "import sys, tcmu_retry.retryd; sys.exit('tcmu_retry.pump.native.core' not in sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True)


def test_what_is_forced_and_cannot_run_is_an_error(make, monkeypatch):
    monkeypatch.setattr(native, "Core", Refused)
    with pytest.raises(OSError, match="native, but the native pump cannot run: io_uring cannot be had"):
        make("native")


def test_a_pump_that_does_not_exist_is_an_error(make):
    with pytest.raises(OSError, match="TCMU_RETRY_PUMP=fast names no pump; set it to native or reference"):
        make("fast")


def test_a_device_that_was_closed_while_i_o_was_out_is_free_once_that_is_over():
    """The pump's views outlive the channel then, and pump and channel live on: a broken ring's until it is mended."""
    kernel = SimulatedKernel()
    channel = kernel.open()
    memory = channel.memory
    ring = NativePump._make_ring(NativePump.__new__(NativePump), memory, None)
    with pytest.raises(BufferError):
        channel.close()
    with pytest.raises(OSError, match="busy"):
        kernel.open()
    ring.close()
    kernel.open().close()
    del memory, channel
