"""The story, told on a machine with TCMU, LIO, open-iscsi and a running system bus: one outage, two LUNs.

usage: story.py RESULTS DISK [--before S] [--outage S] [--after S]

DISK is a scratch block device of at least 512 MiB; both LUNs live on it, each on a dm device that is switched to
`error` and back at the same moments. LUN `report` tells the initiator at once, LUN `retry` holds. On each: ext4, and a
writer that fsyncs every record. RESULTS gets story.json, samples.jsonl and the writers' logs; progress goes to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from writer import RECORD, record  # noqa: E402

from tcmu_retry.cli.client import Client  # noqa: E402

SIZE = 200 << 20
POLICIES = {"report": "retry=false;fallback=report", "retry": "retry=true"}


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def run(*command: str, check: bool = True, quiet: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(
            f"`{' '.join(command)}` failed ({done.returncode}): {done.stderr.strip() or done.stdout.strip()}"
        )
    if done.stderr.strip() and not quiet and done.returncode:
        say(done.stderr.strip())
    return done.stdout


def control(*arguments: str, check: bool = True) -> str:
    return run(sys.executable, "-m", "tcmu_retry.cli.main", *arguments, check=check)


@dataclass
class Storage:
    """A dm device over a part of the scratch disk that can go away."""

    name: str
    disk: str
    start: int  # sectors

    @property
    def path(self) -> str:
        return f"/dev/mapper/{self.name}"

    def _table(self, target: str) -> None:
        run("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)
        run("dmsetup", "load", self.name, "--table", target)
        run("dmsetup", "resume", self.name)

    def make(self) -> None:
        run("dmsetup", "create", self.name, "--table", self._linear())
        run("dmsetup", "mknodes", self.name, check=False, quiet=True)

    def _linear(self) -> str:
        return f"0 {SIZE // 512} linear {self.disk} {self.start}"

    def cut(self) -> None:
        self._table(f"0 {SIZE // 512} error")

    def back(self) -> None:
        self._table(self._linear())

    def remove(self) -> None:
        run("dmsetup", "remove", "--retry", self.name, check=False, quiet=True)


@dataclass
class Side:
    """One LUN with its file system and writer."""

    name: str
    storage: Storage
    results: Path
    iqn: str = ""
    disk: str = ""

    @property
    def mount(self) -> Path:
        return Path(f"/run/tcmu-retry-demo/{self.name}")

    @property
    def log(self) -> Path:
        return self.results / f"writer-{self.name}.jsonl"

    def prepare(self) -> None:
        self.storage.make()
        made = json.loads(
            control(
                "--json", "export", f"demo-{self.name}", f"{self.storage.path};{POLICIES[self.name]}",
                "--portal", "127.0.0.1:3260", "--initiator", initiator(),
            )
        )  # fmt: skip
        self.iqn = made["export"]["iqn"]
        say(f"LUN {self.name}: {self.storage.path} exported as {self.iqn}")
        run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", "127.0.0.1:3260")
        run("iscsiadm", "-m", "node", "-T", self.iqn, "-p", "127.0.0.1:3260", "--login")
        self.disk = wait_for_disk(self.iqn)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.disk)
        self.mount.mkdir(parents=True, exist_ok=True)
        run("mount", self.disk, str(self.mount))
        say(f"LUN {self.name}: {self.disk} at the initiator, ext4 mounted")

    def write(self, seconds: float) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(HERE / "writer.py"), str(self.mount / "records"), str(self.log), str(seconds)]
        )

    def read_only(self) -> bool:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, _, options, *_ = line.split()
            if where == str(self.mount):
                return "ro" in options.split(",") or self._probe_fails()
        return True

    def _probe_fails(self) -> bool:
        try:
            (self.mount / "probe").write_text("writable\n")
        except OSError:
            return True
        return False

    def lost(self) -> int:
        """Records that fsync called written and that the medium, read past every cache, does not have."""
        acknowledged = [
            entry["n"] for entry in map(json.loads, self.log.read_text().splitlines()) if not entry["error"]
        ]
        run("umount", str(self.mount), check=False)
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        run("e2fsck", "-fy", self.disk, check=False)
        missing = len(acknowledged)
        if not subprocess.run(["mount", "-o", "ro", self.disk, str(self.mount)], check=False).returncode:
            with contextlib.suppress(OSError), (self.mount / "records").open("rb") as file:
                for number in acknowledged:
                    file.seek(number * RECORD)
                    missing -= file.read(RECORD) == record(number)
            run("umount", str(self.mount), check=False)
        return missing

    def tear_down(self) -> None:
        run("umount", "-l", str(self.mount), check=False, quiet=True)
        run("iscsiadm", "-m", "node", "-T", self.iqn, "-p", "127.0.0.1:3260", "--logout", check=False, quiet=True)
        control("unexport", f"demo-{self.name}", check=False)
        self.storage.remove()


def wait_for_disk(iqn: str) -> str:
    """The block device of a session; by sysfs, for there may be no udevd."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for session in Path("/sys/class/iscsi_session").glob("session*"):
            if (session / "targetname").read_text().strip() == iqn:
                for disk in session.glob("device/target*/*/block/*"):
                    if Path("/dev", disk.name).exists():
                        return f"/dev/{disk.name}"
        time.sleep(0.2)
    raise SystemExit(f"no disk of {iqn} appeared within 30 s")


