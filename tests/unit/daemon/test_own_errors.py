"""What fails beside the storage, in the kernel's tree or in our own code, costs one answer or one try, never the LUN."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.unit.daemon.rig import Memory, served, until

INQUIRY = bytes((0x12, 0, 0, 0, 96, 0))


def test_inquiry_is_answered_though_the_serial_number_cannot_be_read() -> None:
    """It is read from LIO's tree each time, for rtslib sets it late. What was read last is good enough."""

    async def story() -> None:
        async with served() as rig:

            def wwn() -> str:
                raise OSError(errno.ENOMEM, "no memory")

            rig.wwn = wwn
            assert await rig.answer(rig.kernel.submit(INQUIRY, data_in=96)) == "GOOD"

    asyncio.run(story())


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), ValueError("ours")])
def test_a_reopen_that_fails_in_our_own_code_is_tried_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """The device goes; opening it raises what nobody expects; the next try finds it. Without that try: down for ever"""

    async def story() -> None:
        async with served() as rig:
            tries = 0

            def open_storage() -> Memory:
                nonlocal tries
                tries += 1
                if tries == 1:
                    raise error
                return rig.storage

            rig.open_storage = open_storage
            rig.storage.fail(errno.ENODEV)
            reading = rig.read(4)
            await rig.held(1)
            rig.storage.errors.clear()
            rig.device.kick()
            await until(lambda: tries == 1, "the first try")
            await until(lambda: rig.device.status().backend_error != "", "its end")
            rig.device.kick()
            assert await rig.answer(reading) == "GOOD"
            assert rig.device.status().backend_error == ""

    asyncio.run(story())
    assert str(error) in caplog.text
