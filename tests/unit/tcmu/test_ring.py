"""Both rings, in Python and in C, against the simulated kernel.

What is fetched is what was queued, and every answer reaches its command.
"""

from __future__ import annotations

import mmap
import platform
import select
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_retry.pump.native.core import Core
from tcmu_retry.scsi.request import Status
from tcmu_retry.tcmu.ring import CommandEntry, Ring, RingError, TaskManagementEntry
from tcmu_retry.tcmu.simulated import LUN_RESET, SimulatedChannel, SimulatedCommand, SimulatedKernel

BLOCK = mmap.PAGESIZE
TEST_UNIT_READY = bytes(6)
READ_10 = bytes((0x28,)).ljust(10, b"\0")
WRITE_10 = bytes((0x2A,)).ljust(10, b"\0")
READ_16 = bytes((0x88,)).ljust(16, b"\0")


class Handler:
    """An open ring and what one does with it."""

    ring_class: type[Ring]

    def __init__(self, kernel: SimulatedKernel) -> None:
        self.kernel = kernel
        self.channel: SimulatedChannel = kernel.open()
        self.memory = self.channel.memory
        self.ring = self.ring_class(self.memory)

    def commands(self) -> list[CommandEntry]:
        entries = self.ring.fetch()
        assert all(isinstance(entry, CommandEntry) for entry in entries)
        return entries  # type: ignore[return-value]

    def buffer(self, entry: CommandEntry) -> bytes:
        return b"".join(self.memory[offset : offset + length] for offset, length in entry.iovs)

    def fill(self, entry: CommandEntry, data: bytes) -> None:
        for offset, length in entry.iovs:
            piece, data = data[:length], data[length:]
            self.memory[offset : offset + len(piece)] = piece

    def complete(self, entry: CommandEntry, status: int = 0, **how: object) -> None:
        self.ring.complete(entry.id, status, **how)  # type: ignore[arg-type]
        self.channel.doorbell()

    @property
    def readable(self) -> bool:
        return bool(select.select([self.channel], [], [], 0)[0])

    @property
    def tail(self) -> int:
        return struct.unpack_from("<I", self.memory, 64)[0]

    @property
    def head(self) -> int:
        return struct.unpack_from("<I", self.memory, 12)[0]

    def close(self) -> None:
        self.ring.close()
        self.channel.close()


@pytest.fixture(scope="module", params=[Ring, Core], autouse=True)
def ring_class(request):
    Handler.ring_class = request.param


@pytest.fixture
def handler() -> Iterator[Handler]:
    handler = Handler(SimulatedKernel(ring=1024, data=16 * BLOCK))
    yield handler
    handler.close()


# ---- a ring that is not for us


def mailbox(version: int = 2, flags: int = 0xF, offset: int = 128, size: int = 1024, tail: int = 0) -> memoryview:
    memory = memoryview(bytearray(4096))
    struct.pack_into("<HHII", memory, 0, version, flags, offset, size)
    struct.pack_into("<I", memory, 64, tail)
    return memory


@pytest.mark.parametrize("version", [0, 1, 3])
def test_another_version_is_refused(version):
    with pytest.raises(RingError, match=f"version {version}"):
        Handler.ring_class(mailbox(version=version))


@pytest.mark.parametrize(
    ("flags", "name"),
    [(0xE, "out-of-order completion"), (0xD, "READ_LEN"), (0xB, "task management"), (0x7, "KEEP_BUF")],
)
def test_a_missing_feature_is_refused_by_its_name(flags, name):
    with pytest.raises(RingError, match=rf"lacks {name};"):
        Handler.ring_class(mailbox(flags=flags))


def test_all_missing_features_are_named_at_once():
    with pytest.raises(RingError, match="out-of-order completion, READ_LEN, task management, KEEP_BUF"):
        Handler.ring_class(mailbox(flags=0))


def test_features_of_a_later_kernel_do_not_matter():
    Handler.ring_class(mailbox(flags=0xFF)).close()


@pytest.mark.parametrize(
    "place",
    [{"offset": 0}, {"offset": 132}, {"offset": 8192}, {"size": 8192}, {"size": 8}, {"size": 1020}],
)
def test_a_ring_outside_the_mapping_is_refused(place):
    with pytest.raises(RingError, match="said to lie"):
        Handler.ring_class(mailbox(**place))


