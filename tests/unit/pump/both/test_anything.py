"""Any mix of commands, failures, task management and words on the gate: both pumps answer each once."""

from __future__ import annotations

import contextlib
import errno

from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.scsi.request import Direction, Status
from tcmu_retry.tcmu.simulated import SimulatedCommand
from tests.unit.pump.loop import Loop, submit
from tests.unit.pump.rig import BLOCK, Rig, patiently

COMMANDS = ["write", "write", "read", "read", "sync", "compare", "inquiry"]
DISTURBANCES = ["abort", "hold", "release", "fail", "heal", "turn", "turn", "close", "settle"]
STEPS = st.lists(st.tuples(st.sampled_from([*COMMANDS, *DISTURBANCES]), st.integers(0, 7)), max_size=60)


@settings(deadline=None, max_examples=300)
@given(steps=STEPS, choices=st.lists(st.integers(0, 29), max_size=20), workers=st.integers(1, 3), late=st.booleans())
def test_any_mix_is_answered_once_each(steps, choices, workers, late):
    """An answer too many would break the simulated ring, one too few would leave a command without a status."""
    rig = Rig(workers=workers)
    loop = Loop(rig, choices)
    sent: list[SimulatedCommand] = []
    if not late:
        rig.start()
    for what, number in steps:
        match what:
            case "abort":
                rig.kernel.abort(sent[-number - 1 :: 2])
            case "hold":
                rig.storage.hold(("write", number))
            case "release":
                rig.storage.release()
            case "fail":
                rig.storage.errors["read" if number % 2 else "write", number] = errno.EIO
            case "heal":
                rig.storage.errors.clear()
            case "turn":
                loop.turn()
            case "close":
                rig.pump.gate(False)
            case "settle" if not late:
                rig.pump.probe(Direction.READ)
                rig.told()
            case _ if what in COMMANDS:
                sent.append(submit(rig, what, number))
    if late:
        rig.start()
    rig.storage.errors.clear()
    rig.storage.release()

    def all_answered() -> bool:
        loop.turn()
        rig.storage.release()
        return all(command.status is not None for command in sent) and not rig.kernel.kept_ids

    with contextlib.ExitStack() as stack:
        stack.callback(rig.pump.stop)
        patiently(all_answered)
    assert not rig.kernel.broken
    assert not rig.kernel.open_ids
    for command in sent:
        assert command.status in (Status.GOOD, Status.BUSY, Status.TASK_ABORTED, Status.CHECK_CONDITION)
        if command.cdb[0] == 0x28 and command.status == Status.GOOD:
            # Its own block, as it was or as it was written, and no other command's data.
            assert command.data in (bytes(BLOCK), bytes((command.cdb[5] + 1,)) * BLOCK)
