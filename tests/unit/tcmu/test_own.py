"""Files in /run that the next daemon believes: nobody else can have laid them there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcmu_retry.tcmu.own import drop_own, open_own


def test_only_a_file_of_our_own_is_used(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "journal"
    os.close(open_own("uio0", directory))
    os.close(open_own("uio0", directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "uio0").stat().st_mode & 0o777 == 0o600
    (directory / "uio1").symlink_to(directory / "uio0")
    with pytest.raises(OSError, match="symbolic links"):
        open_own("uio1", directory)
    os.link(directory / "uio0", directory / "uio2")
    with pytest.raises(PermissionError, match="not ours alone"):
        open_own("uio2", directory)
    (directory / "uio2").unlink()
    (directory / "uio0").chmod(0o644)
    with pytest.raises(PermissionError, match="not ours alone"):
        open_own("uio0", directory)
    drop_own("uio0", directory)
    drop_own("uio0", directory)
    os.mkfifo(directory / "uio3", 0o600)
    with pytest.raises(PermissionError, match="is no file"):
        open_own("uio3", directory)
    directory.chmod(0o777)
    with pytest.raises(PermissionError, match="not ours alone"):
        open_own("uio4", directory)


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "journal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        open_own("uio0", tmp_path / "journal")


def test_what_another_user_laid_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory first, for who owns that may exchange what lies in it; then a file in a directory of our own."""
    directory = tmp_path / "journal"
    os.close(open_own("uio0", directory))
    other = os.geteuid() + 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: other)
        with pytest.raises(PermissionError, match="journal is not ours alone"):
            open_own("uio0", directory)
    real, inode = os.fstat, directory.stat().st_ino

    def owned_by_another(fd: int) -> os.stat_result:
        found = real(fd)
        return found if found.st_ino == inode else os.stat_result((*found[:4], other, *found[5:]))

    monkeypatch.setattr(os, "fstat", owned_by_another)
    with pytest.raises(PermissionError, match="uio0 is not ours alone"):
        open_own("uio0", directory)
