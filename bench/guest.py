"""One guest, all candidates at once: fio through tcm_loop and through iSCSI, in turns of a second.

A machine that emulates its guests is twice as fast in one second as in the next. So nothing here is compared over
time: one fio runs all turns of a load, in each turn every candidate meets it once, one right after the other, and the
ratio is taken within the turn. Two guests differ too, by up to a third of a ratio, so what has a gate is measured in
two. Beside fio's numbers stands what the handler's process cost: CPU and voluntary context switches a command.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.conformance.luns import RUNNER_UNPACKED, unpacked_runner
from tests.vm.guest import Guest, GuestError
from tests.vm.guest import kernel as guest_kernel
from tests.vm.lab import CORE, LOOPBACK, Lab, Lun, Storage, eventually

SIZE = 96  # MiB of a LUN
LONGER = 3  # times a turn
TARGET = "/sys/kernel/config/target"
FILES = "/run/bench"
# Not brd: in Linux 6.1 that takes no request that must not wait, and io_uring would need a thread for each of ours.
# Not null_blk: it takes 124 KiB at once, so a command of 256 KiB would be three of the storage's.
DEVICE = "ext4 over a disk in memory (scsi_debug, volatile cache, FUA)"
WRITETHROUGH, WRITEBACK, RUNNER = "ours, writethrough", "ours, writeback", "tcmu-runner"
FILEIO, BUFFERED = "LIO fileio, O_DSYNC", "LIO fileio, buffered"
IBLOCK, OURS_BRD = "LIO iblock on brd", "ours on brd"
BARE, CACHED = "no target, O_DIRECT", "no target, page cache"
LOOK = """#!/bin/sh
# Of a process's threads: voluntary switches and ns of CPU.
grep -h ^voluntary /proc/$1/task/*/status
cat /proc/$1/task/*/schedstat
"""


@dataclass(frozen=True)
class Load:
    """What fio does. size: bytes of a command. luns: so many at once, each with this depth."""

    pattern: str
    size: int
    depth: int
    luns: int = 1

    @property
    def name(self) -> str:
        words = {"randread": "random read", "randwrite": "random write", "randrw": "random mixed",
                 "read": "sequential read", "write": "sequential write"}  # fmt: skip
        text = f"{self.size >> 10} KiB {words[self.pattern]}, QD {self.depth}"
        return text if self.luns == 1 else f"{text}, {self.luns} LUNs"

    @property
    def options(self) -> tuple[str, ...]:
        """fio's, of each job: as lines of a job file, or after `--`."""
        mixed = ("rwmixread=70",) if self.pattern == "randrw" else ()
        depth = (f"iodepth={self.depth}", f"iodepth_batch_complete_max={self.depth}")
        always = ("ioengine=libaio", "norandommap", "gtod_reduce=1", "thread", "time_based")
        return (f"rw={self.pattern}", *mixed, f"bs={self.size}", *depth, *always)


GATES = (
    Load("randread", 4096, 1),
    Load("randwrite", 4096, 1),
    Load("randread", 4096, 32),
    Load("randwrite", 4096, 32),
    Load("read", 256 << 10, 8),
    Load("write", 256 << 10, 8),
)
MATRIX = (
    *(Load(pattern, 4096, depth) for depth in (8, 128) for pattern in ("randread", "randwrite")),
    *(Load("randrw", 4096, depth) for depth in (1, 8, 32, 128)),
    *(Load(pattern, 256 << 10, 1) for pattern in ("read", "write")),
    *(Load("randread", 4096, 32, luns) for luns in (4, 16)),
)
TARGETS = (WRITETHROUGH, WRITEBACK, RUNNER, FILEIO, BUFFERED, OURS_BRD, IBLOCK)
ALL = (*TARGETS, BARE, CACHED)
LOOP, ISCSI = "tcm_loop", "iSCSI"
SECONDS, BEFORE = 0.5, 0.3  # of a turn: what counts, and what goes before it, while a new thread is half as fast


@dataclass(frozen=True)
class Part:
    """What is measured together. turns: in each of the guests, which follow each other."""

    paths: tuple[str, ...]
    loads: tuple[Load, ...]
    names: tuple[str, ...]
    guests: int
    turns: int

    @property
    def luns(self) -> int:
        return max(load.luns for load in self.loads)


PARTS = {
    "guest": Part((LOOP,), GATES, ALL, 2, 6),
    "iscsi": Part((ISCSI,), GATES, TARGETS, 2, 6),
    "matrix": Part((LOOP, ISCSI), MATRIX, TARGETS, 1, 4),
}


