"""The history on disk: what is kept, what goes, and that trouble with it stays its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tcmu_retry.daemon import history as module
from tcmu_retry.daemon.api import ApiError, Notice, Sample
from tcmu_retry.daemon.history import History

T = TypeVar("T")
SAMPLE = Sample(10.0, 5.0, 3, 1.5, 100.0, 200.0, 1, 2, "online", "down")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def event(number: int, device: str = "vm1") -> Notice:
    return Notice("TR-001", device, f"number {number}", float(number), {"errno": "EIO", "number": number})


def test_what_was_told_outlives_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history.db"
    first = History(path)
    first.add_event(event(1))
    first.add_samples("vm1", [SAMPLE])
    first.close()
    second = History(path)
    assert run(second.events("", 0, 10)) == [event(1)]
    assert run(second.samples("vm1", 0, 10)) == [SAMPLE]
    second.close()


def test_the_last_ones_are_given_in_their_order() -> None:
    kept = History(None)
    for number in range(10):
        kept.add_event(event(number, "vm1" if number % 2 else "vm2"))
    assert [each.time for each in run(kept.events("", 0, 3))] == [7, 8, 9]
    assert [each.time for each in run(kept.events("vm1", 4, 100))] == [5, 7, 9]
    kept.close()


def test_without_since_the_samples_are_those_of_the_last_stretch() -> None:
    kept = History(None)
    old = [replace(SAMPLE, time=float(t), stretch=1.0) for t in range(1, 4)]
    new = [replace(SAMPLE, time=float(t), stretch=50.0) for t in range(50, 54)]
    kept.add_samples("vm1", old)
    kept.add_samples("vm1", new)
    kept.add_samples("vm2", [replace(SAMPLE, stretch=99.0)])
    assert run(kept.samples("vm1", 0, 100)) == new
    assert run(kept.samples("vm1", 2.0, 100)) == [*old[1:], *new]
    assert run(kept.samples("nobody", 0, 100)) == []
    back = [replace(SAMPLE, time=float(t), stretch=20.0) for t in range(20, 22)]
    kept.add_samples("vm1", back)
    assert run(kept.samples("vm1", 0, 100)) == back, "the host's clock was set back: the last is what came last"
    kept.close()


def test_it_is_bounded_for_each_lun_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LUN that fails all the time does not push out what the others have."""
    monkeypatch.setattr(module, "PRUNE_EVERY", 10)
    kept = History(None, per_device=20, total=50)
    kept.add_event(event(0, "quiet"))
    for number in range(1, 201):
        kept.add_event(event(number, "loud"))
    assert [each.device for each in run(kept.events("quiet", 0, 100))] == ["quiet"]
    assert 20 <= len(run(kept.events("loud", 0, 1000))) <= 30
    for number in range(400):
        kept.add_event(event(number, f"vm{number}"))
    assert 50 <= len(run(kept.events("", 0, 1000))) <= 60
    kept.close()


def test_a_damaged_file_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "history.db"
    path.write_bytes(b"no database at all" * 1000)
    kept = History(path)
    kept.add_event(event(1))
    assert run(kept.events("", 0, 10)) == [event(1)]
    kept.close()
    assert (tmp_path / "history.damaged").read_bytes().startswith(b"no database")
    assert "is damaged" in caplog.text


def test_a_place_that_takes_no_file_means_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    kept = History(tmp_path / "file" / "history.db")
    kept.add_event(event(1))
    assert run(kept.events("", 0, 10)) == [event(1)]
    kept.close()
    assert "in memory only" in caplog.text


def test_a_disk_that_hangs_costs_rows_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread hangs in its first row: adding returns at once, the loss is told once, reading gets a sentence."""
    import threading

    monkeypatch.setattr(module, "BACKLOG", 5)
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)
    release = threading.Event()
    kept = History(None)
    kept._put(lambda db: release.wait() and None)
    caplog.set_level(logging.ERROR)
    for number in range(100):
        kept.add_event(event(number))
    with pytest.raises(ApiError, match="does not answer"):
        run(kept.events("", 0, 10))
    assert caplog.text.count("has gaps") == 1
    release.set()
    kept.close()


def test_what_the_disk_cannot_take_is_dropped_and_what_follows_is_kept() -> None:
    """Half a surrogate is in no encoding: the thread that ended over it would take all history along."""
    kept = History(None)
    kept.add_event(replace(event(1), message="\udcfc"))
    kept.add_event(event(2))
    assert run(kept.events("", 0, 10)) == [event(2)]
    kept.close()
