"""What the replay log of write-back costs where nothing fails: writes with it and without it, in turn, in one run.

usage: python bench/replay_cost.py [DIRECTORY]        default: a temporary one; the storage under it is what is measured

Each round writes 16 MiB at places drawn once for all rounds and flushes after every 64 writes, as a file system that
syncs. The rounds of both kinds take turns, so that a slow minute of the machine hits both; the medians are compared.
"""

from __future__ import annotations

import mmap
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.file import open_backend
from tcmu_retry.backends.replay import ReplayLog

SIZE = 64 << 20
ROUND = 16 << 20
ROUNDS = 9
FLUSH = 64  # writes
LIMIT = 64 << 20  # as in daemon/storage.py


def round_seconds(backend: Backend, places: Iterable[int], view: memoryview) -> float:
    """One round of writes; `view` is what each of them writes."""
    began = time.perf_counter()
    for number, place in enumerate(places, 1):
        assert backend.write(place, [view], durable=False) == len(view)
        if not number % FLUSH:
            backend.flush()
    return time.perf_counter() - began


def compare(path: Path, length: int) -> tuple[float, float]:
    """Seconds a write takes, without and with the log."""
    chance = random.Random(1)
    places = [chance.randrange(SIZE // length) * length for _ in range(ROUND // length)]
    view = memoryview(mmap.mmap(-1, length))  # aligned, for O_DIRECT
    backend = open_backend(str(path), buffered=False)
    logged = ReplayLog(LIMIT).over(backend)
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * ROUNDS):
        kind = bool(turn % 2)
        times[kind].append(round_seconds(logged if kind else backend, places, view) / len(places))
    backend.close()
    return statistics.median(times[False]), statistics.median(times[True])


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        path = Path(directory) / "storage.img"
        with path.open("wb") as file:
            file.truncate(SIZE)
        print(f"{'write':>8} {'without':>10} {'with log':>10} {'more':>10} {'ratio':>6}")
        for length in (4 << 10, 64 << 10, 1 << 20):
            without, with_log = compare(path, length)
            print(
                f"{length >> 10:>5}KiB {without * 1e6:>8.1f}us {with_log * 1e6:>8.1f}us"
                f" {(with_log - without) * 1e6:>8.1f}us {with_log / without:>6.2f}"
            )


if __name__ == "__main__":
    main()
