"""Sixteen LUNs, three of them on bad storage: what the other thirteen and people notice of it."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence

from tests.soak.conftest import Record
from tests.vm.guest import ROOT
from tests.vm.lab import START, Lab, Lun, Storage, eventually

GOOD = 13
ROUNDS = 3  # pairs, each in another order
SECONDS = 15
RATE = 10  # commands a second a LUN: below what the machine can do, so that latency is the LUN's own
SETTINGS = "retry_interval=500ms;retry_max_interval=2s"
SMALL = "/run/isolation"


class Bad:
    """The three: one hangs, one fails for a second of two, one has no space left. Their writers never end."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        lab.guest.run("modprobe dm-flakey")
        self.hung = lab.export(lab.storage("hung", 32), SETTINGS)
        self.flapping = lab.export(lab.storage("flap", 32), SETTINGS)
        self._disk = lab.storage("small", 48)
        lab.guest.run(
            f"mkdir -p {SMALL} && mkfs.ext4 -q -F -m 0 -O ^has_journal {self._disk.path} && mount {self._disk.path}"
            f" {SMALL} && truncate -s 32M {SMALL}/lun.img"
        )
        self.full = lab.export(Storage(lab.guest, "full", 0, 32), SETTINGS, path=f"{SMALL}/lun.img")
        for lun in self.all:
            lun.loop_back()
            # The initiator aborts nothing: what it does by itself is not what is measured.
            lab.guest.run(f"echo 3000 > /sys/block/{lun.disk.removeprefix('/dev/')}/device/timeout")

    @property
    def all(self) -> list[Lun]:
        return [self.hung, self.flapping, self.full]

    def begin(self) -> None:
        storage = self.flapping.storage
        sectors, start = storage.size << 11, storage.start << 11
        self.hung.storage.hang()
        self._lab.guest.run(
            f"dmsetup suspend --noflush --nolockfs {storage.name} && dmsetup load {storage.name} --table"
            f" '0 {sectors} flakey {storage.disk} {start} 1 1' && dmsetup resume {storage.name};"
            f" dd if=/dev/zero of={SMALL}/ballast bs=64k status=none; sync -f {SMALL}"
        )
        for lun in self.all:
            self._lab.guest.start(_fio(lun.name, [lun.disk], 600, "--iodepth=8 --ioengine=libaio"), f"{lun.name}.json")
        eventually(lambda: self.hung.status()["in_flight"] >= 8, 60, "I/O that hangs")
        eventually(lambda: self.full.status()["held"] >= 8, 60, "writes without space")

    def end(self) -> None:
        self.hung.storage.go_on()
        self.flapping.storage.back()
        self._lab.guest.run(f"rm -f {SMALL}/ballast; sync -f {SMALL}; pkill -INT -f 'name=(hung|flap|full)'; true")
        for lun in self.all:
            self._lab.call("queue", "retry", lun.name)
        eventually(lambda: not self._lab.guest.look("pgrep -f 'name=(hung|flap|full)'"), 90, "the end of their writers")
        eventually(lambda: not any(lun.status()["held"] for lun in self.all), 60, "nothing held")


def _fio(name: str, disks: Sequence[str], seconds: int, options: str) -> str:
    jobs = " ".join(f"--name={name} --filename={disk}" for disk in disks)
    return (
        f"fio --direct=1 --rw=randwrite --bs=4k --size=24M --time_based --runtime={seconds} --randrepeat=0"
        f" --output-format=json --thread --group_reporting {options} {jobs}"
    )


def measure(
    lab: Lab, name: str, disks: Sequence[str], luns: Sequence[str], options: str
) -> tuple[float, float, float, list[float]]:
    """Commands a second, mean and 99th percentile of latency in ms, and D-Bus's answers in ms, of one run."""
    lab.guest.start(
        [sys.executable, "-m", "tests.soak.asking", str(SECONDS), *luns], f"{name}.asked", PYTHONPATH=str(ROOT)
    )
    eventually(lambda: lab.log(f"{name}.asked").startswith("ready"), START, "who asks")
    out = lab.guest.run(_fio("good", disks, SECONDS, options), timeout=SECONDS + 120).out
    write = json.loads(out[out.index("{") :])["jobs"][0]["write"]
    eventually(lambda: lab.log(f"{name}.asked").strip().endswith("]"), 60, "what D-Bus answered")
    asked = json.loads(lab.log(f"{name}.asked").strip().splitlines()[-1])
    return write["iops"], write["clat_ns"]["mean"] / 1e6, write["clat_ns"]["percentile"]["99.000000"] / 1e6, asked


def test_sixteen_luns(lab: Lab, record: Record) -> None:
    """16 LUNs, one hangs, one flaps, one is full: the others' rate and latency with and without, D-Bus's answers."""
    bad = Bad(lab)
    good = [lab.export(lab.storage(f"good{number}", 32), SETTINGS) for number in range(GOOD)]
    for lun in good:
        lun.loop_back()
    disks = [lun.disk for lun in good]
    names = [lun.name for lun in good[:2]] + [lun.name for lun in bad.all]
    modes = {"paced": f"--rate_iops={RATE} --iodepth=1", "full": "--iodepth=4 --ioengine=libaio"}
    seen: dict[tuple[str, bool], list[tuple[float, float, float, list[float]]]] = {}
    for number in range(ROUNDS):  # the order changes, since an emulated machine is slower in one minute than the next
        for ill in (False, True) if number % 2 else (True, False):
            if ill:
                bad.begin()
            for mode, options in modes.items():
                shown = measure(lab, f"{mode}-{number}-{ill}", disks, names, options)
                seen.setdefault((mode, ill), []).append(shown)
                print(time.strftime("%T"), number, mode, "with" if ill else "without", *(f"{x:.2f}" for x in shown[:3]),  # noqa: T201
                      "bus", len(shown[3]), _p(shown[3], 50), _p(shown[3], 99), max(shown[3]), flush=True)  # fmt: skip
            if ill:
                bad.end()

    def ratio(mode: str, which: int) -> float:
        pairs = zip(seen[mode, True], seen[mode, False], strict=True)
        return statistics.median(float(one[which]) / float(other[which]) for one, other in pairs)  # type: ignore[arg-type]

    answers = {ill: [each for run in seen["paced", ill] for each in run[3]] for ill in (False, True)}
    loaded = [each for run in seen["full", True] for each in run[3]]
    record(
        rate=f"× {ratio('full', 0):.2f} at full speed, × {ratio('paced', 0):.2f} at {RATE * GOOD} commands/s",
        latency=f"mean × {ratio('paced', 1):.2f}, p99 × {ratio('paced', 2):.2f} at {RATE * GOOD} commands/s",
        d_bus=f"p50 {_p(answers[True], 50)} ms, p99 {_p(answers[True], 99)} ms, longest {max(answers[True])} ms of"
        f" {len(answers[True])} with them (without: {_p(answers[False], 50)}, {_p(answers[False], 99)},"
        f" {max(answers[False])}); at full speed p50 {_p(loaded, 50)} ms, p99 {_p(loaded, 99)} ms",
    )
    assert ratio("full", 0) > 0.8
    assert ratio("paced", 0) > 0.98
    assert _p(answers[True], 50) < 100


def _p(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]