@pytest.mark.parametrize("tail", [1024, 4])
def test_a_tail_outside_the_ring_is_refused(tail):
    with pytest.raises(RingError, match="its tail is at"):
        Handler.ring_class(mailbox(tail=tail))


def test_a_cpu_with_weak_memory_order_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(RingError, match="on aarch64: only the native pump can serve here"):
        Ring(mailbox())


# ---- entries


@pytest.mark.parametrize(
    "cdb",
    [
        TEST_UNIT_READY,
        READ_10,
        READ_16,
        bytes((0xA8,)).ljust(12, b"\1"),
        bytes((0x7F, 0, 0, 0, 0, 0, 0, 24)).ljust(32, b"\2"),
        bytes((0x5A,)).ljust(10, b"\3"),
    ],
    ids=lambda cdb: f"{cdb[0]:02x}",
)
def test_a_cdb_has_the_length_that_its_opcode_gives_it(handler, cdb):
    handler.kernel.submit(cdb)
    (entry,) = handler.commands()
    assert entry.cdb == cdb
    assert entry.iovs == ()


def test_a_cdb_of_a_reserved_group_is_taken_whole(handler):
    """It has no length of its own, and dropping it would leave the command open for ever."""
    handler.kernel.submit(bytes((0x60,)).ljust(16, b"\4"))
    (entry,) = handler.commands()
    assert entry.cdb == bytes((0x60,)).ljust(16, b"\4")


def test_the_last_piece_of_a_buffer_ends_with_the_data(handler):
    handler.kernel.submit(WRITE_10, b"x" * (BLOCK + 5))
    (entry,) = handler.commands()
    assert [length for _, length in entry.iovs] == [BLOCK + 5]
    assert handler.buffer(entry) == b"x" * (BLOCK + 5)


def test_a_buffer_of_scattered_blocks_has_its_pieces_in_order(handler):
    first, _, third = (handler.kernel.submit(WRITE_10, b"-" * BLOCK) for _ in range(3))
    one, _, three = handler.commands()
    handler.complete(three)
    handler.complete(one)
    assert (first.status, third.status) == (0, 0)
    data = b"a" * BLOCK + b"b" * BLOCK + b"c"
    handler.kernel.submit(WRITE_10, data)
    (entry,) = handler.commands()
    assert len(entry.iovs) == 2
    assert handler.buffer(entry) == data


def test_an_entry_is_good_after_its_place_was_stolen(handler):
    """A completion overwrites the entry at the tail, whichever command it names: all was copied out before."""
    long = handler.kernel.submit(WRITE_10, b"long")
    short = handler.kernel.submit(READ_10, data_in=4)
    one, two = handler.commands()
    handler.fill(two, b"data")
    handler.complete(two)
    assert (short.status, short.data) == (Status.GOOD, b"data")
    assert long.status is None
    assert (one.cdb, handler.buffer(one)) == (WRITE_10, b"long")
    handler.complete(one, Status.BUSY)
    assert long.status == Status.BUSY


def test_nothing_queued_is_nothing_fetched(handler):
    assert not handler.ring.unfetched
    assert handler.ring.fetch() == []
    handler.kernel.submit(TEST_UNIT_READY)
    assert handler.ring.unfetched
    assert len(handler.ring.fetch()) == 1
    assert not handler.ring.unfetched
    assert handler.ring.fetch() == []


def test_an_id_is_used_again_at_once(handler):
    first = handler.kernel.submit(TEST_UNIT_READY)
    (one,) = handler.commands()
    handler.complete(one)
    handler.kernel.submit(TEST_UNIT_READY)
    (two,) = handler.commands()
    assert first.status == Status.GOOD
    assert one.id == two.id


def test_task_management_comes_behind_the_commands_it_names(handler):
    commands = [handler.kernel.submit(TEST_UNIT_READY) for _ in range(3)]
    handler.kernel.abort(commands[1:], LUN_RESET)
    one, two, three, tmr = handler.ring.fetch()
    assert tmr == TaskManagementEntry(LUN_RESET, (two.id, three.id))
    for entry in (three, one, two):
        handler.complete(entry, Status.TASK_ABORTED)
    assert [command.status for command in commands] == [Status.TASK_ABORTED] * 3


