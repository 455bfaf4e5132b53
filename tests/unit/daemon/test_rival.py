"""A tcmu-runner on the host is named before it refuses our LUNs behind our back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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


def test_what_anybody_may_call_a_process_keeps_nobody_from_looking_on(tmp_path: Path) -> None:
    """A name is bytes of its owner's choice. A look that failed over it would keep the daemon from starting."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1/comm").write_bytes(b"\xff\n")
    assert rival.find(tmp_path) == ""
    process(tmp_path, "17", "tcmu-runner")
    assert "process 17" in rival.find(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_program_of_nobodys_that_has_the_name_is_none(tmp_path: Path) -> None:
    process(tmp_path, "17", "tcmu-runner")
    os.chown(tmp_path / "17/comm", 65534, 65534)
    assert rival.find(tmp_path) == ""
