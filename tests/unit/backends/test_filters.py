"""Filters: which calls they fail or delay, and the sentences about settings that they do not take."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tcmu_retry.backends.base import Identity
from tcmu_retry.backends.filters import apply, parse
from tcmu_retry.backends.filters.delay import LOOK_SECONDS, DelayFilter, Pace
from tcmu_retry.scsi.request import Direction

PAGE = memoryview(bytearray(512))


class Below:
    """Storage that writes down what reaches it."""

    identity = Identity("file", 1 << 20, "fs:x:y")
    block_size = 4096
    can_discard = True

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self.calls.append(("read", offset))
        return 512

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        self.calls.append(("write", offset, durable))
        return 256

    def flush(self) -> None:
        self.calls.append(("flush",))

    def discard(self, offset: int, length: int) -> None:
        self.calls.append(("discard", offset, length))

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self.calls.append(("zero", offset, length, discard))

    def close(self) -> None:
        self.calls.append(("close",))


def outcomes(settings: Mapping[str, Mapping[str, str]], times: int = 1) -> list[str]:
    """Which of the calls at 4096 … 4608 fail, by first letter: Read, Write, Flush, Discard, Zero."""
    backend = apply(Below(), settings)
    calls: dict[str, Callable[[], object]] = {
        "R": lambda: backend.read(4096, [PAGE]),
        "W": lambda: backend.write(4096, [PAGE], True),
        "F": backend.flush,
        "D": lambda: backend.discard(4096, 512),
        "Z": lambda: backend.zero(4096, 512, True),
    }
    rounds = []
    for _ in range(times):
        failed = ""
        for letter, call in calls.items():
            try:
                call()
            except OSError:
                failed += letter
        rounds.append(failed)
    return rounds


def test_without_filters_nothing_changes() -> None:
    """The success path of a LUN without filters has none."""
    below = Below()
    assert apply(below, {}) is below


def test_everything_passes_unchanged() -> None:
    """A filter that has nothing to do gives every argument and result through, and the storage's properties."""
    below = Below()
    backend = apply(below, {"error": {"rate": "0"}, "delay": {}})
    assert (backend.identity, backend.block_size, backend.can_discard) == (Below.identity, 4096, True)
    assert backend.read(1, [PAGE]) == 512
    assert backend.write(2, [PAGE], False) == 256
    backend.flush()
    backend.discard(3, 4)
    backend.zero(5, 6, True)
    backend.close()
    assert below.calls == [
        ("read", 1), ("write", 2, False), ("flush",), ("discard", 3, 4), ("zero", 5, 6, True), ("close",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({}, ["RWFDZ", "RWFDZ"]),
        ({"direction": "read"}, ["R", "R"]),
        ({"direction": "write"}, ["WFDZ", "WFDZ"]),
        ({"calls": "3"}, ["RWF", ""]),
        ({"offset": "0", "length": "4K"}, ["", ""]),
        ({"offset": "0", "length": "4097"}, ["RWDZ", "RWDZ"]),
        ({"offset": "4607"}, ["RWDZ", "RWDZ"]),
        ({"offset": "4608"}, ["", ""]),
        ({"length": "1M"}, ["RWDZ", "RWDZ"]),
        ({"rate": "0"}, ["", ""]),
        ({"while_file": "/nonexistent/trigger"}, ["", ""]),
        ({"direction": "write", "offset": "4096", "length": "1", "calls": "4"}, ["WDZ", "W"]),
    ],
)
def test_which_calls_fail(settings: dict[str, str], failed: list[str]) -> None:
    """All conditions must hold at once, and a range lets flushes pass: a bad block does not fail them."""
    assert outcomes({"error": settings}, times=2) == failed


def test_error_comes_instead_of_the_call() -> None:
    """The storage hears nothing of a call that fails, and the errno is the one asked for."""
    below = Below()
    backend = apply(below, {"error": {"errno": "ENOSPC"}})
    with pytest.raises(OSError) as raised:
        backend.write(0, [PAGE], True)
    assert raised.value.errno == errno.ENOSPC
    assert below.calls == []


