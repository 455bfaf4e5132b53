"""A private bus, a daemon on it whose kernel is simulated, and the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SIZE = 8 << 20


@dataclass
class Result:
    code: int
    out: str
    err: str


@dataclass
class World:
    """One daemon on one bus. Storage is a file whose I/O fails with EIO while `away` exists."""

    address: str
    directory: Path
    daemon: subprocess.Popen[str]
    hung: bool = False  # the test makes a pump leave I/O behind

    def call(self, *arguments: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "tcmu_retry.cli.main", *arguments],
            env={**os.environ, "TCMU_RETRY_BUS_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def cli(self, *arguments: str) -> str:
        result = self.call(*arguments)
        assert result.code == 0, result
        return result.out

    def json(self, *arguments: str) -> dict[str, Any]:
        return self.json_of(Result(0, self.cli("--json", *arguments), ""))

    @staticmethod
    def json_of(result: Result) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(result.out)
        return answer

    def wait(self) -> None:
        """For the daemon to answer."""
        until = time.monotonic() + 60
        while self.call("device", "list").code:
            assert time.monotonic() < until
            assert self.daemon.poll() is None, self.said()

    def stop(self) -> None:
        assert self.daemon.stdin is not None
        assert self.daemon.stdout is not None
        self.daemon.stdin.close()
        self.daemon.wait(timeout=20)
        self.daemon.stdout.close()

    def restart(self) -> None:
        """Another daemon with the same configuration and state; its kernel has no LUN."""
        self.stop()
        self.daemon = start(self.address, self.directory)
        self.wait()

    @property
    def away(self) -> Path:
        return self.directory / "away"

    def lun(self, name: str, settings: str = "") -> str:
        path = self.directory / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(SIZE)
        fault = f"error.errno=EIO;error.while_file={self.away}"
        self.cli("export", name, ";".join(filter(None, [str(path), fault, settings])), "--any-initiator")
        return name

    def ask(self, **request: object) -> dict[str, Any]:
        assert self.daemon.stdin is not None
        assert self.daemon.stdout is not None
        self.daemon.stdin.write(json.dumps(request) + "\n")
        self.daemon.stdin.flush()
        answer: dict[str, Any] = json.loads(self.daemon.stdout.readline())
        return answer

    def write(self, lun: str, lba: int, text: str = "text") -> int:
        return int(self.ask(lun=lun, write=lba, text=text)["number"])

    def read(self, lun: str, lba: int) -> int:
        return int(self.ask(lun=lun, read=lba)["number"])

    def resize(self, lun: str, size: int) -> str:
        """As `set attribute dev_size`; why not, or ""."""
        return str(self.ask(lun=lun, resize=size)["problem"])

    def status(self, number: int, timeout: float) -> int | None:
        """What a command was answered; None if it was not, in so many seconds."""
        status: int | None = self.ask(wait=number, timeout=timeout)["status"]
        return status

    def said(self) -> str:
        """The daemon's log."""
        return (self.directory / "daemon.log").read_text()

    def held(self, lun: str, count: int) -> list[dict[str, Any]]:
        """The held commands, once there are so many."""
        until = time.monotonic() + 10
        while len(held := self.json("queue", "list", lun)["held"]) != count:
            assert time.monotonic() < until, held
        return list(held)

    def sampled(self, lun: str, count: int) -> None:
        """Wait until the curve of an outage has so many samples, of which one comes a second."""
        until = time.monotonic() + 30
        while len(samples := self.json("history", lun)["samples"]) < count:
            assert time.monotonic() < until, samples


# As the session bus, but for everybody: the tests also call as a user without rights.
BUS = """<busconfig>
  <type>session</type>
  <listen>unix:tmpdir=/tmp</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
"""


@pytest.fixture(scope="session")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = tmp_path_factory.mktemp("bus") / "bus.conf"
    config.write_text(BUS)
    process = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.fixture
def world(bus: str, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "etc").mkdir()
    made = World(bus, tmp_path, start(bus, tmp_path))
    made.wait()
    yield made
    made.stop()
    assert "Traceback" not in made.said()
    assert made.hung or "did not return" not in made.said()


def start(bus: str, directory: Path) -> subprocess.Popen[str]:
    with (directory / "daemon.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, str(HERE / "simulated_daemon.py"), bus, str(directory / "etc"), str(directory / "state")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