def test_task_management_over_nothing_is_taken(handler):
    handler.kernel.abort([])
    assert handler.ring.fetch() == [TaskManagementEntry(1, ())]


def test_idle_the_tail_walks_over_task_management(handler):
    """Else the entries of a handler without commands would fill the ring."""
    for _ in range(100):
        handler.kernel.abort([])
        assert len(handler.ring.fetch()) == 1
        handler.ring.settle()
        assert handler.tail == handler.head
        handler.channel.doorbell()


def test_the_tail_does_not_pass_what_is_not_fetched(handler):
    handler.kernel.abort([])
    handler.ring.settle()
    assert handler.tail == 0


def test_an_unknown_entry_is_marked_and_passed_over(handler):
    """Future kernels may queue others; UNKNOWN_OP tells them that nothing was done."""
    struct.pack_into("<IHBB", handler.memory, 128, 16 | 7, 0, 0, 0)
    struct.pack_into("<I", handler.memory, 12, 16)
    assert handler.ring.fetch() == []
    assert handler.memory[128 + 7] == 1
    handler.ring.settle()
    assert handler.tail == 16


# ---- answers


def test_sense_reaches_the_initiator(handler):
    command = handler.kernel.submit(READ_10, data_in=8)
    (entry,) = handler.commands()
    handler.complete(entry, Status.CHECK_CONDITION, sense=b"sense")
    assert command.status == Status.CHECK_CONDITION
    assert command.sense == b"sense".ljust(96, b"\0")
    assert (command.data, command.residual) == (b"", 0)


def test_read_len_shortens_the_data_in(handler):
    command = handler.kernel.submit(READ_10, data_in=96)
    (entry,) = handler.commands()
    handler.fill(entry, b"x" * 36)
    handler.complete(entry, read_len=36)
    assert (command.data, command.residual) == (b"x" * 36, 60)


def test_without_read_len_the_whole_buffer_goes_out(handler):
    command = handler.kernel.submit(READ_10, data_in=96)
    (entry,) = handler.commands()
    handler.fill(entry, b"x" * 96)
    handler.complete(entry)
    assert (command.data, command.residual) == (b"x" * 96, 0)


def test_a_kept_buffer_stays_the_commands_until_it_is_freed(handler):
    first = handler.kernel.submit(WRITE_10, b"first")
    (one,) = handler.commands()
    handler.complete(one, Status.TASK_ABORTED, keep_buffer=True)
    assert first.status == Status.TASK_ABORTED
    handler.kernel.submit(WRITE_10, b"other")
    (two,) = handler.commands()
    assert two.id != one.id
    assert handler.buffer(one) == b"first"
    assert handler.kernel.kept_ids == {one.id}
    handler.channel.free_kept_buffer(one.id)
    assert handler.kernel.kept_ids == frozenset()
    handler.kernel.submit(WRITE_10, b"third")
    (three,) = handler.commands()
    assert (three.id, three.iovs) == (one.id, one.iovs)


def test_more_answers_than_commands_are_refused_before_they_break_the_ring(handler):
    handler.kernel.submit(TEST_UNIT_READY)
    (entry,) = handler.commands()
    handler.complete(entry)
    with pytest.raises(RingError, match=f"command {entry.id} is completed and none is open"):
        handler.ring.complete(entry.id, Status.GOOD)
    assert not handler.kernel.broken


# ---- what makes no sense


def corrupt(memory: memoryview, at: int, form: str, value: int) -> None:
    struct.pack_into(form, memory, 128 + at, value)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "<I", 1, "an entry of 0 bytes"),
        (0, "<I", 2048 | 1, "an entry of 2048 bytes"),
        (8, "<I", 1000, "has 1000 iovs"),
        (24, "<Q", 8, "its CDB at 8"),
        (24, "<Q", 1 << 40, "its CDB at"),
        (48, "<Q", 1 << 40, "a buffer outside the mapping"),
        (56, "<Q", 1 << 40, "a buffer outside the mapping"),
    ],
)
def test_a_broken_command_is_found(handler, at, form, value, message):
    handler.kernel.submit(WRITE_10, b"data")
    corrupt(handler.memory, at, form, value)
    with pytest.raises(RingError, match=message):
        handler.ring.fetch()


