"""Which pump a LUN gets: the native one, or the reference pump where that cannot run."""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable

from tcmu_retry.backends.base import Backend
from tcmu_retry.pump.base import Pump
from tcmu_retry.pump.reference import ReferencePump
from tcmu_retry.scsi.request import Reply
from tcmu_retry.scsi.sense import Sense
from tcmu_retry.tcmu.base import Channel

# With the daemon, not with its first LUN: by then a package may have brought another version.
try:
    from tcmu_retry.pump.native.pump import NativePump
except ImportError as error:
    NOT_BUILT = f"it is not built ({error})"
else:
    NOT_BUILT = ""

log = logging.getLogger(__name__)

VARIABLE = "TCMU_RETRY_PUMP"


def make_pump(
    name: str, channel: Channel, backend: Backend, block_size: int, sense_reply: Callable[[Sense], Reply]
) -> Pump:
    """VARIABLE forces `native` or `reference`. Raises RingError; OSError for what was forced in vain."""
    forced = os.environ.get(VARIABLE, "")
    if forced not in ("", "native", "reference"):
        raise OSError(errno.EINVAL, f"{VARIABLE}={forced} names no pump; set it to native or reference, or not at all")
    if forced != "reference":
        reason = NOT_BUILT
        if not reason:
            try:
                return NativePump(name, channel, backend, block_size, sense_reply)
            except OSError as error:
                reason = f"io_uring cannot be had ({error.strerror})"
        if forced:
            raise OSError(errno.ENOSYS, f"{VARIABLE}=native, but the native pump cannot run: {reason}")
        _say(reason)
    return ReferencePump(name, channel, backend, block_size, sense_reply)


@functools.cache
def _say(reason: str) -> None:
    """Once for each reason, not for each LUN."""
    log.warning("the native pump cannot run: %s; the slower one in Python takes its place", reason)
