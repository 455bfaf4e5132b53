"""A main loop for drawn tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tcmu_retry.pump.base import Arrived, Broken, Command, Finished, TaskManagement
from tcmu_retry.scsi.request import BUSY, Extent, Op, Reply, Request, Status
from tcmu_retry.tcmu.simulated import SimulatedCommand
from tests.unit.pump.rig import ABORTED, BLOCK, INQUIRY, SYNC, Rig, compare_and_write, patiently, read, write


class Loop:
    """The least that a main loop must do: ask for everything that is left to it, by a drawn list of choices."""

    def __init__(self, rig: Rig, choices: Sequence[int]) -> None:
        self._rig = rig
        self._choices = choices
        self._made = 0

    def choice(self, of: int) -> int:
        self._made += 1
        return self._choices[self._made % len(self._choices)] % of if self._choices else 0

    def play(
        self, steps: Iterable[tuple[str, int]], late: bool, disturbances: Mapping[str, Callable[[int], object]]
    ) -> list[SimulatedCommand]:
        """All commands of these steps. late: the pump starts after them. disturbances: by step, given its number."""
        sent: list[SimulatedCommand] = []
        if not late:
            self._rig.start()
        for what, number in steps:
            match what:
                case _ if what in disturbances:
                    disturbances[what](number)
                case "abort":
                    self._rig.kernel.abort(sent[-number - 1 :: 2])
                case "turn":
                    self.turn()
                case "close":
                    self._rig.pump.gate(False)
                case _:
                    sent.append(submit(self._rig, what, number))
        if late:
            self._rig.start()
        return sent

    def turn(self) -> None:
        for event in self._rig.pump.events():
            match event:
                case Arrived(command):
                    self._arrived(command)
                case Finished(command, error) if error and not command.answered:
                    if self.choice(3):
                        self._rig.pump.dispatch(command)
                    else:
                        self._answer(command, BUSY)
                case TaskManagement(_, commands):
                    for command in commands:
                        if not command.answered:
                            self._answer(command, ABORTED)
                case Broken(message):
                    raise AssertionError(message)
            if self.choice(2):
                self._rig.pump.gate(True)

    def until_answered(self, sent: Sequence[SimulatedCommand], each_turn: Callable[[], None] = lambda: None) -> None:
        """Turn until all are answered and the kernel keeps no buffer."""

        def all_answered() -> bool:
            self.turn()
            each_turn()
            return all(command.status is not None for command in sent) and not self._rig.kernel.kept_ids

        patiently(all_answered)

    def _arrived(self, command: Command) -> None:
        lba = int.from_bytes(command.cdb[2:6], "big")
        match command.cdb[0]:
            case 0x28:
                command.request = Request(Op.READ, (Extent(lba * BLOCK, BLOCK),))
            case 0x2A:
                command.request = Request(Op.WRITE, (Extent(lba * BLOCK, BLOCK),))
            case 0x35:
                command.request = Request(Op.FLUSH)
            case 0x89:
                command.request = Request(Op.COMPARE_AND_WRITE, (Extent(command.cdb[9] * BLOCK, BLOCK),))
        if command.request and self.choice(5):
            self._rig.pump.dispatch(command)
        else:
            self._answer(command, Reply(Status.GOOD, data=b"x") if command.request is None else BUSY)

    def _answer(self, command: Command, reply: Reply) -> None:
        command.answered = True
        self._rig.pump.complete(command, reply)


def check(rig: Rig, sent: Sequence[SimulatedCommand]) -> None:
    """That the ring is in order and all that `submit` made was answered in one of the ways there are."""
    assert not rig.kernel.broken
    assert not rig.kernel.open_ids
    for command in sent:
        assert command.status in (Status.GOOD, Status.BUSY, Status.TASK_ABORTED, Status.CHECK_CONDITION)
        if command.cdb[0] == 0x28 and command.status == Status.GOOD:
            # Its own block, as it was or as it was written, and no other command's data.
            assert command.data in (bytes(BLOCK), bytes((command.cdb[5] + 1,)) * BLOCK)


def submit(rig: Rig, what: str, number: int) -> SimulatedCommand:
    """A command by its word; `number`: its block, and what it writes."""
    match what:
        case "write":
            return rig.kernel.submit(write(number), bytes((number + 1,)) * BLOCK)
        case "read":
            return rig.kernel.submit(read(number), data_in=BLOCK)
        case "sync":
            return rig.kernel.submit(SYNC)
        case "compare":
            return rig.kernel.submit(compare_and_write(number), bytes(BLOCK) + bytes((number + 1,)) * BLOCK)
        case _:
            return rig.kernel.submit(INQUIRY, data_in=96)
