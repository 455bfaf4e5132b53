"""What a caller is told when something cannot be done: an error's name and one sentence, never a traceback."""

from __future__ import annotations

import errno
import logging

from tcmu_retry.daemon.api import ApiError
from tcmu_retry.dbus.names import DBUS_ERROR, ERROR

log = logging.getLogger(__name__)

SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)


class CallError(Exception):
    """A call that the D-Bus specification has an error name for, such as UnknownMethod."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def explain(error: Exception, call: str) -> tuple[str, str]:
    """Error name and sentence; what nobody foresaw goes to the log with its traceback."""
    match error:
        case ApiError():
            return f"{ERROR}.{error.kind}", str(error)
        case CallError():
            return f"{DBUS_ERROR}.{error.kind}", str(error)
        case OSError() if error.errno in SHORT:
            log.error("%s failed: %s", call, error)
            return (
                f"{ERROR}.Failed",
                f"{call} cannot be carried out now, the host is short of something: {error.strerror}",
            )
    log.error("%s failed", call, exc_info=error)
    return (
        f"{ERROR}.Failed",
        f"{call} met an error that tcmu-retryd did not expect ({type(error).__name__}); its log has the details",
    )