@dataclass(frozen=True)
class Row:
    """One candidate under one load. cpu: µs of the handler a command; switches: voluntary, a command."""

    path: str
    load: str
    candidate: str
    iops: list[float]  # of each turn
    cpu: float | None = None
    switches: float | None = None

    def beside(self, other: Row) -> Row:
        """Both guests' turns; of what the longer turns found, the mean."""
        mine, theirs = len(self.iops), len(other.iops)

        def mean(one: float | None, two: float | None) -> float | None:
            return None if one is None or two is None else (one * mine + two * theirs) / (mine + theirs)

        return Row(
            self.path, self.load, self.candidate, self.iops + other.iops,
            mean(self.cpu, other.cpu), mean(self.switches, other.switches),
        )  # fmt: skip


@dataclass
class Candidate:
    """Disks of one kind, by path; `pid` of the process that serves them, `iqns` of their targets.

    direct: whether fio is to pass the page cache.
    """

    name: str
    pid: int = 0
    iqns: list[str] = field(default_factory=list)
    disks: dict[str, list[str]] = field(default_factory=dict)
    direct: bool = True

    @property
    def slug(self) -> str:
        """For a file's name."""
        return "".join(filter(str.isalnum, self.name))


class Bench:
    """The guest with its LUNs."""

    def __init__(self, guest: Guest, luns: int) -> None:
        self.guest = guest
        self.lab = Lab(guest)
        self.luns = luns
        self._loops = 0
        self.candidates: dict[str, Candidate] = {}

    def up(self) -> None:
        """All candidates, over tcm_loop; by iSCSI they come as soon as they are wanted."""
        self.lab.up()
        room = (3 * self.luns + 2) * SIZE + 128
        self.guest.run(
            f"modprobe brd rd_nr=2 rd_size={SIZE << 10} &&"
            f" modprobe scsi_debug dev_size_mb={room} sector_size=4096 delay=0 clustering=1 submit_queues=2",
            timeout=300,
        )
        disk = self._appears("/sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block", "the disk in memory")
        self.guest.run(
            f"set -e; mkfs.ext4 -q -E nodiscard {disk}; mkdir -p {FILES}; mount -o noatime {disk} {FILES};"
            f" for f in bare {{wt,wb,peer}}{{0..{self.luns - 1}}}; do"
            f" dd if=/dev/zero of={FILES}/$f bs=1M count={SIZE} status=none; done; sync;"
            " echo 0 > /proc/sys/vm/dirty_writeback_centisecs",  # or the page cache's writes would be the others' time
            timeout=900,
        )
        modules = "target_core_file target_core_iblock"
        self.guest.run(f"modprobe -a {modules}; mkdir -p $(cat {TARGET}/dbroot)/pr")
        self._ours(WRITETHROUGH, "wt", [f"{FILES}/wt{n}" for n in range(self.luns)], "")
        self._ours(WRITEBACK, "wb", [f"{FILES}/wb{n}" for n in range(self.luns)], "cache=writeback")
        self._ours(OURS_BRD, "brd", ["/dev/ram0"], "")
        self._peers()
        for name, direct in ((BARE, True), (CACHED, False)):
            self.candidates[name] = Candidate(name, disks={LOOP: [f"{FILES}/bare"]}, direct=direct)

    def close(self) -> None:
        self.guest.close()

    # ---- LUNs

    def _ours(self, name: str, prefix: str, paths: list[str], settings: str) -> None:
        candidate = self.candidates[name] = Candidate(name, self.lab.daemon)
        for number, path in enumerate(paths):
            storage = Storage(self.guest, f"{prefix}{number}", 0, SIZE)
            lun = self.lab.export(storage, settings, "--size", f"{SIZE}M", path=path)
            candidate.disks.setdefault(LOOP, []).append(self._loop(f"{CORE}/user_*/{lun.name}"))
            candidate.iqns.append(lun.iqn)

    def _peers(self) -> None:
        """LIO's own on the file that tcmu-runner has too, and on a RAM disk; one is idle while another runs."""
        for number in range(self.luns):
            path = f"fd_dev_name={FILES}/peer{number},fd_dev_size={SIZE << 20}"
            for base, name, more in ((0, FILEIO, ""), (50, BUFFERED, ",fd_buffered_io=1")):
                store = f"{CORE}/fileio_{base + number}/file{base + number}"
                self._make(store, path + more)
                self._add(name, store, number)
        store = f"{CORE}/iblock_0/brd"
        self._make(store, "udev_path=/dev/ram1")
        self._add(IBLOCK, store, 0)
        pid = self._start_runner()
        for number in range(self.luns):
            store = f"{CORE}/user_{90 + number}/runner{number}"
            path = f"dev_config=qcow/{FILES}/peer{number},dev_size={SIZE << 20},cmd_time_out=0"
            self._make(store, path)
            self._add(RUNNER, store, number, pid)

    def _make(self, store: str, control: str) -> None:
        self.guest.run(
            f"mkdir -p {store} && echo {control} > {store}/control && echo 1 > {store}/enable &&"
            f" cat /proc/sys/kernel/random/uuid > {store}/wwn/vpd_unit_serial"
        )

    def _add(self, name: str, store: str, number: int, pid: int = 0) -> None:
        candidate = self.candidates.setdefault(name, Candidate(name, pid))
        candidate.disks.setdefault(LOOP, []).append(self._loop(store))
        candidate.iqns.append(self._target(store))

    def _loop(self, store: str) -> str:
        number, self._loops = self._loops, self._loops + 1
        group = f"{LOOPBACK}/naa.5001405{number:09x}/tpgt_1"
        self.guest.run(
            f"mkdir -p {group} && echo naa.60014059{number:08x} > {group}/nexus && mkdir {group}/lun/lun_0 &&"
            f" ln -s {store} {group}/lun/lun_0/lun"
        )
        return self._appears(f"/sys/bus/scsi/devices/$(cat {group}/address):0/block", f"a disk of {store}")

    def _target(self, store: str) -> str:
        iqn = f"iqn.2026-11.org.example:{store.rpartition('/')[2]}"
        group = f"{TARGET}/iscsi/{iqn}/tpgt_1"
        attributes = "authentication=0 generate_node_acls=1 cache_dynamic_acls=1 demo_mode_write_protect=0"
        attributes += " default_cmdsn_depth=512"
        self.guest.run(
            f"mkdir -p {group}/lun/lun_0 && ln -s {store} {group}/lun/lun_0/link &&"
            f" for a in {attributes}; do echo ${{a#*=}} > {group}/attrib/${{a%=*}}; done;"
            f" mkdir -p {group}/np/0.0.0.0:3260 && echo 1 > {group}/enable"
        )
        return iqn

    def _login(self, iqn: str) -> str:
        storage = Storage(self.guest, iqn, 0, SIZE)
        return self._quiet(Lun(self.lab, iqn, storage, iqn).login())

    def _appears(self, where: str, what: str) -> str:
        """The disk that a SCSI device gets a moment after it is made. where: its directory in sysfs."""
        disk = eventually(lambda: self.guest.look(f"ls {where}"), 30, what)
        return self._quiet(f"/dev/{disk}")

    def _quiet(self, disk: str) -> str:
        """The target is measured, not the initiator's I/O scheduler."""
        self.guest.run(f"echo none > /sys/block/{disk.removeprefix('/dev/')}/queue/scheduler")
        return disk

    def _start_runner(self) -> int:
        """Debian's, with its raw files (the qcow handler), on a bus of its own: on the system bus its name is ours.

        It is started when all LUNs of ours are there, for it refuses those of others.
        """
        library = unpacked_runner() / RUNNER_UNPACKED
        handlers, bus = "/run/handlers", "unix:path=/run/runner.bus"
        self.guest.run(
            f"mkdir -p {handlers} /etc/tcmu && cp {library}/tcmu-runner/handler_qcow.so {handlers} &&"
            f" cp {unpacked_runner()}/etc/tcmu/tcmu.conf /etc/tcmu/ &&"
            f" dbus-daemon --session --address={bus} --fork"
        )
        pid = self.guest.start(
            f"exec {unpacked_runner()}/usr/bin/tcmu-runner --handler-path {handlers}", "tcmu-runner.log",
            LD_LIBRARY_PATH=str(library), DBUS_SYSTEM_BUS_ADDRESS=bus,
        )  # fmt: skip
        names = f"dbus-send --bus={bus} --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames"
        eventually(lambda: "org.kernel.TCMUService1" in self.guest.look(names), 60, "tcmu-runner on its bus")
        return pid

    # ---- measuring

    def turns(self, path: str, load: Load, names: Sequence[str], turns: int, seconds: float) -> list[Row]:
        """All that have enough disks for the load; a last, longer turn finds what it costs.

        Raises GuestError where an I/O fails.
        """
        candidates = [self.candidates[name] for name in names]
        for candidate in candidates:
            disks = candidate.disks.setdefault(path, [])
            if path == ISCSI and len(candidate.iqns) >= load.luns:
                disks += [self._login(iqn) for iqn in candidate.iqns[len(disks) : load.luns]]
        candidates = [each for each in candidates if len(each.disks[path]) >= load.luns]
        here = self.guest.shared / "fio"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        (here / "look").write_text(LOOK)
        (here / "look").chmod(0o755)
        order = [each for turn in range(turns) for each in random.Random(turn).sample(candidates, len(candidates))]
        short = "".join(_jobs(str(place), path, load, each) for place, each in enumerate(order))
        (here / "jobs").write_text(
            "[global]\n"
            + "".join(f"{option}\n" for option in load.options)
            + f"ramp_time={BEFORE * 1000:.0f}ms\nruntime={seconds * 1000:.0f}ms\n{short}"
            + "".join(_jobs("cost", path, load, each, seconds * LONGER) for each in candidates)
        )
        spent = (turns + LONGER) * seconds + turns * (1 + BEFORE) + 10
        self.guest.run(f"cd {here} && fio --output-format=json --output=told jobs", timeout=3 * len(candidates) * spent)
        told = (here / "told").read_text()
        jobs = json.loads(told[told.index("{") :])["jobs"]
        if any(job["error"] for job in jobs):
            raise GuestError(f"fio, {load.name}: {told[: told.index('{')]}")
        played = [jobs[first : first + load.luns] for first in range(0, len(jobs), load.luns)]
        rows = []
        for candidate in candidates:
            *mine, long = (turn for turn, each in zip(played, order + candidates, strict=True) if each is candidate)
            iops = [sum(job[side]["iops"] for job in turn for side in ("read", "write")) for turn in mine]
            cost = _cost(here, candidate, long) if candidate.pid else ()
            rows.append(Row(path, load.name, candidate.name, iops, *cost))
        return rows