def test_a_broken_task_management_is_found(handler):
    handler.kernel.abort([])
    corrupt(handler.memory, 12, "<I", 500)
    with pytest.raises(RingError, match="task management over 500 commands"):
        handler.ring.fetch()


@pytest.mark.parametrize("head", [1024, 4])
def test_a_head_outside_the_ring_is_found(handler, head):
    struct.pack_into("<I", handler.memory, 12, head)
    with pytest.raises(RingError, match="its head is at"):
        handler.ring.fetch()


def test_an_entry_that_reaches_over_the_head_is_found(handler):
    """Behind the head are entries that were answered long ago: going on would run them again, and never end."""
    handler.kernel.submit(WRITE_10, b"data")
    struct.pack_into("<I", handler.memory, 12, 8)
    with pytest.raises(RingError, match="an entry of 128 bytes at 0"):
        handler.ring.fetch()


@pytest.mark.parametrize(("length", "op"), [(8, 1), (40, 1), (8, 2), (24, 2)])
def test_an_entry_too_short_for_its_kind_is_found_at_the_end_of_the_mapping_too(length, op):
    size = 4096 - 128
    memory = mailbox(size=size, tail=size - length)
    struct.pack_into("<I", memory, 4096 - length, length | op)
    with pytest.raises(RingError, match=f"an entry of {length} bytes"):
        Handler.ring_class(memory).fetch()


@pytest.mark.parametrize(("length", "op"), [(0, 0), (0, 2), (256, 0), (1 << 20, 0), (0, 1), (2048, 1)])
def test_an_entry_that_is_overwritten_after_its_fetch_is_found(handler, length, op):
    """Walking on from it might lead out of the mapping, or never end."""
    handler.kernel.submit(WRITE_10, b"data")
    (entry,) = handler.commands()
    corrupt(handler.memory, 0, "<I", length | op)
    with pytest.raises(RingError, match=f"an entry of {length} bytes at 0 of"):
        handler.ring.complete(entry.id, Status.GOOD)
    if op != 1:
        with pytest.raises(RingError, match=f"an entry of {length} bytes at 0 of"):
            handler.ring.settle()


@pytest.mark.parametrize("tail", [1 << 20, 4])
def test_a_tail_that_is_overwritten_is_found(handler, tail):
    handler.kernel.submit(WRITE_10, b"data")
    (entry,) = handler.commands()
    struct.pack_into("<I", handler.memory, 64, tail)
    with pytest.raises(RingError, match=f"its tail is at {tail}"):
        handler.ring.settle()
    with pytest.raises(RingError, match=f"its tail is at {tail}"):
        handler.ring.complete(entry.id, Status.GOOD)


def test_a_cdb_that_is_cut_off_by_the_end_of_the_mapping_is_what_there_is_of_it():
    size = 4096 - 128
    memory = mailbox(size=size, tail=size - 112)
    struct.pack_into("<IHBBIIII", memory, 4096 - 112, 112 | 1, 7, 0, 0, 0, 0, 0, 0)
    struct.pack_into("<Q", memory, 4096 - 112 + 24, 4096 - 4)
    memory[4096 - 4 :] = bytes((0x7F, 1, 2, 3))  # of variable length, which is told by its eighth byte
    [entry] = Handler.ring_class(memory).fetch()
    assert entry.cdb == bytes((0x7F, 1, 2, 3))


# ---- the simulated kernel keeps what the real one promises


def test_an_unknown_id_breaks_the_ring(handler):
    """So that every test here would notice a command that is answered twice."""
    command = handler.kernel.submit(TEST_UNIT_READY)
    (entry,) = handler.commands()
    handler.ring.complete(entry.id + 1, Status.GOOD)
    handler.channel.doorbell()
    assert handler.kernel.broken == f"cmd_id {entry.id + 1} not found, ring is broken"
    assert command.status is None
    later = handler.kernel.submit(TEST_UNIT_READY)
    assert later.status == Status.CHECK_CONDITION
    assert (later.sense[2], later.sense[7], later.sense[12:14]) == (0x02, 10, b"\x08\x00")


