"""Policy: its words, what makes no sense, what differs per class, and how long is waited."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_retry.core.errors import ErrorClass, ReportAs
from tcmu_retry.core.policy import (
    DEFAULT,
    KEYS,
    DirectionPolicy,
    Fallback,
    Policy,
    PolicyError,
    change,
    flatten,
    touched,
)
from tcmu_retry.scsi.request import Direction


def settings(changes: Mapping[str, object], *names: str) -> list[object]:
    """`read.retry`, `write.fallback` … after these changes."""
    policy = change(DEFAULT, changes)
    return [getattr(getattr(policy, name.split(".")[0]), name.split(".")[1]) for name in names]


def test_defaults() -> None:
    """Hold and retry for ever; a bad LBA is reported after three attempts, a hopeless command at once."""
    for side in Direction:
        plain = DEFAULT.of(side)
        assert (plain.retry, plain.retry_interval, plain.retry_backoff, plain.retry_max_interval) == (True, 1, 2, 30)
        assert (plain.retry_timeout, plain.fallback, plain.report_as) == (0, Fallback.REPORT, ReportAs.AUTO)
        assert plain.of(ErrorClass.MEDIUM).attempts == 3
        assert plain.of(ErrorClass.PERMANENT).retry is False
        assert plain.of(ErrorClass.TRANSPORT) == plain
    assert not DEFAULT.allow_data_loss


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"retry_timeout": "2m"}, "read.retry_timeout", 120),
        ({"retry_timeout": "2m"}, "write.retry_timeout", 120),
        ({"read.retry_timeout": "2m"}, "write.retry_timeout", 0),
        ({"retry": "no"}, "write.retry", False),
        ({"retry_interval": 500}, "read.retry_interval", 0.5),
        ({"retry_backoff": 1}, "read.retry_backoff", 1),
        ({"retry_max_interval": "1h"}, "read.retry_max_interval", 3600),
        ({"retry_jitter": "0"}, "read.retry_jitter", 0),
        ({"fallback": "busy"}, "write.fallback", Fallback.BUSY),
        ({"write.fallback": "readonly"}, "write.fallback", Fallback.READONLY),
        ({"write.report_as": "no-space"}, "write.report_as", ReportAs.NO_SPACE),
        ({"retry_timeout": "2m", "read.retry_timeout": "1m"}, "read.retry_timeout", 60),
    ],
)
def test_words(changes: dict[str, object], name: str, value: object) -> None:
    """A flat key is for both directions; one with a direction is for that one."""
    assert settings(changes, name) == [value]


@pytest.mark.parametrize(
    ("changes", "retry", "fallback", "timeout"),
    [
        ({"werror": "report"}, False, Fallback.REPORT, 0),
        ({"werror": "stop"}, False, Fallback.STOP, 0),
        ({"werror": "enospc"}, False, Fallback.ENOSPC, 0),
        ({"werror": "retry"}, True, Fallback.REPORT, 0),
        ({"werror": "auto"}, True, Fallback.REPORT, 0),
        ({"werror": "ignore", "allow_data_loss": "true"}, False, Fallback.IGNORE, 0),
        ({"write-retry-timeout": "15000", "werror": "stop"}, True, Fallback.STOP, 15),
        ({"werror": "stop", "retry_timeout": "15000"}, True, Fallback.STOP, 15),
        ({"werror": "stop", "write.retry_timeout": "15s"}, True, Fallback.STOP, 15),
        ({"werror": "stop", "read-retry-timeout": "15000"}, False, Fallback.STOP, 0),
    ],
)
def test_qemu_words(changes: dict[str, object], retry: bool, fallback: Fallback, timeout: float) -> None:
    """An action beside a retry time-out of its direction means: retry first, then that. Reads are left alone."""
    assert settings(changes, "write.retry", "write.fallback", "write.retry_timeout") == [retry, fallback, timeout]
    assert settings(changes, "read.retry", "read.fallback") == [True, Fallback.REPORT]


def test_qemu_words_for_reads() -> None:
    changes = {"rerror": "stop", "read-retry-interval": 100, "read-retry-timeout": 2000}
    names = ("read.retry", "read.fallback", "read.retry_interval", "read.retry_timeout", "write.retry_timeout")
    assert settings(changes, *names) == [True, Fallback.STOP, 0.1, 2, 0]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("retry_timeut", "1s", "retry_timeut is not a setting; did you mean retry_timeout?"),
        ("read.fallbak", "stop", "read.fallbak is not a setting; did you mean fallback?"),
        ("raed.retry", "true", "raed.retry is not a setting"),
        ("attempts", "3", "attempts is not a setting"),
        ("read.allow_data_loss", "true", "read.allow_data_loss is not a setting; did you mean allow_data_loss?"),
        ("fallback", "stopp", "fallback=stopp is not known; did you mean stop?"),
        ("fallback", "xyz", "fallback=xyz is not known; known are report, ignore, stop, enospc"),
        ("report_as", "media", "report_as=media is not known; did you mean medium?"),
        ("werror", "stpo", "werror=stpo is not known; did you mean stop?"),
        ("rerror", "readonly", "rerror=readonly is not known"),
        ("retry", "perhaps", "retry=perhaps is neither true nor false"),
        ("retry_interval", "1 day", "retry_interval=1 day is not a duration"),
        ("write-retry-timeout", "soon", "write.retry_timeout=soon is not a duration"),
        ("retry_backoff", "0.5", "retry_backoff=0.5 is not a number"),
        ("retry_jitter", "1.1", "retry_jitter=1.1 is not a number from 0 to 1"),
        ("classes.mediun.retry", "no", "classes.mediun.retry: there is no class of errors mediun; did you mean medium"),
        ("read.classes.space.retri", "no", "read.classes.space.retri is not a setting; did you mean retry?"),
        ("classes.medium.attempts", "-1", "classes.medium.attempts=-1 is not a number of at least 0"),
        ("read.fallback", "readonly", "read.fallback=readonly makes no sense"),
        ("fallback", "readonly", "read.fallback=readonly makes no sense"),
        ("read.classes.space.fallback", "readonly", "read.classes.space.fallback=readonly makes no sense"),
        ("write.fallback", "ignore", "write.fallback=ignore loses data; it needs allow_data_loss=true"),
        ("classes.space.fallback", "ignore", "read.classes.space.fallback=ignore loses data"),
        ("retry_interval", "1m", "read.retry_max_interval=30s is shorter than retry_interval=1m"),
        ("write.classes.gone.retry_interval", "31s", "write.classes.gone.retry_max_interval=30s is shorter than"),
    ],
)
def test_what_makes_no_sense(key: str, value: object, sentence: str) -> None:
    """One sentence with the nearest valid word; nothing is applied, not even what was right beside it."""
    with pytest.raises(PolicyError, match=re.escape(sentence)):
        change(DEFAULT, {"retry_timeout": "5s", key: value})
    assert Policy() == DEFAULT


def test_data_loss_is_asked_for_in_any_order() -> None:
    """And cannot be taken back while something still needs it."""
    policy = change(DEFAULT, {"fallback": "ignore", "allow_data_loss": True})
    assert policy == change(DEFAULT, {"allow_data_loss": True, "fallback": "ignore"})
    with pytest.raises(PolicyError, match="needs allow_data_loss=true"):
        change(policy, {"allow_data_loss": False})


def test_a_class_inherits_what_it_does_not_say() -> None:
    """`medium` keeps its three attempts when something else of it, or of its direction, changes."""
    policy = change(DEFAULT, {"write.classes.medium.retry_interval": "2s", "retry_timeout": "1m", "retry_backoff": 3})
    medium = policy.write.of(ErrorClass.MEDIUM)
    assert (medium.attempts, medium.retry_interval, medium.retry_timeout, medium.retry_backoff) == (3, 2, 60, 3)
    assert policy.write.retry_interval == 1
    assert policy.read.of(ErrorClass.MEDIUM).retry_interval == 1


def test_zero_and_false_override_too() -> None:
    """Only what is not said inherits."""
    policy = change(DEFAULT, {"retry_timeout": "1m", "classes.space.retry_timeout": 0, "classes.medium.attempts": 0})
    assert policy.read.of(ErrorClass.SPACE).retry_timeout == 0
    assert policy.read.of(ErrorClass.MEDIUM).attempts == 0


@pytest.mark.parametrize(
    ("attempts", "chance", "seconds"),
    [(0, 0.5, 1), (1, 0.5, 1), (2, 0.5, 2), (5, 0.5, 16), (6, 0.5, 30), (10**6, 0.5, 30), (1, 0, 0.9), (1, 1, 1.1)],
)
def test_delay(attempts: int, chance: float, seconds: float) -> None:
    """Doubling up to the longest, spread by the jitter to both sides; no number of attempts is too large."""
    assert DirectionPolicy().delay(attempts, chance) == pytest.approx(seconds)


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(1, 100), st.floats(0, 1))
def test_delay_stays_within_bounds(attempts: int, jitter: float, backoff: float, chance: float) -> None:
    policy = DirectionPolicy(retry_jitter=jitter, retry_backoff=backoff)
    assert 0 <= policy.delay(attempts, chance) <= 30 * (1 + jitter) + 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"retry": False, "retry_timeout": "90s", "fallback": "stop", "report_as": "target"},
        {"write.fallback": "readonly", "read.fallback": "offline", "retry_jitter": 0.25},
        {"classes.space.fallback": "enospc", "classes.gone.retry": "false", "read.classes.unknown.attempts": 7},
        {"fallback": "ignore", "allow_data_loss": "true", "retry_interval": "250ms"},
    ],
)
def test_a_policy_is_read_back_from_its_words(changes: dict[str, object]) -> None:
    """What is shown, saved and sent over D-Bus says everything, in the words that are accepted."""
    policy = change(DEFAULT, changes)
    assert change(DEFAULT, flatten(policy)) == policy


def test_what_is_shown_has_known_keys() -> None:
    flat = flatten(DEFAULT)
    assert flat["read.retry_timeout"] == "0s"
    assert flat["write.classes.medium.attempts"] == "3"
    assert flat["allow_data_loss"] == "false"
    last = {key.rpartition(".")[2] for key in flat}
    assert last <= {*KEYS, "attempts"}


def test_what_was_set_is_named_in_the_keys_that_are_shown() -> None:
    """Also what was set to the value that it had: a person said so, and a new default must not change it."""
    assert touched({"retry_timeout": "0"}) == {"read.retry_timeout", "write.retry_timeout"}
    assert touched({"werror": "stop", "allow_data_loss": "false"}) >= {"write.fallback", "allow_data_loss"}
    assert touched({"write.retry": "true"}) == {"write.retry"}