def _jobs(turn: str, path: str, load: Load, candidate: Candidate, seconds: float | None = None) -> str:
    """One turn, in fio's words. seconds: longer, with a look before and after."""
    lines = ""
    for number, disk in enumerate(candidate.disks[path][: load.luns]):
        lines += f"[{turn}-{candidate.slug}{number or ''}]\nfilename={disk}\ndirect={candidate.direct:d}\n"
        lines += "" if number else "stonewall\n"
        if seconds is not None:
            lines += f"ramp_time=0\nruntime={seconds * 1000:.0f}ms\n"
        if seconds is not None and candidate.pid and not number:
            lines += "".join(f"exec_{when}run=./look {candidate.pid}\n" for when in ("pre", "post"))
    return lines


def _cost(here: Path, candidate: Candidate, long: Sequence[dict[str, dict[str, int]]]) -> tuple[float, float]:
    """µs of CPU and voluntary switches of the handler, a command of the longer turn."""
    done = sum(job[side]["total_ios"] for job in long for side in ("read", "write"))
    looks = ((here / f"cost-{candidate.slug}.{when}run.txt").read_text() for when in ("pre", "post"))
    before, after = map(_counters, looks)
    return (after[0] - before[0]) / 1000 / done, (after[1] - before[1]) / done


def _counters(text: str) -> tuple[int, int]:
    """What LOOK wrote, of all threads: ns of CPU, voluntary switches."""
    lines = [line.split() for line in text.splitlines()]
    return sum(int(line[0]) for line in lines if len(line) == 3), sum(int(line[1]) for line in lines if len(line) == 2)


