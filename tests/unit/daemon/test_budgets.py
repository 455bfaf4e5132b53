"""A full window of commands, all held: room for all of them, and task management still comes through."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tcmu_retry.core.chain import ABORTED, REASONS, SENT
from tcmu_retry.core.policy import Budgets
from tcmu_retry.daemon import export
from tcmu_retry.scsi.cdb import MAXIMUM_TRANSFER
from tcmu_retry.tcmu.configfs import ATTRIBUTES
from tcmu_retry.tcmu.simulated import LUN_RESET, SimulatedKernel
from tests.unit.daemon.rig import served, until

LIO_WINDOW = 64  # default_cmdsn_depth where nobody sets it
RING = 8 << 20  # less the mailbox
DATA_AREA = 1024 << 20  # max_data_area_mb where nobody sets it


@pytest.mark.parametrize("window", [LIO_WINDOW, int(export.WINDOW["default_cmdsn_depth"])])
def test_a_full_window_is_held_and_reset_and_held_again(window: int) -> None:
    """All are held, none is shed    LUN RESET: all are answered    as many again: held    back: all GOOD."""

    async def story() -> None:
        async with served(kernel=SimulatedKernel(ring=RING)) as rig:
            rig.storage.fail(errno.EIO)
            first = [rig.write(lba % 128, b"first") for lba in range(window)]
            await rig.held(window)
            rig.kernel.abort(first, LUN_RESET)
            assert {await rig.answer(command) for command in first} == {"TASK ABORTED"}
            second = [rig.write(lba % 128, b"second") for lba in range(window)]
            await rig.held(window)
            assert not [notice for notice in rig.notices if notice.code == "TR-009"]
            rig.storage.errors.clear()
            rig.device.kick()
            assert {await rig.answer(command) for command in second} == {"GOOD"}
            assert rig.storage.at((window - 1) % 128).startswith(b"second")

    asyncio.run(story())


def test_with_the_data_area_full_the_rest_waits_in_the_kernel_and_tmrs_come_through() -> None:
    """Room for 8 of 12 writes    8 held, 4 wait in the kernel    all are aborted    the next ones find room."""

    async def story() -> None:
        async with served(kernel=SimulatedKernel(data=8 * 4096, block=4096)) as rig:
            rig.storage.fail(errno.EIO)
            commands = [rig.write(lba, b"first") for lba in range(12)]
            await rig.held(8)
            assert rig.kernel.waiting == 4
            rig.kernel.abort(commands)
            assert {await rig.answer(command) for command in commands} == {"TASK ABORTED"}
            await until(lambda: not rig.kernel.open_ids, "room")
            rig.storage.errors.clear()
            rig.device.kick()
            assert await rig.answer(rig.write(0, b"second")) == "GOOD"
            assert rig.storage.at(0, 12).rstrip(b"\0").startswith(b"second")
            assert not any(rig.storage.at(1, 11))

    asyncio.run(story())


def test_the_numbers_fit() -> None:
    """The documented budget: a whole window of the longest commands fits into data area and budgets.

    And the aborts of two outages, each as long as Linux bears, leave room in it for all that open-iscsi sends.
    """
    window = int(export.WINDOW["default_cmdsn_depth"])
    assert window * MAXIMUM_TRANSFER <= DATA_AREA
    assert Budgets().held >= SENT * 32, "32 sessions of open-iscsi to one LUN"
    assert window * 8 <= Budgets().held, "or 8 of anybody"
    assert window >= 2 * ABORTED + SENT


def test_every_attribute_that_export_sets_has_its_reason() -> None:
    for name in (*ATTRIBUTES, *export.WINDOW, *export.OPEN_TO_ALL, "authentication", "hw_max_sectors"):
        assert name in REASONS
