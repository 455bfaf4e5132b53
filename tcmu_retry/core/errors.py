"""What an errno means for a retry: its class, with the block layer's meanings, and the sense that reports it."""

from __future__ import annotations

import enum
import errno

from tcmu_retry.scsi.request import Direction
from tcmu_retry.scsi.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_OPCODE,
    LUN_NOT_ACCESSIBLE,
    LUN_NOT_SUPPORTED,
    SPACE_ALLOCATION_FAILED,
    TARGET_FAILURE,
    UNRECOVERED_READ_ERROR,
    WRITE_ERROR,
    WRITE_PROTECTED,
    Sense,
)


class ErrorClass(enum.Enum):
    """Groups of errors that policy treats alike."""

    TRANSPORT = "transport"  # the way to the storage is broken
    RESOURCE = "resource"  # momentary; never takes the LUN down
    GONE = "gone"  # the open file is of no use any more; reopen first
    MEDIUM = "medium"  # this LBA only
    UNKNOWN = "unknown"
    SPACE = "space"
    RESERVATION = "reservation"
    PERMANENT = "permanent"  # will fail the same way every time


class ReportAs(enum.Enum):
    """What the initiator is told when an error is reported."""

    AUTO = "auto"
    PATH = "path"
    TARGET = "target"
    MEDIUM = "medium"
    NO_SPACE = "no-space"
    GONE = "gone"


_CLASS = {
    getattr(errno, name): group
    for group, names in {
        ErrorClass.TRANSPORT: "ENOLINK ETIMEDOUT ENOTCONN ECONNREFUSED ECONNRESET ECONNABORTED EHOSTDOWN EHOSTUNREACH"
        " ENETDOWN ENETRESET ENETUNREACH",
        ErrorClass.RESOURCE: "EAGAIN EBUSY EINTR ENOMEM",
        ErrorClass.GONE: "ENODEV ENXIO ESTALE EBADF",
        ErrorClass.MEDIUM: "ENODATA EILSEQ",
        ErrorClass.SPACE: "ENOSPC EDQUOT",
        ErrorClass.RESERVATION: "EBADE",
        ErrorClass.PERMANENT: "EREMOTEIO EINVAL EFBIG EOPNOTSUPP EROFS",
    }.items()
    for name in names.split()
}

_PERMANENT = {
    errno.EREMOTEIO: TARGET_FAILURE,
    errno.EINVAL: INVALID_FIELD_IN_CDB,
    errno.EFBIG: INVALID_FIELD_IN_CDB,
    errno.EOPNOTSUPP: INVALID_OPCODE,
    errno.EROFS: WRITE_PROTECTED,
}

_AUTO = {ErrorClass.MEDIUM: ReportAs.MEDIUM, ErrorClass.SPACE: ReportAs.NO_SPACE}


def classify(code: int) -> ErrorClass:
    """The class of an errno; EIO and whatever is not listed is unknown."""
    return _CLASS.get(code, ErrorClass.UNKNOWN)


def report(code: int, direction: Direction, report_as: ReportAs) -> Sense:
    """The sense that tells an initiator of this errno. `path` makes a multipath initiator fail over."""
    group = classify(code)
    if report_as is ReportAs.AUTO:
        if code in _PERMANENT:
            return _PERMANENT[code]
        report_as = _AUTO.get(group, ReportAs.PATH)
    match report_as:
        case ReportAs.MEDIUM:
            return UNRECOVERED_READ_ERROR if direction is Direction.READ else WRITE_ERROR
        case ReportAs.NO_SPACE:
            return SPACE_ALLOCATION_FAILED
        case ReportAs.TARGET:
            return TARGET_FAILURE
        case ReportAs.GONE:
            return LUN_NOT_SUPPORTED
    return LUN_NOT_ACCESSIBLE
