"""The commands of a LUN: who waits for whom, against a search through all of them, and what is counted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.core.hold import BUCKET, WIDE, Commands, Entry, Stage
from tcmu_retry.scsi.request import Direction, Extent, Op, Request

MIB = 1 << BUCKET
READS = (Op.READ, Op.VERIFY, Op.FLUSH)

PLACES = st.one_of(
    st.integers(0, 40).map(lambda block: block * 512),
    st.sampled_from([MIB - 512, MIB, MIB + 512, 63 * MIB, 64 * MIB, 65 * MIB, 1 << 40]),
)
LENGTHS = st.sampled_from([1, 512, 4096, MIB, MIB + 1, WIDE * MIB, (WIDE + 1) * MIB - 1, (WIDE + 1) * MIB, 1 << 40])
EXTENTS = st.builds(Extent, PLACES, LENGTHS)
REQUESTS = st.one_of(
    st.builds(Request, st.sampled_from([Op.READ, Op.WRITE, Op.VERIFY]), EXTENTS.map(lambda one: (one,))),
    st.builds(Request, st.just(Op.UNMAP), st.lists(EXTENTS, max_size=4).map(tuple)),
    st.just(Request(Op.FLUSH)),
)


def meet(some: Request, other: Request) -> bool:
    """What the index must find, without one."""
    if some.op in READS and other.op in READS:
        return False
    return any(
        max(one.offset, another.offset) < min(one.offset + one.length, another.offset + another.length)
        for one in some.extents
        for another in other.extents
    )


def command(token: int, op: Op = Op.WRITE, offset: int = 0, length: int = 4096, stage: Stage = Stage.HELD) -> Entry:
    extents = () if op is Op.FLUSH else (Extent(offset, length),)
    return Entry(token, Request(op, extents), 0.0, stage)


@settings(deadline=None)
@given(st.data())
def test_index_finds_what_a_search_finds(data: st.DataObject) -> None:
    """Commands come and go in any order; each waits for exactly the earlier ones that are left and that it meets."""
    commands, waiting = Commands(), dict[int, tuple[Entry, set[int]]]()
    for token in range(data.draw(st.integers(1, 14))):
        entry = Entry(token, data.draw(REQUESTS), 0.0, Stage.HELD)
        commands.add(entry, ordered=True)
        waiting[token] = entry, {other for other, (one, _) in waiting.items() if meet(entry.request, one.request)}
        if data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(waiting)))
            leaving, _ = waiting.pop(gone)
            freed = {other.token for other in commands.remove(leaving)}
            expected = {other for other, (_, behind) in waiting.items() if behind == {gone}}
            assert freed == expected
            for _, behind in waiting.values():
                behind.discard(gone)
        assert {other: one.blockers for other, (one, _) in waiting.items()} == {
            other: len(behind) for other, (_, behind) in waiting.items()
        }


def test_nothing_is_left_in_the_index() -> None:
    """What has gone leaves no bucket behind, wide or narrow."""
    commands = Commands()
    entries = [command(1, length=3 * MIB), command(2, length=100 * MIB), command(3, Op.FLUSH)]
    for entry in entries:
        commands.add(entry, ordered=True)
    for entry in entries:
        commands.remove(entry)
    assert not commands._buckets
    assert len(commands) == 0


def test_what_ran_before_waits_for_nobody_but_is_waited_for() -> None:
    """Its order was decided before the gate closed; those that come later stay behind it."""
    commands = Commands()
    first, beside, later = command(1), command(2), command(3)
    commands.add(first, ordered=True)
    commands.add(beside, ordered=False)
    commands.add(later, ordered=True)
    assert (first.blockers, beside.blockers, later.blockers) == (0, 0, 2)


def test_who_waits_for_two_is_free_after_the_second() -> None:
    commands = Commands()
    first, second, both = command(1, offset=0), command(2, offset=4096), command(3, length=8192)
    for entry in (first, second, both):
        commands.add(entry, ordered=True)
    assert commands.remove(second) == []
    assert commands.remove(first) == [both]


def test_one_that_left_before_its_turn_is_not_freed() -> None:
    """An aborted command is not tried when the one before it goes."""
    commands = Commands()
    first, second = command(1), command(2)
    commands.add(first, ordered=True)
    commands.add(second, ordered=True)
    commands.remove(second)
    assert commands.remove(first) == []


def test_counts_follow_the_stages() -> None:
    """Held commands and bytes; and what keeps the gate closed though nothing is held."""
    commands = Commands()
    one = command(1, length=512, stage=Stage.RUNNING)
    swap = command(2, Op.COMPARE_AND_WRITE, MIB, 4096, Stage.RUNNING)
    commands.add(one, ordered=True)
    commands.add(swap, ordered=True)
    assert (commands.held, commands.held_bytes, commands.closing) == (0, 0, 1)
    commands.stage(one, Stage.HELD)
    commands.stage(swap, Stage.HELD)
    assert (commands.held, commands.held_bytes, commands.closing) == (2, 4608, 0)
    commands.stage(one, Stage.FENCE)
    assert (commands.held, commands.held_bytes, commands.closing) == (1, 4096, 1)
    commands.remove(one)
    commands.remove(swap)
    assert (commands.held, commands.held_bytes, commands.closing) == (0, 0, 0)


def test_held_commands_come_oldest_first() -> None:
    commands = Commands()
    for token in (3, 1, 2):
        commands.add(command(token, offset=token * MIB), ordered=True)
    commands.add(command(0, offset=9 * MIB, stage=Stage.RUNNING), ordered=True)
    assert [entry.token for entry in commands.held_entries()] == [1, 2, 3]


def test_what_an_entry_says_of_itself() -> None:
    """VERIFY reads; a flush changes nothing and has no place; everything else writes."""
    assert {op: command(0, op).changes for op in Op} == {op: op not in READS for op in Op}
    assert command(0, Op.FLUSH).place == -1
    assert command(0, offset=512).place == 512
    assert (command(0, Op.VERIFY).direction, command(0, Op.FLUSH).direction) == (Direction.READ, Direction.WRITE)
