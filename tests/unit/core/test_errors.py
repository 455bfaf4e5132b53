"""What an errno means, and the sense that tells of it."""

from __future__ import annotations

import errno

import pytest

from tcmu_retry.core.errors import ErrorClass, ReportAs, classify, report
from tcmu_retry.scsi.request import Direction

READ, WRITE = Direction.READ, Direction.WRITE
CLASSES = {
    ErrorClass.TRANSPORT: "ENOLINK ETIMEDOUT ENOTCONN ECONNREFUSED ECONNRESET ECONNABORTED EHOSTDOWN EHOSTUNREACH"
    " ENETDOWN ENETRESET ENETUNREACH",
    ErrorClass.RESOURCE: "EAGAIN EBUSY EINTR ENOMEM",
    ErrorClass.GONE: "ENODEV ENXIO ESTALE EBADF",
    ErrorClass.MEDIUM: "ENODATA EILSEQ",
    ErrorClass.UNKNOWN: "EIO EPERM EFAULT ENOENT",
    ErrorClass.SPACE: "ENOSPC EDQUOT",
    ErrorClass.RESERVATION: "EBADE",
    ErrorClass.PERMANENT: "EREMOTEIO EINVAL EFBIG EOPNOTSUPP EROFS",
}
TABLE = [(name, group) for group, names in CLASSES.items() for name in names.split()]


@pytest.mark.parametrize(("name", "group"), TABLE)
def test_classes(name: str, group: ErrorClass) -> None:
    """The block layer's meanings, as the design lists them."""
    assert classify(getattr(errno, name)) is group


def test_every_class_has_an_errno() -> None:
    assert {group for _, group in TABLE} == set(ErrorClass)


def test_whatever_else_is_unknown() -> None:
    listed = {getattr(errno, name) for name, _ in TABLE}
    assert {classify(code) for code in errno.errorcode if code not in listed} == {ErrorClass.UNKNOWN}
    assert classify(4711) is ErrorClass.UNKNOWN


@pytest.mark.parametrize(
    ("name", "side", "sense"),
    [
        ("ENOLINK", READ, "02/04/03"),
        ("EIO", WRITE, "02/04/03"),
        ("ESTALE", READ, "02/04/03"),
        ("EAGAIN", WRITE, "02/04/03"),
        ("ENODATA", READ, "03/11/00"),
        ("EILSEQ", WRITE, "03/0C/00"),
        ("ENOSPC", WRITE, "07/27/07"),
        ("EDQUOT", WRITE, "07/27/07"),
        ("EREMOTEIO", READ, "04/44/00"),
        ("EINVAL", READ, "05/24/00"),
        ("EFBIG", WRITE, "05/24/00"),
        ("EOPNOTSUPP", WRITE, "05/20/00"),
        ("EROFS", WRITE, "07/27/00"),
    ],
)
def test_auto_picks_the_sense_by_class(name: str, side: Direction, sense: str) -> None:
    """A lost path, a file that is gone and what nobody knows make a multipath initiator fail over."""
    assert str(report(getattr(errno, name), side, ReportAs.AUTO)) == sense


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EINVAL, errno.ENODATA])
@pytest.mark.parametrize(
    ("report_as", "read", "write"),
    [
        (ReportAs.PATH, "02/04/03", "02/04/03"),
        (ReportAs.TARGET, "04/44/00", "04/44/00"),
        (ReportAs.MEDIUM, "03/11/00", "03/0C/00"),
        (ReportAs.NO_SPACE, "07/27/07", "07/27/07"),
        (ReportAs.GONE, "05/25/00", "05/25/00"),
    ],
)
def test_an_explicit_word_holds_for_every_errno(code: int, report_as: ReportAs, read: str, write: str) -> None:
    assert (str(report(code, READ, report_as)), str(report(code, WRITE, report_as))) == (read, write)


@pytest.mark.parametrize("side", list(Direction))
@pytest.mark.parametrize("report_as", list(ReportAs))
def test_never_what_means_later(side: Direction, report_as: ReportAs) -> None:
    """0B/xx and 02/08/00 make initiators repeat at once, a few times, and then give up."""
    for code in errno.errorcode:
        sense = report(code, side, report_as)
        assert sense.key != 0x0B
        assert str(sense) != "02/08/00"
