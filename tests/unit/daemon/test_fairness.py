"""One LUN's events do not have the main loop for themselves."""

from __future__ import annotations

import asyncio
import time

import pytest

from tcmu_retry.daemon import commands
from tests.unit.daemon.rig import served, until

INQUIRY = bytes((0x12, 0, 0, 0, 96, 0))


@pytest.mark.parametrize("pump", ["reference", "native"])
def test_others_have_their_turn_between_the_events_of_a_lun(pump: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """320 commands for the main loop are there at once: whoever else waits, D-Bus for example, waits for 64 at most."""
    monkeypatch.setenv("TCMU_RETRY_PUMP", pump)
    count = 5 * commands.TURN

    async def story() -> None:
        async with served() as rig:
            await rig.answer(rig.read(0))
            turns, seen = 0, []
            handle = rig.device._disk.handle

            def noted(*arguments):  # type: ignore[no-untyped-def]
                seen.append(turns)
                return handle(*arguments)

            monkeypatch.setattr(rig.device._disk, "handle", noted)
            sent = [rig.kernel.submit(INQUIRY, data_in=96) for _ in range(count)]
            pump = rig.device._pump
            patience = time.monotonic() + 10
            while len(pump._outbox) < count:  # type: ignore[attr-defined]  # without a turn of the loop
                assert time.monotonic() < patience, "the pump does not hand them over"

            async def others() -> None:
                nonlocal turns
                while len(seen) < count:
                    turns += 1
                    await asyncio.sleep(0)

            await others()
            assert max(seen.count(turn) for turn in set(seen)) <= commands.TURN
            assert {await rig.answer(command) for command in sent} == {"GOOD"}
            await until(lambda: rig.device.status().in_flight == 0, "nothing out")

    asyncio.run(asyncio.wait_for(story(), 20))