@pytest.mark.parametrize("length", [0, 256])
def test_an_answer_that_is_overwritten_before_the_kernel_looks_breaks_the_ring(handler, length):
    handler.kernel.submit(TEST_UNIT_READY)
    (entry,) = handler.commands()
    handler.ring.complete(entry.id, Status.GOOD)
    corrupt(handler.memory, 0, "<I", length)
    handler.channel.doorbell()
    assert handler.kernel.broken == f"an entry of {length} bytes at 0, ring is broken"


def test_a_kept_command_answered_again_breaks_the_ring(handler):
    handler.kernel.submit(TEST_UNIT_READY)
    handler.kernel.submit(TEST_UNIT_READY)
    one, _ = handler.commands()
    handler.complete(one, keep_buffer=True)
    handler.complete(one)
    assert "already completed with KEEP_BUF" in handler.kernel.broken


def test_freeing_a_buffer_that_is_not_kept_is_refused(handler):
    handler.kernel.submit(TEST_UNIT_READY)
    (entry,) = handler.commands()
    with pytest.raises(OSError, match="free the kept buffer"):
        handler.channel.free_kept_buffer(entry.id)


def test_commands_wait_for_room_in_the_ring_and_come_in_order(handler):
    commands = [handler.kernel.submit(TEST_UNIT_READY) for _ in range(20)]
    waiting = handler.kernel.waiting
    assert waiting
    order = []
    while entries := handler.commands():
        for entry in entries:
            order.append(entry.id)
            handler.complete(entry)
    assert len(order) == 20
    assert all(command.status == Status.GOOD for command in commands)


def test_commands_wait_for_room_in_the_data_area(handler):
    big = handler.kernel.submit(WRITE_10, bytes(16 * BLOCK))
    small = handler.kernel.submit(WRITE_10, b"x")
    without = handler.kernel.submit(TEST_UNIT_READY)
    (entry,) = handler.commands()
    assert handler.kernel.waiting == 2, "nobody overtakes"
    handler.complete(entry)
    assert big.status == Status.GOOD
    for entry in handler.commands():
        handler.complete(entry)
    assert (small.status, without.status) == (Status.GOOD, Status.GOOD)


def test_waiting_commands_that_are_aborted_never_reach_the_handler(handler):
    handler.kernel.submit(WRITE_10, bytes(16 * BLOCK))
    waiting = handler.kernel.submit(WRITE_10, b"x")
    handler.kernel.abort([waiting])
    assert waiting.status == Status.TASK_ABORTED
    assert handler.ring.fetch()[1:] == [TaskManagementEntry(1, ())]


def test_a_command_beyond_the_data_area_is_refused(handler):
    command = handler.kernel.submit(WRITE_10, bytes(17 * BLOCK))
    assert command.status == Status.CHECK_CONDITION


def test_without_an_id_the_task_set_is_full():
    kernel = SimulatedKernel(ids=1)
    kernel.submit(TEST_UNIT_READY)
    assert kernel.submit(TEST_UNIT_READY).status == Status.TASK_SET_FULL


def test_one_opener_at_a_time_and_its_views_count(handler):
    with pytest.raises(OSError, match="busy"):
        handler.kernel.open()
    other = SimulatedKernel()
    channel = other.open()
    view = channel.memory[:8]
    with pytest.raises(BufferError):
        channel.close()
    del channel
    with pytest.raises(OSError, match="busy"):
        other.open()
    del view
    other.open().close()


def test_what_was_queued_before_the_opening_does_not_ring():
    kernel = SimulatedKernel()
    kernel.submit(TEST_UNIT_READY)
    handler = Handler(kernel)
    assert not handler.readable
    assert handler.ring.unfetched
    kernel.submit(TEST_UNIT_READY)
    assert handler.readable
    handler.channel.acknowledge()
    assert not handler.readable
    handler.close()


def test_the_next_handler_finds_the_ring_as_it_was_and_kept_buffers_freed():
    kernel = SimulatedKernel()
    handler = Handler(kernel)
    aborted = kernel.submit(WRITE_10, b"kept")
    (entry,) = handler.commands()
    handler.complete(entry, Status.TASK_ABORTED, keep_buffer=True)
    handler.close()
    assert aborted.status == Status.TASK_ABORTED
    open_command = kernel.submit(WRITE_10, b"later")
    handler = Handler(kernel)
    assert kernel.kept_ids == frozenset()
    (entry,) = handler.commands()
    assert handler.buffer(entry) == b"later"
    handler.complete(entry)
    assert open_command.status == Status.GOOD
    handler.close()