def measure(name: str) -> Iterator[dict[str, object]]:
    """Everything of one part, as JSON takes it, after each load. name: one of PARTS."""
    part = PARTS[name]
    runner = subprocess.check_output(
        ["dpkg-deb", "-f", next(unpacked_runner().glob("tcmu-runner_*.deb")), "Version"], text=True
    ).strip()
    rows: dict[tuple[str, str, str], Row] = {}
    for number in range(1, part.guests + 1):
        print(f"  guest {number} of {part.guests} boots", file=sys.stderr, flush=True)
        guest = Guest(name="bench", memory="2G" if part.luns == 1 else "12G", disks=1)
        bench = Bench(guest, part.luns)
        try:
            bench.up()
            fio = guest.look("fio --version")
            for path, load in ((path, load) for path in part.paths for load in part.loads):
                print(f"  {path}, {load.name}", file=sys.stderr, flush=True)
                for row in bench.turns(path, load, part.names, part.turns, SECONDS):
                    key = row.path, row.load, row.candidate
                    rows[key] = rows[key].beside(row) if key in rows else row
                yield {
                    "kernel": guest_kernel().name.removeprefix("vmlinuz-"),
                    "runner": runner,
                    "fio": fio,
                    "files": DEVICE,
                    "guests": number,
                    "turns": part.turns,
                    "seconds": SECONDS,
                    "before": BEFORE,
                    "rows": [asdict(row) for row in rows.values()],
                }
        finally:
            bench.close()
