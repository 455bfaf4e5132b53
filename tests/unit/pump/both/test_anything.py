"""Any mix of commands, failures, task management and words on the gate: both pumps answer each once."""

from __future__ import annotations

import contextlib
import errno

from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.scsi.request import Direction
from tests.unit.pump.loop import Loop, check
from tests.unit.pump.rig import Rig

COMMANDS = ["write", "write", "read", "read", "sync", "compare", "inquiry"]
DISTURBANCES = ["abort", "hold", "release", "fail", "heal", "turn", "turn", "close", "settle"]
STEPS = st.lists(st.tuples(st.sampled_from([*COMMANDS, *DISTURBANCES]), st.integers(0, 7)), max_size=60)


@settings(deadline=None, max_examples=300)
@given(steps=STEPS, choices=st.lists(st.integers(0, 29), max_size=20), workers=st.integers(1, 3), late=st.booleans())
def test_any_mix_is_answered_once_each(steps, choices, workers, late):
    """An answer too many would break the simulated ring, one too few would leave a command without a status."""
    rig = Rig(workers=workers)
    loop = Loop(rig, choices)

    def fail(number):
        rig.storage.errors["read" if number % 2 else "write", number] = errno.EIO

    def settle(_):
        if not late:
            rig.pump.probe(Direction.READ)
            rig.told()

    disturbances = {
        "hold": lambda number: rig.storage.hold(("write", number)),
        "release": lambda _: rig.storage.release(),
        "fail": fail,
        "heal": lambda _: rig.storage.errors.clear(),
        "settle": settle,
    }
    sent = loop.play(steps, late, disturbances)
    rig.storage.errors.clear()
    rig.storage.release()
    with contextlib.ExitStack() as stack:
        stack.callback(rig.pump.stop)
        loop.until_answered(sent, rig.storage.release)
    check(rig, sent)
