"""`make fuzz`: atheris over a module's `check`, in parts that go on where the last one ended.

    python -m tests.fuzz commands|pumped RUNS

Ten seconds at most are missing from the counts. The corpus that a part found stays in build/fuzz; the tree has a small
one to begin with. Each part adds a line with its counts to build/fuzz/parts.log.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time

from tests.vm.guest import ROOT

CORPUS = ROOT / "build/fuzz"
SEEDS = ROOT / "tests/fuzz/corpus"
WORKER = "_FUZZ_WORKER"


def worker(target: str, runs: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["tcmu_retry.scsi", "tcmu_retry.pump"]):
        module = importlib.import_module(f"tests.fuzz.{target}")

    inputs = total = 0

    def one(data: bytes) -> None:
        nonlocal inputs, total
        total += module.check(data)
        inputs += 1
        if time.monotonic() > told[0] + 10:
            told[0] = time.monotonic()
            os.write(1, f"inputs {inputs} commands {total}\n".encode())

    told = [time.monotonic()]
    atheris.Setup(
        ["fuzz", f"-runs={runs}", "-max_len=1024", "-print_final_stats=1", str(CORPUS / target), str(SEEDS)], one
    )
    atheris.Fuzz()


def main() -> int:
    target, runs = sys.argv[1], int(sys.argv[2])
    if os.environ.get(WORKER):
        worker(target, runs)
        return 0
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz", target, str(runs)], cwd=ROOT, env={**os.environ, WORKER: "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    said, done, commands = "", 0, 0
    for line in process.stdout:
        sys.stdout.write(line)
        said = line if "ERROR" in line or "Exception" in line else said
        if line.startswith("inputs "):  # every ten seconds, so a part that was ended early counts too
            done, commands = int(line.split()[1]), int(line.split()[3])
    code = process.wait()
    seconds = time.monotonic() - began
    with (ROOT / "build/fuzz/parts.log").open("a") as log:
        counts = f"inputs {done} commands {commands} seconds {seconds:.0f}"
        log.write(f"{time.strftime('%F')} {target} {counts} exit {code} {said}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
