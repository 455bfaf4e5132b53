"""Runs inside the guest: carries out the requests that come over a virtio-serial port, one JSON object a line.

{"id", "run": [argv…] | "sh", "timeout", "log": file or null}  ->  {"id", "code", "out", "err"}

{"id", "warm": socket, "arguments": […], "timeout"}: the command line by `warm.py`; the same answer.

With "log" the command runs on in the background, its output in the file; the answer tells its pid at once.
Standard library only: it is started by the guest's bare Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

PORT = "/dev/virtio-ports/agent"


def carry_out(request: dict[str, Any]) -> dict[str, Any]:
    if "warm" in request:
        return ask_warm(request)
    argv = request["run"]
    shell = isinstance(argv, str)
    if shell:
        argv = ["bash", "-c", argv]
    environment = {**os.environ, **request.get("env", {})}
    if request.get("log"):
        with open(request["log"], "ab") as log:  # noqa: PTH123
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        threading.Thread(target=process.wait, daemon=True).start()
        return {"code": 0, "out": str(process.pid), "err": ""}
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )
    try:
        out, err = process.communicate(timeout=request["timeout"])
        code = process.returncode
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # What sits in the kernel (state D) cannot be waited for; its output is lost.
        out, err, code = b"", f"no end within {request['timeout']} s".encode(), 124
    return {"code": code, "out": out.decode(errors="replace"), "err": err.decode(errors="replace")}


def ask_warm(request: dict[str, Any]) -> dict[str, Any]:
    """One call of the command line, by `warm.py`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(request["timeout"])
        connection.connect(request["warm"])
        connection.sendall(json.dumps(request["arguments"]).encode() + b"\n")
        try:
            answer: dict[str, Any] = json.loads(connection.makefile("rb").readline())
        except TimeoutError:
            return {"code": 124, "out": "", "err": f"no end within {request['timeout']} s"}
    return answer


def main() -> None:
    lock = threading.Lock()
    with open(sys.argv[1] if len(sys.argv) > 1 else PORT, "r+b", buffering=0) as port:  # noqa: PTH123

        def answer(request: dict[str, Any]) -> None:
            try:
                reply = carry_out(request)
            except OSError as error:
                reply = {"code": 127, "out": "", "err": str(error)}
            data = json.dumps({"id": request["id"], **reply}).encode() + b"\n"
            with lock:
                while data:
                    data = data[port.write(data) :]

        port.write(b'{"id": 0, "code": 0, "out": "up", "err": ""}\n')
        rest = b""
        while True:
            piece = port.read(65536)
            if not piece:  # nobody has the other end open
                threading.Event().wait(0.05)
                continue
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
