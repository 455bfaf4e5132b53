"""When the daemon stays away: what waits for it in the kernel is answered BUSY, and so is what comes.

Commands in the ring of a LUN that nobody serves hold their connections, and these hold every login to the portal. BUSY
lets initiators try again for as long as they tolerate it; the next daemon takes `block_dev` back as it adopts the LUN.
"""

from __future__ import annotations

import errno
import logging

from tcmu_retry.daemon import rival, takeover
from tcmu_retry.daemon.export import SUBTYPE
from tcmu_retry.tcmu import configfs
from tcmu_retry.tcmu.uio import UioChannel, scan

log = logging.getLogger(__name__)


def end_waits() -> bool:
    """Whoever waits for an announcement's answer gets an error, unless another handler may answer. Blocking.

    The kernel announces nothing twice: who waits for a daemon that died would wait for ever. False if it could not be.
    """
    if rival.find():
        return True
    try:
        configfs.reset_netlink()
    except OSError as error:
        log.error("waiting announcements cannot be ended: %s", error)
        return False
    return True


def unfreeze() -> int:
    """Every LUN that nobody serves; whoever waits for an announcement's answer gets an error. Exit status."""
    failed = 0 if end_waits() else 1
    for device in scan(SUBTYPE):
        try:
            # The kernel lets one process open it: while we have it no daemon takes it, and one that has it is not hurt.
            channel = UioChannel(device)
        except OSError as error:
            if error.errno != errno.EBUSY:
                log.error("LUN %s cannot be unfrozen: %s", device.name, error)
                failed = 1
            continue
        try:
            configfs.block(device, True)
            configfs.reset_ring(device)
            takeover.forget(device)
            log.warning("LUN %s: no daemon serves it; its commands are answered BUSY until one does", device.name)
        except OSError as error:
            log.error("LUN %s cannot be unfrozen: %s", device.name, error)
            failed = 1
        finally:
            channel.close()
    return failed
