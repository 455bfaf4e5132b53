"""LOG SENSE: two pages, cut to the allocation length."""

import pytest

from tcmu_retry.scsi.sense import INVALID_FIELD_IN_CDB, Sense

CUMULATIVE = 0x40


def ask(page: int, subpage: int = 0, control: int = CUMULATIVE, pointer: int = 0, allocation: int = 512) -> dict:
    """Arguments of `Lun.good` and `Lun.refused`."""
    put = {2: control | page, 3: subpage, 5: pointer >> 8, 6: pointer & 0xFF, 7: allocation >> 8, 8: allocation & 0xFF}
    return {"command": "LOG SENSE", "put": put, "length": 512}


def test_supported_pages_and_subpages(lun) -> None:
    assert lun.good(**ask(0)) == bytes((0x00, 0, 0, 2, 0x00, 0x2F))
    assert lun.good(**ask(0, 0xFF)) == bytes((0x40, 0xFF, 0, 6, 0x00, 0, 0x00, 0xFF, 0x2F, 0))
    assert lun.good(**ask(0, allocation=3)) == bytes(3)


def test_informational_exceptions_tell_the_health_of_the_storage(lun) -> None:
    assert lun.good(**ask(0x2F)) == bytes((0x2F, 0, 0, 7, 0, 0, 0x03, 3, 0, 0, 0xFF))
    lun.disk.health = Sense(2, 0x04, 0x01)
    assert lun.good(**ask(0x2F))[8:10] == bytes((0x04, 0x01))


@pytest.mark.parametrize(
    ("question", "sense"),
    [
        (ask(0x0D), INVALID_FIELD_IN_CDB.at(2)),
        (ask(0x2F, 0x01), INVALID_FIELD_IN_CDB.at(3)),
        (ask(0, control=0), INVALID_FIELD_IN_CDB.at(2, 7)),
        (ask(0x2F, pointer=1), INVALID_FIELD_IN_CDB.at(5)),
    ],
)
def test_what_there_is_not_is_refused(lun, question: dict, sense: Sense) -> None:
    assert lun.refused(**question) == sense
