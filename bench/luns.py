"""What a LUN costs that nobody uses: memory and idle CPU of a process with 1, 64 and 256 of them over simulated rings.

usage: python -m bench.luns
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tcmu_retry.daemon.api import ExportRequest
from tcmu_retry.daemon.config import Source
from tcmu_retry.daemon.simulation import Simulation

COUNTS = (1, 64, 256)
IDLE = 10.0  # seconds
SIZE = 1 << 20


def resident() -> int:
    """Private bytes of this process: what the simulated kernels share is not the daemon's."""
    return sum(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
        if line.startswith("Private_")
    )


async def story(count: int, directory: Path) -> dict[str, float]:
    simulation = Simulation(Source(directory / "etc"), directory / "state")
    before = resident()
    for number in range(count):
        path = directory / f"{number}.img"
        with path.open("wb") as file:
            file.truncate(SIZE)
        await simulation.export(ExportRequest(f"lun{number}", str(path), size=SIZE, any_initiator=True))
    await asyncio.sleep(2)
    memory = (resident() - before) / count
    began, first = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(IDLE)
    last, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    cpu = last.ru_utime + last.ru_stime - first.ru_utime - first.ru_stime
    await simulation.stop()
    return {"luns": count, "bytes": memory, "idle": cpu / took}


def measure() -> list[dict[str, float]]:
    """By count, each in a process of its own. bytes: memory a LUN; idle: share of one processor, of all LUNs."""
    results = []
    for count in COUNTS:
        out = subprocess.run([sys.executable, "-m", "bench.luns", str(count)], check=True, stdout=subprocess.PIPE)
        results.append(json.loads(out.stdout))
    return results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=".") as made:
        print(json.dumps(asyncio.run(story(int(sys.argv[1]), Path(made)))))