def initiator() -> str:
    """This machine's name as an initiator."""
    for line in Path("/etc/iscsi/initiatorname.iscsi").read_text().splitlines():
        if line.startswith("InitiatorName="):
            return line.partition("=")[2].strip()
    raise SystemExit("/etc/iscsi/initiatorname.iscsi has no InitiatorName; is open-iscsi installed?")


def sample(results: Path, stop: threading.Event) -> None:
    """What the daemon says of both LUNs, once a second."""

    async def look() -> None:
        with (results / "samples.jsonl").open("w", buffering=1) as out:
            async with Client() as client:
                while not stop.is_set():
                    for name in POLICIES:
                        status = await client.device(f"demo-{name}", "GetStatus")
                        out.write(
                            json.dumps({"t": time.monotonic(), "name": status["name"], "held": status["held"]}) + "\n"
                        )
                    await asyncio.sleep(1)

    asyncio.run(look())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("disk")
    parser.add_argument("--before", type=float, default=15)
    parser.add_argument("--outage", type=float, default=40)
    parser.add_argument("--after", type=float, default=25)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    daemon = subprocess.Popen(
        [sys.executable, "-m", "tcmu_retry.retryd"], stderr=(options.results / "tcmu-retryd.log").open("w")
    )
    sides = [
        Side(name, Storage(f"demo-{name}", options.disk, 2048 + index * (SIZE // 512)), options.results)
        for index, name in enumerate(POLICIES)
    ]
    stop = threading.Event()
    sampler = threading.Thread(target=sample, args=(options.results, stop))
    try:
        wait_for_daemon(daemon)
        for side in sides:
            side.prepare()
        total = options.before + options.outage + options.after
        start = time.monotonic()
        sampler.start()
        writers = [side.write(total) for side in sides]
        say(f"both writers run; the storage goes away in {options.before:g} s")
        time.sleep(options.before)
        cut = time.monotonic()
        for side in sides:
            side.storage.cut()
        say(f"the storage of both LUNs answers every I/O with an error now, for {options.outage:g} s")
        while (left := cut + options.outage - time.monotonic()) > 0:
            time.sleep(min(10, left))
            say(f"{time.monotonic() - cut:3.0f} s into the outage")
        back = time.monotonic()
        for side in sides:
            side.storage.back()
        say("the storage is back")
        for side, writer in zip(sides, writers, strict=True):
            try:
                writer.wait(timeout=options.after + 60)
            except subprocess.TimeoutExpired:
                say(f"the writer on {side.name} never came back")
                writer.kill()
        stop.set()
        sampler.join()
        story = {"start": start, "cut": cut, "back": back, "end": time.monotonic(), "sides": {}}
        for side in sides:
            say(f"LUN {side.name}: looking for what was lost")
            story["sides"][side.name] = {"read_only": side.read_only(), "lost": side.lost()}  # type: ignore[index]
        (options.results / "story.json").write_text(json.dumps(story, indent=1))
    finally:
        stop.set()
        for side in sides:
            side.tear_down()
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(timeout=10)
    return 0


def wait_for_daemon(daemon: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while subprocess.run(
        [sys.executable, "-m", "tcmu_retry.cli.main", "device", "list"], capture_output=True, check=False
    ).returncode:
        if daemon.poll() is not None or time.monotonic() > until:
            raise SystemExit("tcmu-retryd did not come up; see tcmu-retryd.log")
        time.sleep(0.5)
    say("tcmu-retryd is up")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(HERE.parent))
    sys.exit(main())
