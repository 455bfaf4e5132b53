"""Files of the daemon's own in /run: memory that the next daemon takes up, and nobody else may have laid there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

DIRECTORY = Path("/run/tcmu-retry/journal")


def open_own(name: str, directory: Path = DIRECTORY) -> int:
    """The file of this name. Raises OSError where it cannot be had, or others may have laid it there."""
    directory.parent.mkdir(mode=0o755, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_owner(folder, directory)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        _check_owner(fd, directory / name)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EPERM, f"{directory / name} is no file")
    except OSError:
        os.close(fd)
        raise
    return fd


def write_own(name: str, data: bytes, directory: Path = DIRECTORY) -> None:
    """What is read there is all of this, or all of what was there before. Raises OSError."""
    new = f"{name}.new"
    drop_own(new, directory)
    with os.fdopen(open_own(new, directory), "wb") as file:
        file.write(data)
    (directory / new).replace(directory / name)


def read_own(name: str, directory: Path = DIRECTORY) -> bytes:
    """b"" where there is none. Raises OSError."""
    with os.fdopen(open_own(name, directory), "rb") as file:
        return file.read()


def drop_own(name: str, directory: Path = DIRECTORY) -> None:
    """Nobody may believe it any more. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        (directory / name).unlink()


def _check_owner(fd: int, path: Path) -> None:
    """Raises OSError EPERM."""
    found = os.fstat(fd)
    if (
        found.st_uid != os.geteuid()
        or stat.S_IMODE(found.st_mode) & 0o077
        or (found.st_nlink > 1 and stat.S_ISREG(found.st_mode))
    ):
        raise OSError(errno.EPERM, f"{path} is not ours alone; remove it")
