"""The long tests, in parts of at most an hour; what a part measured is kept, so that a run goes on where it ended.

usage: python -m tests.soak.parts [PART...]

Runs the parts that have not passed yet, or those that are named, and then writes the table of
docs/reliability.md from all results. Status 0 if nothing failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build/soak"
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- make soak writes from here -->\n", "<!-- to here -->\n"
LONGEST = 3600
PACKAGES = {
    "QEMU": "qemu-system-x86",
    "open-iscsi": "open-iscsi",
    "multipath-tools": "multipath-tools",
    "fio": "fio",
    "stress-ng": "stress-ng",
    "dbench": "dbench",
    "nfs-kernel-server": "nfs-kernel-server",
}


def names() -> list[str]:
    return sorted(path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py"))


def results() -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def passed(part: str) -> Path:
    """The mark of a part all of whose tests have passed."""
    return RESULTS / f"{part}.passed"


def run(part: str) -> bool:
    """One part in a process of its own, told of every minute."""
    log = RESULTS / f"{part}.log"
    passed(part).unlink(missing_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", f"tests/soak/test_{part}.py", "-s", "-o", "faulthandler_timeout=0"]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        while True:
            try:
                code = process.wait(60)
                break
            except subprocess.TimeoutExpired:
                minutes = (time.monotonic() - began) / 60
                print(f"  {part}: {minutes:.0f} min", flush=True)
                if minutes * 60 > LONGEST:
                    process.kill()
                    code = process.wait()
                    break
    seconds = time.monotonic() - began
    if not code:
        passed(part).touch()
    print(f"{part}: {'ok' if not code else f'FAILED, see {log}'} after {seconds:.0f} s", flush=True)
    return not code


def version(package: str) -> str:
    query = ["dpkg-query", "-W", "-f", "${Version}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout or "not installed"


def write() -> None:
    """The table, from all results; of a test that was not run here the row stays as it is."""
    found = results()
    if not found:
        return
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    here = tuple(f"| {result['part']} | {result['promise']} |" for result in found)
    kept = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith(("| part |", *here))]
    lines = ["| part | what | measured | date, length |", "|---|---|---|---|", *kept]
    for result in found:
        figures = result["figures"]
        assert isinstance(figures, dict)
        measured = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in figures.items())
        lines.append(
            f"| {result['part']} | {result['promise']} | {measured} | {result['date']}, {result['seconds']} s |"
        )
    versions = ", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items())
    kernels = ", ".join(sorted({str(result["kernel"]) for result in found}))
    lines += ["", f"Guest kernel: {kernels}. {versions}. Emulated (TCG), two cores.", ""]
    PAGE.write_text(f"{before}{BEGIN}{chr(10).join(lines)}{END}{after}")


def main() -> int:
    wanted = sys.argv[1:]
    if unknown := set(wanted) - set(names()):
        print(f"there is no part {', '.join(unknown)}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    good = True
    for part in wanted or names():
        if not wanted and passed(part).exists():
            print(f"{part}: has passed; `make soak PARTS={part}` runs it again")
            continue
        good = run(part) and good
    if results():
        write()
        print(f"{PAGE} has the table")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
