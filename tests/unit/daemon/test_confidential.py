"""Two LUNs of one daemon: nobody is ever handed a byte of the other's."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel
from tests.unit.daemon.rig import BLOCK, BLOCKS, Rig

ROUNDS = 60
AT_ONCE = 8


@pytest.mark.parametrize("pump", ["reference", "native"])
@pytest.mark.parametrize("cache", ["writethrough", "writeback"])
def test_no_byte_of_one_lun_reaches_another(pump: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes of both at once, failing, ignored, aborted and well by turns, over few buffers that are reused.

    Each medium has its own letter only; what a read gets is that letter, or the zeros of `ignore`.
    """
    monkeypatch.setenv("TCMU_RETRY_PUMP", pump)
    chance = random.Random(7)

    def ask(rig: Rig, letter: bytes) -> SimulatedCommand:
        lba, count = chance.randrange(BLOCKS - 4), chance.randrange(1, 5)
        return rig.write(lba, letter * BLOCK * count) if chance.random() < 0.5 else rig.read(lba, count)

    async def story() -> None:
        policy = {"retry": "false", "fallback": "ignore", "allow_data_loss": "true"}
        luns = {letter: Rig(cache, policy, SimulatedKernel(data=12 * 4096)) for letter in (b"A", b"B")}
        for letter, rig in luns.items():
            rig.storage.medium[:] = letter * len(rig.storage.medium)
            await rig.device.attach(rig.kernel, fresh=True)
        handed = 0
        for _ in range(ROUNDS):
            sent = [(letter, ask(rig, letter)) for _ in range(AT_ONCE) for letter, rig in luns.items()]
            for rig in luns.values():
                if chance.random() < 0.3:
                    rig.storage.fail(errno.EIO)
                else:
                    rig.storage.errors.clear()
            for letter, command in sent:
                if chance.random() < 0.1:
                    luns[letter].kernel.abort([command])
            for letter, command in sent:
                answer = await luns[letter].answer(command)
                assert answer in ("GOOD", "TASK ABORTED"), answer
                if answer == "GOOD" and command.data_in:
                    assert set(command.data) <= {letter[0], 0}
                    handed += len(command.data)
        assert handed > 100 * BLOCK
        for letter, rig in luns.items():
            rig.storage.errors.clear()
            await rig.device.withdraw()
            await rig.device.detach()
            assert set(rig.storage.medium) <= {letter[0], 0}

    asyncio.run(story())
