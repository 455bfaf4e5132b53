"""Runs inside the guest: the command line with its imports done, for an emulated CPU takes seconds for them.

One request a connection: a JSON list of arguments in, {"code", "out", "err"} out. Each runs `cli.main.main` in a fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path

from tcmu_retry.cli import main as cli


def child(arguments: list[str], out: int, err: int) -> int:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["tcmu-retry", *arguments]
    try:
        return cli.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve(connection: socket.socket) -> None:
    """In a fork of its own: carry out one request."""
    arguments = json.loads(connection.makefile("rb").readline())
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            os._exit(child(arguments, out.fileno(), err.fileno()))
        _, status = os.waitpid(pid, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    reply = {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}
    connection.sendall(json.dumps(reply).encode() + b"\n")


def main() -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(16)
    Path(sys.argv[1] + ".ready").touch()
    while True:
        connection, _ = listener.accept()
        if not os.fork():
            serve(connection)
            os._exit(0)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    main()
