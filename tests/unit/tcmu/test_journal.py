"""A process that is killed between any two steps: what it left is taken up, and every command is answered once."""

from __future__ import annotations

import os
import random
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.pump.native.core import Core
from tcmu_retry.scsi.request import Status
from tcmu_retry.tcmu import journal as module
from tcmu_retry.tcmu import ring as ring_module
from tcmu_retry.tcmu.journal import Journal, JournalError
from tcmu_retry.tcmu.ring import CommandEntry, Ring
from tcmu_retry.tcmu.simulated import SimulatedChannel, SimulatedCommand, SimulatedKernel
from tests.unit.killed import Killed, killed_at, stepped

WRITE_10 = bytes((0x2A,)).ljust(10, b"\0")
STEPS = {module.__file__, ring_module.__file__}


class World:
    """A kernel and the processes that serve it, one after the other."""

    ring_class: type[Ring] = Ring

    def __init__(self, ring: int = 512 * 3) -> None:
        self.kernel = SimulatedKernel(ring=ring, data=64 * 4096)
        self.file = os.memfd_create("journal", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.file)
        self.commands: list[SimulatedCommand] = []
        self.named: set[int] = set()  # commands that task management named, by place
        self.open: dict[int, CommandEntry] = {}
        self.channel: SimulatedChannel
        self.journal: Journal
        self.ring: Ring
        self.start(fresh=True)

    def start(self, fresh: bool = False) -> None:
        self.channel = self.kernel.open()
        self.journal = Journal(os.dup(self.file), "vm1")
        if fresh:
            self.journal.begin(0)
        else:
            self.journal.resume(self.channel.memory)
        self.ring = self.ring_class(self.channel.memory, self.journal)
        self.open = {left.entry.id: left.entry for left in self.journal.left}
        if not fresh:
            self.channel.doorbell()

    def end(self) -> None:
        if hasattr(self, "ring"):
            self.ring.close()
            del self.ring
        self.journal.close()
        self.channel.close()

    def submit(self) -> None:
        self.commands.append(self.kernel.submit(WRITE_10, bytes((len(self.commands) + 1,)) * 512))

    def abort(self, which: int) -> None:
        if self.commands and not self.named:
            place = which % len(self.commands)
            if self.commands[place].id:
                self.named.add(place)
                self.kernel.abort([self.commands[place]])

    def fetch(self) -> None:
        for entry in self.ring.fetch():
            if isinstance(entry, CommandEntry):
                assert entry.id not in self.open
                self.open[entry.id] = entry

    def complete(self, which: int) -> None:
        if self.open:
            number = sorted(self.open)[which % len(self.open)]
            self.ring.complete(number, self.status(number))
            del self.open[number]

    def status(self, number: int) -> int:
        return Status.TASK_ABORTED if self.journal.is_aborted(number) else Status.GOOD

    def do(self, what: tuple[str, int]) -> None:
        match what:
            case "submit", _:
                if len(self.commands) < 3:
                    self.submit()
            case "abort", which:
                self.abort(which)
            case "fetch", _:
                self.fetch()
            case "complete", which:
                self.complete(which)
            case "doorbell", _:
                self.channel.doorbell()
            case "settle", _:
                self.ring.settle()

    def finish(self) -> None:
        """What a new process has to do; all is well then."""
        asked = list(self.named)
        self.fetch()
        assert set(self.open) == self.kernel.open_ids
        for place in asked:
            if number := self.commands[place].id:
                assert self.journal.is_aborted(number)
        for command in self.commands:
            if command.id:
                entry = self.open[command.id]
                assert entry.cdb == WRITE_10
                assert b"".join(self.channel.memory[a : a + n] for a, n in entry.iovs) == command.data_out
        while self.open:
            self.complete(0)
        self.ring.settle()
        self.channel.doorbell()
        assert not self.kernel.broken
        assert all(command.status is not None for command in self.commands)
        assert not self.kernel.open_ids
        for number in range(1, 8):
            self.check_round()
            assert number

    def check_round(self) -> None:
        """It goes on as if nothing had been."""
        command = self.kernel.submit(WRITE_10, bytes(512))
        self.fetch()
        self.complete(0)
        self.channel.doorbell()
        assert command.status == Status.GOOD


