"""A program that fsyncs each record, in a guest, and what became of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.vm.guest import ROOT, Guest
from tests.vm.lab import eventually

WRITER = f"{ROOT}/demo/writer.py"


def uptime(guest: Guest) -> float:
    """CLOCK_MONOTONIC there, s."""
    return float(guest.run("cut -d' ' -f1 /proc/uptime").out)


@dataclass(eq=False)
class Writer:
    """demo/writer.py on a file system of its own on a disk."""

    guest: Guest
    name: str
    disk: str
    options: str = ""
    pid: int = 0

    @property
    def directory(self) -> str:
        return f"/run/written/{self.name}"

    def begin(self, make: str, seconds: float, size: str = "") -> None:
        """Make the file system by `make` (of `size`, or as large as the disk), mount it, write for so long."""
        mount = f"mkdir -p {self.directory} && mount {self.options} {self.disk} {self.directory}"
        self.guest.run(f"{make} {self.disk} {size} && {mount}", timeout=120)
        log = self.guest.shared / f"{self.name}.jsonl"
        self.pid = self.guest.start(
            [sys.executable, WRITER, f"{self.directory}/records", str(log), str(seconds)], self.name
        )

    @property
    def records(self) -> list[dict[str, object]]:
        """What it has logged by now: t (end, s), n, took (s), error."""
        log = self.guest.shared / f"{self.name}.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []

    def started(self) -> bool:
        return len(self.records) > 3

    def wrote_after(self, moment: float) -> bool:
        return any(float(str(record["t"])) > moment for record in self.records)

    def wait_wrote_after(self, moment: float, seconds: float) -> None:
        eventually(lambda: self.wrote_after(moment), seconds, f"{self.name} writes again")

    @property
    def errors(self) -> list[dict[str, object]]:
        return [record for record in self.records if record["error"]]

    @property
    def longest(self) -> float:
        """Seconds that its longest record took."""
        return max(float(str(record["took"])) for record in self.records)

    @property
    def writable(self) -> bool:
        return not self.guest.run(f"touch {self.directory}/probe", check=False).code

    def missing(self) -> list[int]:
        """Records that fsync said were written and that the disk does not have. Ends the writer."""
        self.stop()
        self.guest.run(f"umount {self.directory} && mount {self.options} {self.disk} {self.directory}", timeout=200)
        look = (
            "import json, sys; from pathlib import Path; from writer import RECORD, record\n"
            "entries = map(json.loads, Path(sys.argv[2]).read_text().splitlines())\n"
            "with open(sys.argv[1], 'rb') as file:\n"
            "    print([e['n'] for e in entries if not e['error']\n"
            "           and (file.seek(e['n'] * RECORD), file.read(RECORD))[1] != record(e['n'])])\n"
        )
        found = self.guest.run(
            [sys.executable, "-c", look, f"{self.directory}/records", str(self.guest.shared / f"{self.name}.jsonl")],
            timeout=200,
            PYTHONPATH=str(ROOT / "demo"),
        )
        missing: list[int] = json.loads(found.out)
        return missing

    def stop(self) -> None:
        """The program ends; it holds its file open no longer."""
        gone = f"while [ -e /proc/{self.pid} ]; do sleep 0.1; done"
        self.guest.run(f"kill {self.pid} && {gone}", check=False, timeout=120)

    def end(self) -> None:
        if self.pid:
            self.stop()
        self.guest.run(f"umount {self.directory}", check=False, timeout=120)


@contextmanager
def writers(*made: Writer) -> Iterator[None]:
    """Whatever the test did, they end and their file systems are unmounted."""
    try:
        yield
    finally:
        for each in made:
            each.end()
