"""A LUN's ring from one daemon to the next: taken up where the journal proves what is open, answered BUSY where not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.backends.shelf import Shelf, ShelfError
from tcmu_retry.daemon.storage import REPLAY_BYTES
from tcmu_retry.daemon.wishes import Wishes
from tcmu_retry.tcmu import configfs
from tcmu_retry.tcmu.journal import Journal, JournalError
from tcmu_retry.tcmu.own import DIRECTORY, drop_own, open_own, read_own, write_own
from tcmu_retry.tcmu.ring import extent
from tcmu_retry.tcmu.uio import SYS, UioChannel, UioDevice

log = logging.getLogger(__name__)

SHELF = REPLAY_BYTES + (32 << 20)  # for what is being written when it is found full
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_channel(uio: UioDevice, fresh: bool, unproven: Callable[[int, str], None]) -> UioChannel:
    """Blocking. Raises OSError: EBUSY while another process, or its I/O, has the device.

    fresh: the LUN was just made. unproven: told that the ring was reset and the LUN is blocked, how many commands of a
    former daemon were answered BUSY by that, and why.
    """
    channel = UioChannel(uio)
    try:
        channel.journal = _take_up(uio, channel, fresh, unproven)
    except BaseException:
        channel.close()
        raise
    return channel


def open_log(uio: UioDevice, fresh: bool) -> ReplayLog:
    """A write-back LUN's replay log, with what a former daemon left in it. Blocking."""
    identity, name = _identity(uio), f"{uio.uio}.replay"
    shelf = None
    try:
        if not fresh:
            shelf = Shelf(open_own(name), identity, SHELF)
            left = shelf.resume()
            if left:
                log.info("LUN %s: %d changes that a former daemon had not flushed are made again", uio.name, len(left))
            return ReplayLog(REPLAY_BYTES, shelf, left)
    except (ShelfError, OSError) as error:
        log.error("LUN %s: what was written and not flushed may be lost: %s; its next flush fails", uio.name, error)
    try:
        drop_own(name)  # and not begun anew: a process that has it would die of it
        shelf = Shelf(open_own(name), identity, SHELF)
        shelf.begin(lost=not fresh)
    except OSError as error:
        shelf = None
        log.warning("LUN %s: no room for its log of unflushed writes: %s; it dies with the daemon", uio.name, error)
    return ReplayLog(REPLAY_BYTES, shelf, lost=not fresh)


def open_wishes(uio: UioDevice, fresh: bool) -> Wishes:
    """What people asked of a LUN, of a former daemon. Blocking."""
    name = f"{uio.uio}.wishes"
    wishes = Wishes(partial(write_own, name), _identity(uio))
    try:
        if fresh:
            drop_own(name)
        else:
            wishes.load(read_own(name))
    except OSError as error:
        log.warning("LUN %s: what people asked of it cannot be had: %s", uio.name, error)
    return wishes


def forget(uio: UioDevice, gone: bool = False) -> None:
    """Blocking. The ring is gone, or was reset by others: what was noted of it holds no more.

    gone: the LUN is, and with it what it had not flushed.
    """
    with contextlib.suppress(OSError):
        drop_own(uio.uio)
        if gone:
            drop_own(f"{uio.uio}.replay")
            drop_own(f"{uio.uio}.wishes")


def _take_up(uio: UioDevice, channel: UioChannel, fresh: bool, unproven: Callable[[int, str], None]) -> Journal | None:
    journal = None
    problem = "it left no journal"
    try:
        journal = Journal(open_own(uio.uio), f"{_identity(uio)}\n{len(channel.memory)}")
    except OSError as error:
        problem = f"the journal in {DIRECTORY} cannot be had: {error.strerror}"
        log.warning("LUN %s: %s; what is in flight when the daemon ends is answered BUSY then", uio.name, problem)
    if not fresh:
        try:
            if journal is not None:
                journal.resume(channel.memory)
                return journal
        except JournalError as error:
            problem = f"the journal it left proves nothing: {error}"
        _, waiting = extent(channel.memory)
        try:
            with contextlib.suppress(OSError):  # EINVAL while it is being enabled
                configfs.block(uio, True)
            configfs.reset_ring(uio)
        except OSError:
            if journal is not None:
                journal.close()
            raise
        unproven(waiting, problem)
    if journal is not None:
        tail, _ = extent(channel.memory)
        try:
            journal.begin(tail)
        except OSError as error:
            journal.close()
            log.warning("LUN %s: there is no room for its journal: %s", uio.name, error.strerror)
            return None
    return journal


def _identity(uio: UioDevice) -> str:
    """The number of its directory in sysfs is not used twice between two boots, its name and the uio's are."""
    number = (SYS / uio.uio).stat().st_ino
    label = f"{uio.hba}/{uio.name}/{uio.subtype}/{uio.config}"
    return "\n".join((BOOT_ID.read_text().strip(), uio.uio, label, str(number)))
