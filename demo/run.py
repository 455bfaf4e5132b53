"""The demo: one outage of 40 s, two LUNs, one that reports it and one that holds; a table and a picture.

usage: run.py [--here]

The story (story.py) runs in a guest with Debian's stock kernel, or with --here on this machine's own. Results go to
build/demo/. Exit status: 0 if the holding side saw no error, lost nothing and was never read-only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tests.vm.guest import Guest, GuestError  # noqa: E402

RESULTS = ROOT / "build/demo"
STORY = ROOT / "demo/story.py"
SCRATCH = 512 << 20
STORY_SECONDS = 600


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--here", action="store_true", help="on this machine's kernel instead of a guest's")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for old in RESULTS.iterdir():
        old.unlink()
    try:
        if options.here:
            tell_here()
        else:
            tell_in_guest()
    except GuestError as error:
        sys.exit(f"the demo could not run: {error}")
    story = json.loads((RESULTS / "story.json").read_text())
    sides = {name: Side(name, story) for name in story["sides"]}
    picture(story, sides)
    table(story, sides)
    good = sides["retry"].good
    print(f"\nPicture: {RESULTS / 'outage.png'}, also as .svg; data beside it.")
    if not good:
        print("The holding side saw an error; it must not.")
    return 0 if good else 1


def tell_in_guest() -> None:
    print("booting a guest with Debian's stock kernel (about 20 s without hardware virtualisation)", flush=True)
    guest = Guest("demo", shared=RESULTS)
    try:
        guest.run(
            f"cp {ROOT}/packaging/dbus/*.conf /etc/dbus-1/system.d/ &&"
            " { [ -S /run/dbus/system_bus_socket ] || dbus-daemon --system --fork; } && iscsid"
        )
        pid = guest.start(
            [sys.executable, str(STORY), str(RESULTS), "/dev/vda"],
            "story.log",
            PYTHONPATH=str(ROOT),
            PYTHONDONTWRITEBYTECODE="1",
        )
        follow(RESULTS / "story.log", lambda: guest.run(f"[ -d /proc/{pid} ]", check=False).code == 0)
    finally:
        guest.close()
    check()


def tell_here() -> None:
    for need, what in (
        (os.geteuid() == 0, "root"),
        (Path("/sys/module/target_core_user").exists() or modprobe("target_core_user"), "the module target_core_user"),
        (Path("/sys/module/iscsi_target_mod").exists() or modprobe("iscsi_target_mod"), "the module iscsi_target_mod"),
        (Path("/run/dbus/system_bus_socket").exists(), "a system bus"),
        (Path("/etc/dbus-1/system.d/org.tcmu.Retry1.conf").exists() or install_policy(), "the D-Bus policy"),
    ):
        if not need:
            raise GuestError(f"HERE=1 needs {what}; without HERE=1 the demo brings its own machine")
    with loop_device() as disk:
        subprocess.run([sys.executable, str(STORY), str(RESULTS), disk], check=True)
    check()


def modprobe(module: str) -> bool:
    return subprocess.run(["modprobe", module], check=False, capture_output=True).returncode == 0


def install_policy() -> bool:
    policy = (ROOT / "packaging/dbus/org.tcmu.Retry1.conf").read_text()
    Path("/etc/dbus-1/system.d/org.tcmu.Retry1.conf").write_text(policy)
    return True


@contextlib.contextmanager
def loop_device() -> Iterator[str]:
    scratch = RESULTS / "scratch.raw"
    with scratch.open("wb") as file:
        file.truncate(SCRATCH)
    disk = subprocess.run(
        ["losetup", "--find", "--show", str(scratch)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield disk
    finally:
        subprocess.run(["losetup", "--detach", disk], check=False)
        scratch.unlink()


def follow(log: Path, alive: Any) -> None:
    """Print the story as it is told."""
    until = time.monotonic() + STORY_SECONDS
    place = 0
    going = True
    while going:
        going = alive() and time.monotonic() < until
        text = log.read_bytes() if log.exists() else b""
        sys.stdout.write(text[place:].decode(errors="replace"))
        sys.stdout.flush()
        place = len(text)
        time.sleep(1)


def check() -> None:
    if not (RESULTS / "story.json").exists():
        raise GuestError(f"the story did not come to its end; see {RESULTS}/story.log and tcmu-retryd.log")


class Side:
    """What the writer on one LUN saw. Times in seconds."""

    def __init__(self, name: str, story: dict[str, Any]) -> None:
        self.name = name
        self.read_only = bool(story["sides"][name]["read_only"])
        self.lost = int(story["sides"][name]["lost"])
        lines = (RESULTS / f"writer-{name}.jsonl").read_text().splitlines()
        self.records = [json.loads(line) for line in lines]
        self.errors = sum(1 for record in self.records if record["error"])
        good = [record["t"] for record in self.records if not record["error"]]
        # From one success to the next: a writer that only gets errors is pausing too.
        self.pause = max(
            (later - earlier for earlier, later in zip([story["start"], *good], good, strict=False)), default=0.0
        )
        self.resumed = next((moment - story["back"] for moment in good if moment > story["back"]), None)

    @property
    def good(self) -> bool:
        return not self.errors and not self.lost and not self.read_only and self.resumed is not None


def table(story: dict[str, Any], sides: dict[str, Side]) -> None:
    shown = Table(title=f"One outage of {story['back'] - story['cut']:.0f} s, as the writer on each LUN saw it")
    shown.add_column("")
    for name in sides:
        shown.add_column(name, justify="right")
    rows = {
        "I/O errors": lambda side: str(side.errors),
        "file system read-only": lambda side: "yes" if side.read_only else "no",
        "writes lost": lambda side: str(side.lost),
        "records written": lambda side: str(sum(1 for record in side.records if not record["error"])),
        "longest pause": lambda side: f"{side.pause:.1f} s",
        "resumed after": lambda side: "never" if side.resumed is None else f"{side.resumed:.1f} s",
    }
    for title, cell in rows.items():
        shown.add_row(title, *(cell(side) for side in sides.values()))
    Console().print(shown)


def picture(story: dict[str, Any], sides: dict[str, Side]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    start = story["start"]
    samples = [json.loads(line) for line in (RESULTS / "samples.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(2, len(sides), sharex=True, sharey="row", figsize=(11, 5.5), squeeze=False)
    for column, side in enumerate(sides.values()):
        speed, held = axes[0][column], axes[1][column]
        for axis in (speed, held):
            axis.axvspan(story["cut"] - start, story["back"] - start, color="#f3c6c0", label="storage away")
            axis.grid(alpha=0.3)
        seconds = range(int(story["end"] - start) + 1)
        written = [0] * len(seconds)
        for record in side.records:
            second = int(record["t"] - start)
            if not record["error"] and 0 <= second < len(written):
                written[second] += 1
        speed.step(seconds, written, where="post", color="#2a6f97", label="records a second, each with fsync")
        errors = [record["t"] - start for record in side.records if record["error"]]
        if errors:
            speed.plot(
                errors, [0] * len(errors), "x", color="#9d0208", label=f"I/O error ({len(errors)})", clip_on=False
            )
        verdict = "read-only after it" if side.read_only else "goes on"
        speed.set_title(f"{side.name}: {side.errors} errors, {verdict}")
        speed.legend(loc="upper right", fontsize=8)
        speed.set_ylim(top=1.45 * max([30, *written]))  # room for the legend
        own = [sample for sample in samples if sample["name"] == f"demo-{side.name}"]
        held.step(
            [sample["t"] - start for sample in own], [sample["held"] for sample in own], where="post", color="#6a4c93"
        )
        held.set_xlabel("seconds")
    axes[0][0].set_ylabel("records / s")
    axes[1][0].set_ylabel("held commands")
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(RESULTS / f"outage.{kind}", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
