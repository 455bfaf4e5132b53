"""A program that cares: appends numbered records to a file and counts one as written only after fsync said so.

usage: writer.py FILE LOG SECONDS

LOG gets one JSON line a record: {"t": end, CLOCK_MONOTONIC s, "n": number, "took": s, "error": errno name or ""}.
After an error it goes on with the next record, as a patient program would.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from pathlib import Path

RECORD = 16384


def record(number: int) -> bytes:
    """The content of record `number`, recognisable and different from every other."""
    seed = hashlib.sha256(number.to_bytes(8, "little")).digest()
    return number.to_bytes(8, "little") + seed * ((RECORD - 8) // len(seed)) + bytes((RECORD - 8) % len(seed))


def main() -> int:
    path, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    until = time.monotonic() + seconds
    number = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with log.open("w", buffering=1) as out:
        while time.monotonic() < until:
            began = time.monotonic()
            problem = ""
            try:
                if os.pwrite(fd, record(number), number * RECORD) < RECORD:
                    raise OSError(errno.ENOSPC, "a short write")
                os.fsync(fd)
            except OSError as error:
                problem = errno.errorcode.get(error.errno or 0, str(error.errno))
            ended = time.monotonic()
            out.write(json.dumps({"t": ended, "n": number, "took": ended - began, "error": problem}) + "\n")
            number += 1
            if problem:
                time.sleep(0.2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
