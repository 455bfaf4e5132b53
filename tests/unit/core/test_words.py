"""Words that people write: what is understood, what is refused with one sentence, and what is written back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_retry.core.words import (
    LONGEST,
    format_duration,
    format_size,
    meant,
    nearest,
    parse_bool,
    parse_duration,
    parse_number,
    parse_size,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("2m", 120),
        ("2min", 120),
        ("1h", 3600),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("0", 0),
        ("15000", 15),
        (15000, 15),
        (250.0, 0.25),
        (0, 0),
        (" 5 s ", 5),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    """With a unit, or in milliseconds as QEMU writes them."""
    assert parse_duration(value, "retry_timeout") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", "s", "-1s", -1, "1d", "5 parsecs", "1s2", "1,5s", "5S", True, None, float("nan"), float("inf"), "inf", "1e3"],
)
def test_bad_durations(value: object) -> None:
    """The sentence names key and value, and what would be right."""
    with pytest.raises(ValueError, match=re.escape(f"retry_timeout={value} is not a duration; write 500ms")):
        parse_duration(value, "retry_timeout")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "250ms"), (1, "1s"), (1.5, "1.5s"), (90, "90s"), (120, "2m"), (5400, "90m"), (7200, "2h")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, LONGEST))
def test_durations_are_read_back(seconds: float) -> None:
    """To the last bit: what a policy shows, set again, changes nothing."""
    assert parse_duration(format_duration(seconds), "x") == seconds


def test_durations_are_shown_as_they_were_written() -> None:
    """104 ms were shown as 104.00000000000001ms."""
    for number in range(1, 1000):
        assert format_duration(parse_duration(f"{number}ms", "x")) == f"{number}ms"
        assert format_duration(parse_duration(number, "x")) == f"{number}ms"


@pytest.mark.parametrize("value", [True, "true", "yes", "on", "1", "True", "YES", 1])
def test_true(value: object) -> None:
    assert parse_bool(value, "retry") is True


@pytest.mark.parametrize("value", [False, "false", "no", "off", "0", "OFF", 0])
def test_false(value: object) -> None:
    assert parse_bool(value, "retry") is False


@pytest.mark.parametrize("value", ["maybe", "", None, 2, "truee"])
def test_neither(value: object) -> None:
    with pytest.raises(ValueError, match=f"^retry={value} is neither true nor false$"):
        parse_bool(value, "retry")


@pytest.mark.parametrize(("value", "number"), [("2", 2), (1.5, 1.5), ("1e1", 10), (1, 1), (10, 10)])
def test_numbers(value: object, number: float) -> None:
    assert parse_number(value, "x", 1, 10) == number


@pytest.mark.parametrize("value", ["0.9", 11, "many", None, True, "nan", "inf", [], "1 0"])
def test_numbers_out_of_bounds(value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"x={value} is not a number from 1 to 10")):
        parse_number(value, "x", 1, 10)


def test_numbers_without_an_upper_bound_are_finite() -> None:
    for value in ("inf", 0.5):
        with pytest.raises(ValueError, match=f"^x={value} is not a number of at least 1$"):
            parse_number(value, "x", 1)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("512", 512),
        ("4k", 4096),
        ("512M", 512 << 20),
        ("20G", 20 << 30),
        ("20GiB", 20 << 30),
        ("20 gb", 20 << 30),
        ("1T", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value, "size") == size


@pytest.mark.parametrize("value", ["", "-1", -1, "1.5G", "20X", True, None, "G", 1.0])
def test_bad_sizes(value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"size={value} is not a size; write bytes, or 512M")):
        parse_size(value, "size")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 << 20, "1.5 GiB"),
        (20 << 30, "20 GiB"),
        (3 << 50, "3 PiB"),
        (5000 << 50, "5000 PiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


def test_nearest_word() -> None:
    """A slip of the finger finds its word; something else gets the list."""
    known = ["report", "ignore", "stop"]
    assert nearest("reprot", known) == "report"
    assert nearest("xyz", known) is None
    assert meant("stpo", iter(known)) == "did you mean stop?"
    assert meant("xyz", iter(known)) == "known are report, ignore, stop"


@pytest.mark.parametrize("value", ["1000000h", 10**16])
def test_a_duration_beyond_a_hundred_years_is_refused(value: object) -> None:
    """It would be no number of the clock any more; 0 says for ever."""
    with pytest.raises(ValueError, match=r"is more than 100 years; 0 stands for ever"):
        parse_duration(value, "retry_timeout")


@pytest.mark.parametrize("factor", [1, 7])
def test_what_is_shown_of_a_duration_is_read_back_to_the_bit(factor: int) -> None:
    """No float is 104 ms, and yet QEMU's bare milliseconds and `104ms` are the same."""
    for count in range(1, 2000):
        seconds = parse_duration(count * factor, "retry_interval")
        assert parse_duration(f"{count * factor}ms", "retry_interval") == seconds
        shown = format_duration(seconds)
        assert parse_duration(shown, "retry_interval") == seconds
        assert format_duration(parse_duration(shown, "retry_interval")) == shown
        assert len(shown) < 9
