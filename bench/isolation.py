"""Sixteen LUNs of a daemon whose kernel is simulated; three of them on bad storage in every other run.

One hangs, one fails for a second of two, one has no space for writes. What the other thirteen do, and how long
`GetStatus` takes over D-Bus. The simulator and its initiators are threads of the daemon's own process here.

usage: python -m bench.isolation
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tcmu_retry.dbus.names import DEVICE, device_path
from tests.dbus.caller import Caller, CallFailed

GOOD = [f"good{number}" for number in range(1, 14)]
BAD = ["hung", "flap", "full"]
ASKED = [*GOOD[:2], *BAD]
RATE = 50  # commands a second a LUN
SETTLED, SECONDS, PAIRS = 8, 20, 4


@dataclass(frozen=True)
class Run:
    """bad: with the three. rate: commands a second of a good LUN; answers: of D-Bus, ms, sorted."""

    bad: bool
    rate: float
    answers: list[float]


def script(bad: bool) -> str:
    lines = [f"lun {name} 16M retry_interval=500ms;retry_max_interval=2s" for name in (*GOOD, *BAD)]
    lines += [f"0s {name} load {RATE}" for name in (*GOOD, *BAD)]
    if bad:
        lines += ["1s hung delay 3600s", "1s full error ENOSPC write"]
        for second in range(1, SETTLED + SECONDS + 60, 2):
            lines += [f"{second}s flap error EIO", f"{second + 1}s flap ok"]
    return "\n".join(lines) + "\n"


@contextmanager
def bus() -> Iterator[str]:
    command = ["dbus-daemon", "--session", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def run(address: str, bad: bool, path: Path) -> Run:
    path.write_text(script(bad))
    command = [sys.executable, "-m", "tcmu_retry.retryd", "--bus", address, "--sim", str(path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon, Caller(address) as caller:
        try:
            _wait_served(caller)
            time.sleep(SETTLED)
            began, before, answers = time.monotonic(), _done(caller), []
            while time.monotonic() < began + SECONDS:
                for name in ASKED:
                    asked = time.monotonic()
                    caller.call(device_path(name), DEVICE, "GetStatus")
                    answers.append(round((time.monotonic() - asked) * 1000, 2))
                    time.sleep(0.05)
            rate = (_done(caller) - before) / (time.monotonic() - began) / len(GOOD)
        finally:
            daemon.terminate()
    return Run(bad, rate, sorted(answers))


def _wait_served(caller: Caller) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            caller.call(device_path(BAD[-1]), DEVICE, "GetStatus")
            return
        except CallFailed:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _done(caller: Caller) -> int:
    told = [caller.call(device_path(name), DEVICE, "GetStatistics") for name in GOOD]
    return sum(each["reads"] + each["writes"] for each in told)


def measure() -> list[dict[str, object]]:
    """By turns, the order changing: each pair's runs are neighbours."""
    order = [bad for number in range(PAIRS) for bad in ((False, True) if number % 2 else (True, False))]
    with tempfile.TemporaryDirectory() as directory, bus() as address:
        return [asdict(run(address, bad, Path(directory) / "script")) for bad in order]


if __name__ == "__main__":
    print(json.dumps(measure()))