def test_rate_is_the_same_at_every_opening() -> None:
    """About the share asked for fails, and a test that met a failure meets it again."""
    first = outcomes({"error": {"rate": "0.25"}}, times=200)
    assert first == outcomes({"error": {"rate": "0.25"}}, times=200)
    assert 150 < sum(map(len, first)) < 350


def test_error_while_a_file_exists(tmp_path: Path) -> None:
    """An outage is begun by `touch` and ended by `rm`."""
    trigger = tmp_path / "down"
    backend = apply(Below(), {"error": {"while_file": str(trigger)}})
    backend.flush()
    trigger.touch()
    with pytest.raises(OSError):
        backend.flush()
    trigger.unlink()
    backend.flush()


def test_delays() -> None:
    """Reads, writes and flushes have a time each; discards and zeroes are writes."""
    slept: list[float] = []
    backend = DelayFilter(Below(), Pace(read=1, write=2, flush=3), slept.append)
    backend.read(0, [PAGE])
    backend.write(0, [PAGE], True)
    backend.flush()
    backend.discard(0, 512)
    backend.zero(0, 512, False)
    assert slept == [1, 2, 3, 2, 2]


def test_hang_ends_with_the_file(tmp_path: Path) -> None:
    """A call hangs while the file exists and then is done: I/O that comes back late. Other directions do not hang."""
    trigger = tmp_path / "hung"
    trigger.touch()
    below = Below()
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            trigger.unlink()

    backend = DelayFilter(below, Pace(while_file=trigger, directions=frozenset({Direction.WRITE})), look)
    backend.read(0, [PAGE])
    assert looks == []
    backend.write(0, [PAGE], True)
    assert looks == [LOOK_SECONDS] * 3
    assert below.calls == [("read", 0), ("write", 0, True)]


def test_first_named_is_next_to_the_storage() -> None:
    """`delay` named after `error` delays errors too."""
    makers = parse({"error": {}, "delay": {"read": "2s"}})
    assert len(makers) == 2
    assert isinstance(apply(Below(), {"error": {}, "delay": {"read": "2s"}}), DelayFilter)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"eror": {}}, "there is no filter eror; did you mean error?"),
        ({"pause": {}}, "there is no filter pause; known are error, delay"),
        ({"error": {"errn": "EIO"}}, "filter error has no setting errn; did you mean errno?"),
        ({"error": {"errno": "EI0"}}, "error.errno=EI0 is not the name of an errno; did you mean EIO?"),
        ({"error": {"errno": "errorcode"}},
         "error.errno=errorcode is not the name of an errno; did you mean EPROTO?"),
        ({"error": {"direction": "writes"}}, "error.direction=writes is not a direction; did you mean write?"),
        ({"error": {"rate": "2"}}, "error.rate=2 is not a number from 0 to 1"),
        ({"error": {"rate": "nan"}}, "error.rate=nan is not a number from 0 to 1"),
        ({"error": {"offset": "4 parsecs"}},
         "error.offset=4 parsecs is not a size; write bytes, or 512M, 20G, 1T"),
        ({"error": {"calls": "0"}}, "error.calls=0 is not a count; write 1 or more"),
        ({"error": {"while_file": "down"}}, "error.while_file=down is not an absolute path; begin it with /"),
        ({"delay": {"read": "2"}}, "delay.read=2 is not a duration; write 250ms, 2s or 1m"),
        ({"delay": {"wrote": "2s"}}, "filter delay has no setting wrote; did you mean write?"),
    ],
)  # fmt: skip
def test_sentences(settings: dict[str, dict[str, str]], sentence: str) -> None:
    """A wrong setting is told in one sentence with the word that was probably meant, and nothing is laid."""
    with pytest.raises(ValueError) as raised:
        apply(Below(), settings)
    assert str(raised.value) == sentence


def test_values_of_toml() -> None:
    """TOML has numbers where a configuration string has text."""
    settings: dict[str, dict[str, object]] = {"error": {"rate": 0.0, "offset": 4096, "length": 512, "calls": 2}}
    parse(settings)  # type: ignore[arg-type]
