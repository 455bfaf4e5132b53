"""A process that is killed, without a process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

TRACEME, SINGLESTEP = 0, 9


class Killed(BaseException):
    """Nothing of the process runs after this point."""


@contextlib.contextmanager
def killed_at(step: int, files: set[str]) -> Iterator[list[int]]:
    """Raises Killed at this line of these files' code; yields how many lines there were."""
    lines = [0]

    def look(frame: FrameType, event: str, argument: object) -> object:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == step:
                raise Killed
        return look

    before = sys.gettrace()
    sys.settrace(look)  # type: ignore[arg-type]
    try:
        yield lines
    finally:
        sys.settrace(before)


def stepped(story: Callable[[Callable[[], None]], None], most: int) -> int:
    """Runs it in a process of its own that is killed so many instructions after its call; how many it came to."""
    libc = ctypes.CDLL(None, use_errno=True)

    def begin() -> None:
        libc.ptrace(TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)

    child = os.fork()
    if not child:
        try:
            story(begin)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    steps = 0
    while steps < most:
        if libc.ptrace(SINGLESTEP, child, 0, 0):
            pytest.skip("nothing may be traced here")
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return steps
        steps += 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return steps
