"""Runs inside the guest: daemons that start at once, for an emulated CPU takes seconds, or a minute, to import them.

Reads names of log files from a FIFO, a line each, and runs `retryd.main` in a fork for each; its pid goes to LOG.pid.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from tcmu_retry import retryd
from tcmu_retry.pump.native.pump import NativePump

LOADED = NativePump  # what the daemon imports only once it runs


def child(log: str) -> int:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.argv = ["tcmu-retryd", "--debug"]
    Path(log + ".pid").write_text(str(os.getpid()))
    try:
        return retryd.main()
    except BaseException:
        traceback.print_exc()
        return 70


def main() -> None:
    fifo = sys.argv[1]
    os.mkfifo(fifo)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    Path(fifo + ".ready").touch()
    while True:
        for line in Path(fifo).read_text().splitlines():
            if not os.fork():
                os._exit(child(line))


if __name__ == "__main__":
    main()
