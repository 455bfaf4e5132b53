"""Data-In of both pumps: its length is said, and nothing of another command's goes out."""

from __future__ import annotations

import errno

import pytest

from tcmu_retry.pump.base import Arrived, Finished
from tcmu_retry.scsi.request import BUSY, Extent, Op, Reply, Request, Status
from tests.unit.pump.rig import ABORTED, BLOCK, INQUIRY, Rig, block, read, write


def secret(rig: Rig) -> None:
    """Leave something in the data blocks that the next command gets."""
    assert rig.answer(rig.kernel.submit(write(0, 2), block("s") * 2)) == Status.GOOD


def test_short_data_in_is_said_with_its_length(rig):
    secret(rig)
    command = rig.kernel.submit(INQUIRY, data_in=96)
    rig.pump.complete(rig.next(Arrived).command, Reply(Status.GOOD, data=b"i" * 36))
    assert rig.answer(command) == Status.GOOD
    assert (command.data, command.residual) == (b"i" * 36, 60)


def test_more_data_in_than_asked_for_is_cut(rig):
    command = rig.kernel.submit(INQUIRY, data_in=8)
    rig.pump.complete(rig.next(Arrived).command, Reply(Status.GOOD, data=b"i" * 36))
    assert rig.answer(command) == Status.GOOD
    assert (command.data, command.residual) == (b"i" * 8, 0)


def test_no_data_in_at_all_goes_out_as_zeros(rig):
    """READ_LEN cannot say 0, and what another command left must not go out."""
    secret(rig)
    command = rig.kernel.submit(INQUIRY, data_in=96)
    rig.pump.complete(rig.next(Arrived).command, Reply(Status.GOOD, data=b""))
    assert rig.answer(command) == Status.GOOD
    assert command.data == bytes(96)


@pytest.mark.parametrize("reply", [BUSY, ABORTED], ids=["busy", "aborted"])
@pytest.mark.parametrize("cdb", [INQUIRY, read(5)], ids=["inquiry", "read"])
def test_an_answer_that_is_not_good_carries_no_foreign_data(rig, reply, cdb):
    secret(rig)
    rig.close_gate()
    command = rig.kernel.submit(cdb, data_in=BLOCK)
    rig.pump.complete(rig.next(Arrived).command, reply)
    assert rig.answer(command) == reply.status
    assert command.data == bytes(BLOCK)


@pytest.mark.parametrize("error", [0, errno.EIO], ids=["good", "failed"])
@pytest.mark.parametrize("asked", [Request(Op.FLUSH), Request(Op.VERIFY, (Extent(0, BLOCK),))], ids=["flush", "verify"])
def test_a_command_without_data_fills_a_buffer_that_came_with_it_with_zeros(rig, asked, error):
    """Nothing keeps an initiator from asking for Data-In where its command has none."""
    secret(rig)
    rig.storage.errors |= {("flush", 0): error, ("read", 0): error}
    command = rig.kernel.submit(INQUIRY, data_in=BLOCK)
    arrived = rig.next(Arrived).command
    arrived.request = asked
    rig.pump.dispatch(arrived)
    assert rig.next(Finished).error == error
    if error:
        rig.pump.complete(arrived, BUSY)
    assert rig.answer(command) == (Status.BUSY if error else Status.GOOD)
    assert command.data == bytes(BLOCK)


def test_a_read_that_failed_half_way_gives_nothing_away(rig):
    secret(rig)
    rig.storage.errors["read", 5] = errno.EIO
    command = rig.kernel.submit(read(5), data_in=BLOCK)
    rig.pump.complete(rig.next(Finished).command, BUSY)
    assert rig.answer(command) == Status.BUSY
    assert command.data == bytes(BLOCK)


def test_a_read_of_less_than_the_buffer_is_short(rig):
    secret(rig)
    command = rig.kernel.submit(read(0), data_in=2 * BLOCK)
    arrived = rig.next(Arrived).command
    arrived.request = Request(Op.READ, (Extent(0, BLOCK),))
    rig.pump.dispatch(arrived)
    assert rig.next(Finished).error == 0
    assert (rig.answer(command), command.data, command.residual) == (Status.GOOD, block("s"), BLOCK)
