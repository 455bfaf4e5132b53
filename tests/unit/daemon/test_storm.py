"""A storm of failures ends in some lines, and in the truth."""

from __future__ import annotations

import errno
import logging

import pytest

from tcmu_retry.core import events
from tcmu_retry.core.actions import Complete, Dispatch, Emit
from tcmu_retry.core.engine import Engine
from tcmu_retry.core.policy import DEFAULT, Budgets, change
from tcmu_retry.daemon import journal, view
from tcmu_retry.daemon.api import Notice
from tcmu_retry.daemon.storm import BURST, SECONDS, Storm
from tcmu_retry.scsi.request import Direction, Extent, Op, Request


def notice(code: str, at: float, device: str = "vm1", **fields: object) -> Notice:
    return Notice(code, device, "message", at, fields)


def said(storm: Storm, notices: list[Notice]) -> list[Notice]:
    """Everything that is passed on, the last window included."""
    passed = []
    for each in notices:
        while (due := storm.due()) is not None and due <= each.time:
            passed += storm.end(due)
        if storm.passes(each, each.time):
            passed.append(each)
    while (due := storm.due()) is not None:
        passed += storm.end(due)
    return passed


def request(lba: int) -> Request:
    return Request(Op.WRITE, (Extent(lba * 512, 512),), 512)


@pytest.mark.parametrize("flaps", [True, False], ids=["fails and recovers", "fails"])
def test_ten_thousand_failures_are_under_twenty_lines(caplog: pytest.LogCaptureFixture, flaps: bool) -> None:
    """The real engine, one failing command after the other; each recovers at once, or the storage stays away."""
    engine = Engine(change(DEFAULT, {"retry_interval": 10, "retry_jitter": 0}), Budgets(100_000, 1 << 40), lambda: 0)
    storm, emitted = Storm(), []
    log = logging.getLogger("tcmu_retry.test")
    caplog.set_level(logging.DEBUG)
    now = 0.0
    for token in range(10_000):
        now += 0.001
        actions = engine.finished(token, request(token), errno.ETIMEDOUT, now)
        if flaps:
            now += 0.0101  # no wait is shorter than 10 ms
            actions += engine.tick(now)
            out = [action.token for action in actions if isinstance(action, Dispatch)]
            assert out == [token]
            actions += engine.finished(token, request(token), 0, now)
        assert not any(isinstance(action, Complete) for action in actions)
        emitted += [
            view.notice(action.code, "vm1", action.direction, action.fields, now)
            for action in actions
            if isinstance(action, Emit)
        ]
    assert len(emitted) > (20_000 if flaps else 1)
    for each in said(storm, emitted):
        journal.write(log, each)
    assert 0 < len(caplog.records) < 20
    assert ("TR-004" in caplog.records[-1].getMessage()) is flaps


def test_the_last_of_each_direction_is_told_when_the_window_ends() -> None:
    """Four pass, then one a window for each direction, with how many it stands for; then all is as before."""
    storm = Storm()
    flood = [notice(events.RECOVERED, t / 10, direction="read" if t % 2 else "write", number=t) for t in range(100)]
    passed = said(storm, flood)
    assert [each.fields["number"] for each in passed] == [0, 1, 2, 3, 98, 99]
    assert [each.fields["repeated"] for each in passed[BURST:]] == [48, 48]
    assert "the last of 48 such within 60 s" in passed[-1].message
    assert storm.passes(notice(events.RECOVERED, 9.9 + 3 * SECONDS), 9.9 + 3 * SECONDS)


def test_a_storm_that_goes_on_is_one_line_a_minute() -> None:
    passed = said(Storm(), [notice(events.HANGS, float(second)) for second in range(600)])
    assert len(passed) == BURST + 10


def test_luns_and_codes_do_not_hide_each_other_and_persons_are_never_hidden() -> None:
    storm = Storm()
    for _ in range(2 * BURST):
        storm.passes(notice(events.HANGS, 0.0), 0.0)
    assert storm.passes(notice(events.HANGS, 0.0, device="vm2"), 0.0)
    assert storm.passes(notice(events.DOWN, 0.0), 0.0)
    assert all(storm.passes(notice(events.POLICY_CHANGED, 0.0), 0.0) for _ in range(2 * BURST))


def test_every_begin_has_its_end() -> None:
    assert {events.edge(code) for code in (events.OUTAGE_BEGAN, events.HELD, events.HANGS)} == {"begin"}
    assert {events.edge(code) for code in events.ENDS} == {"end"}
    assert events.edge(events.POLICY_CHANGED) == "moment"
    assert events.ENDS.keys() | events.BEGINS | events.GOOD_NEWS <= events.MEANINGS.keys()
    assert Direction.READ.value == "read"
