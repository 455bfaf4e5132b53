"""Sense data is what initiators parse: both formats, byte for byte, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_retry.scsi.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    MISCOMPARE,
    CheckCondition,
    FieldPointer,
    Sense,
    parse,
)

FIXED = [
    (Sense(6, 0x2A, 0x09), "70 00 06 00000000 0a 00000000 2a 09 00 000000"),
    (Sense(0xE, 0x1D, 0, information=27), "f0 00 0e 0000001b 0a 00000000 1d 00 00 000000"),
    (Sense(3, 0x11, 0, information=1 << 32), "70 00 03 00000000 0a 00000000 11 00 00 000000"),
    (INVALID_FIELD_IN_CDB.at(1, 7), "70 00 05 00000000 0a 00000000 24 00 00 cf0001"),
    (INVALID_FIELD_IN_PARAMETER_LIST.at(300, in_cdb=False), "70 00 05 00000000 0a 00000000 26 00 00 80012c"),
]
DESCRIPTORS = [
    (Sense(6, 0x2A, 0x09), "72 06 2a 09 000000 00"),
    (Sense(0xE, 0x1D, 0, information=27), "72 0e 1d 00 000000 0c 00 0a 80 00 000000000000001b"),
    (INVALID_FIELD_IN_CDB.at(1, 7), "72 05 24 00 000000 08 02 06 0000 cf0001 00"),
]


@pytest.mark.parametrize(("sense", "data"), FIXED)
def test_fixed_format(sense: Sense, data: str) -> None:
    """An information of more than 32 bits has no place in the fixed format: VALID stays 0."""
    assert sense.fixed() == bytes.fromhex(data)


@pytest.mark.parametrize(("sense", "data"), DESCRIPTORS)
def test_descriptor_format(sense: Sense, data: str) -> None:
    assert sense.descriptors() == bytes.fromhex(data)


pointers = st.builds(FieldPointer, st.integers(0, 0xFFFF), st.one_of(st.none(), st.integers(0, 7)), st.booleans())
senses = st.builds(
    Sense,
    st.integers(0, 15),
    st.integers(0, 255),
    st.integers(0, 255),
    st.one_of(st.none(), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.none(), pointers),
)


@given(senses)
def test_parse_reads_what_was_written(sense: Sense) -> None:
    assert parse(sense.fixed()) == sense
    assert parse(sense.descriptors()) == sense
    assert parse(sense.fixed().ljust(96, b"\0")) == sense
    assert parse(sense.descriptors().ljust(96, b"\0")) == sense


@given(st.binary(max_size=64))
def test_parse_takes_any_bytes(data: bytes) -> None:
    assert parse(data) is None or isinstance(parse(data), Sense)


@pytest.mark.parametrize("data", ["", "00", "71" + "00" * 17, "73" + "00" * 7, "70" + "00" * 12, "72" + "00" * 6])
def test_parse_refuses_what_is_no_current_sense(data: str) -> None:
    """Empty, deferred, and cut short."""
    assert parse(bytes.fromhex(data)) is None


def test_parse_skips_descriptors_it_does_not_know() -> None:
    data = bytes.fromhex("72 03 11 00 000000 12 0302 0000 03 0a 00 00 0000000000000000".replace(" ", ""))
    assert parse(data) == Sense(3, 0x11, 0)
    data = bytes.fromhex("7203110000000014 0302 0001 0200 000a8000 0000000000000007".replace(" ", ""))
    assert parse(data) == Sense(3, 0x11, 0, information=7)


def test_sense_names_itself_as_people_write_it() -> None:
    assert str(MISCOMPARE) == "0E/1D/00"
    assert str(CheckCondition(MISCOMPARE)) == "0E/1D/00"
