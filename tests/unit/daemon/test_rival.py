"""A tcmu-runner on the host is named before it refuses our LUNs behind our back."""

from __future__ import annotations

from pathlib import Path

from tcmu_retry.daemon import rival


def process(proc: Path, number: str, name: str) -> None:
    (proc / number).mkdir()
    (proc / number / "comm").write_text(f"{name}\n")


def test_a_tcmu_runner_is_named_with_its_process(tmp_path: Path) -> None:
    process(tmp_path, "1", "systemd")
    process(tmp_path, "17", "tcmu-runner")
    assert "tcmu-runner is running (process 17)" in rival.find(tmp_path)


def test_other_programs_are_none(tmp_path: Path) -> None:
    process(tmp_path, "1", "tcmu-retryd")
    process(tmp_path, "self", "tcmu-runner")  # a link to a process, not one more
    (tmp_path / "2").mkdir()  # a process that has just ended
    assert rival.find(tmp_path) == ""