@pytest.fixture(scope="module", autouse=True)
def few_slots() -> Iterator[None]:
    """So that making more of them happens, and is cheap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROWTH", 8)
        yield


WHAT = st.tuples(
    st.sampled_from(("submit", "fetch", "complete", "complete", "doorbell", "settle", "abort")), st.integers(0, 2)
)


@given(st.lists(WHAT, min_size=4, max_size=14), st.integers(0, 60))
@settings(max_examples=8, deadline=None)
def test_killed_at_any_step_every_command_is_answered_once(story: list[tuple[str, int]], again: int) -> None:
    """Three commands, fetched, completed and aborted in any order; killed at each line, and once more as it resumes."""
    story = [("submit", 0), ("submit", 0), *story]
    step = 0
    while True:
        step += 1
        world = World()
        try:
            with killed_at(step, STEPS):
                for what in story:
                    world.do(what)
        except Killed:
            pass
        else:
            world.end()
            break
        world.end()
        try:
            with killed_at(again or 1, STEPS):
                world.start()
        except Killed:
            world.end()
            world.start()
        world.finish()
        world.end()


@pytest.mark.parametrize("ring", [Ring, Core])
def test_what_was_held_is_known_after_it_was_stolen_from_the_ring(ring: type[Ring]) -> None:
    """Three are open, the last is completed first: the ring names it twice, and the journal the other two."""
    world = World()
    world.end()
    world.ring_class = ring
    world.start()
    for _ in range(3):
        world.submit()
    world.fetch()
    world.journal.failed(1, 5, 77.0)
    world.journal.failed(1, 6, 78.0)
    world.journal.compared(2)
    world.ring.complete(3, 0)
    world.end()
    world.start()
    first, second = world.journal.left
    assert (first.entry.id, first.attempts, first.error, first.failed_at, first.compared) == (1, 2, 6, 77.0, False)
    assert (second.entry.id, second.attempts, second.compared) == (2, 0, True)
    assert first.arrived <= second.arrived
    world.finish()
    world.end()


def test_more_commands_than_slots_make_room() -> None:
    world = World(ring=65536)
    for _ in range(30):
        world.submit()
    world.fetch()
    world.end()
    world.start()
    assert len(world.journal.left) == 30
    world.finish()
    world.end()


@pytest.mark.parametrize("ring", [Ring, Core])
def test_without_room_it_goes_on_and_is_not_believed(ring: type[Ring], monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(ring=65536)
    world.end()
    world.ring_class = ring
    world.start()

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "posix_fallocate", full)
        for _ in range(30):
            world.submit()
        world.fetch()
        while world.open:
            world.complete(0)
        world.channel.doorbell()
    assert all(command.status == Status.GOOD for command in world.commands)
    world.end()
    with pytest.raises(JournalError, match="no room"):
        world.start()


def spoil(journal: Journal, at: int, value: bytes) -> None:
    journal.memory[at : at + len(value)] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda journal: spoil(journal, 0, b"x"), "is none"),
        (lambda journal: spoil(journal, 8, b"\2"), "version 2"),
        (lambda journal: spoil(journal, 128, b"vm2"), "another device"),
        (lambda journal: journal.fetched(8), "not between"),
        (lambda journal: journal.completed(1), "names 2 commands, and the ring has 3"),
        (lambda journal: spoil(journal, 4096 + 2112 + 56, b"\xff\xff\xff"), "outside the mapping"),
        (lambda journal: spoil(journal, 4096 + 2112 + 20, b"\xff\xff"), "more pieces"),
    ],
)
def test_what_does_not_fit_is_not_believed(change: Callable[[Journal], None], message: str) -> None:
    world = World()
    for _ in range(3):
        world.submit()
    world.fetch()
    change(world.journal)
    world.end()
    with pytest.raises(JournalError, match=message):
        world.start()


def test_a_ring_that_was_reset_meanwhile_is_not_taken_for_the_old_one() -> None:
    world = World()
    for _ in range(3):
        world.submit()
    world.fetch()
    world.channel.memory[12:16] = bytes(4)
    world.end()
    with pytest.raises(JournalError, match="not between"):
        world.start()


# ---- the native ring, instruction by instruction


def story_of(world: World, order: list[int], begin: Callable[[], None]) -> None:
    begin()
    world.fetch()
    for number in order:
        world.ring.complete(number, 0)
    world.ring.settle()


def test_the_native_ring_is_killed_at_any_instruction() -> None:
    """A fetch of three commands and their completions in another order, 30 times killed somewhere in it."""
    chance = random.Random(7)
    length = 10**9
    for _ in range(31):
        world = World()
        world.end()
        world.ring_class = Core
        world.start()
        for _ in range(3):
            world.submit()
        order = chance.sample([1, 2, 3], 3)
        steps = stepped(partial(story_of, world, order), chance.randrange(length) if length < 10**9 else length)
        if length == 10**9:
            length = steps
        world.open.clear()
        world.end()
        world.start()
        world.finish()
        world.end()