def test_a_removed_device_hangs_up(handler):
    poll = select.poll()
    poll.register(handler.channel.fileno(), select.POLLIN)
    handler.kernel.remove()
    ((_, happened),) = poll.poll(0)
    assert happened & ~select.POLLIN
    with pytest.raises(OSError, match="Input/output"):
        handler.channel.acknowledge()
    with pytest.raises(OSError, match="Invalid argument"):
        handler.channel.doorbell()
    with pytest.raises(OSError, match="No such device"):
        handler.kernel.submit(TEST_UNIT_READY)


# ---- any order


@st.composite
def exchanges(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Submissions with their sizes, fetches, completions and aborts of the nth open command."""
    kind = st.sampled_from(["write", "write", "read", "read", "none", "fetch", "end", "end", "end", "abort", "free"])
    return draw(st.lists(st.tuples(kind, st.integers(0, 40), st.integers(1, 3 * BLOCK)), max_size=120))


@given(steps=exchanges(), ring=st.sampled_from([256, 512, 1000, 1024, 4096]))
def test_any_order_of_anything(steps, ring):
    """Each command is fetched once, keeps its own data to its end, and is answered once with what was said of it."""
    kernel = SimulatedKernel(ring=ring, data=8 * BLOCK)
    handler = Handler(kernel)
    sent: dict[bytes, SimulatedCommand] = {}  # by the CDB, whose address is the command's number
    fetched: dict[bytes, CommandEntry] = {}
    expected: dict[bytes, tuple[int, bytes]] = {}
    kept: list[int] = []

    def submit(opcode: int, data_out: bytes = b"", data_in: int = 0) -> None:
        cdb = struct.pack(">BxI4x", opcode, len(sent))
        sent[cdb] = kernel.submit(cdb, data_out, data_in)

    def fetch() -> None:
        for entry in handler.ring.fetch():
            if isinstance(entry, TaskManagementEntry):
                assert len(entry.ids) <= 1
                # What it names came before it, and is still open or has ended in the meantime.
                assert {entry.id for entry in fetched.values()}.issuperset(entry.ids)
            else:
                assert entry.cdb not in fetched, "fetched twice"
                fetched[entry.cdb] = entry

    def end(which: int, size: int) -> None:
        candidates = [cdb for cdb in fetched if cdb not in expected]
        if not candidates:
            return
        cdb = candidates[which % len(candidates)]
        entry, command = fetched[cdb], sent[cdb]
        assert command.status is None
        assert entry.id == command.id
        keep = size % 5 == 0
        status = Status.BUSY if size % 3 == 0 else Status.GOOD
        data, read_len = b"", None
        if command.data_out:
            assert handler.buffer(entry) == command.data_out
        elif command.data_in:
            data = bytes((which + 1,)) * command.data_in
            handler.fill(entry, data)
            read_len = size if size < command.data_in else None
            data = data[:read_len]
        expected[cdb] = (status, data)
        handler.ring.complete(entry.id, status, read_len=read_len, keep_buffer=keep)
        if keep:
            kept.append(entry.id)
        handler.channel.doorbell()

    for what, which, size in steps:
        match what:
            case "write":
                submit(0x2A, bytes((which,)) * size)
            case "read":
                submit(0x28, data_in=size)
            case "none":
                submit(0x35)
            case "fetch":
                fetch()
            case "end":
                end(which, size)
            case "abort" if sent:
                kernel.abort([list(sent.values())[which % len(sent)]])
            case "free" if kept:
                handler.channel.free_kept_buffer(kept.pop())
    while True:  # to the end
        fetch()
        handler.ring.settle()
        handler.channel.doorbell()
        while kept:
            handler.channel.free_kept_buffer(kept.pop())
        if fetched.keys() == expected.keys() and not handler.ring.unfetched:
            break
        while fetched.keys() != expected.keys():
            end(0, 1)
    assert not kernel.broken
    assert not kernel.waiting
    assert not kernel.open_ids
    for cdb, command in sent.items():
        if cdb in expected:
            assert (command.status, command.data) == expected[cdb]
        else:
            assert command.status == Status.TASK_ABORTED, "only what was aborted while it waited never comes"
    handler.close()
