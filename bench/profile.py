"""What a guest's processors do under a load: their registers from QEMU's monitor, a hundred times a second.

A profiler in the guest would cost what it measures, and an emulated processor has no counters. Whether a processor is
halted and in which mode it runs is exact; the emulator brings RIP up to date at jumps out of a page, so what a sample
is called may be a neighbour within 4 KiB of code.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qemu.qmp import QMPClient

from bench.guest import BUFFERED, GATES, LOOP, OURS_BRD, RUNNER, WRITEBACK, WRITETHROUGH, Bench, Candidate, Load
from tests.vm.guest import Guest

NAMES = (WRITETHROUGH, WRITEBACK, OURS_BRD, RUNNER, BUFFERED)
AFTER, SECONDS, BETWEEN = 2.0, 5.0, 0.01
MOST = 5  # kernel functions that are named
IDLE, HANDLER, OTHERS, REST = "idle", "handler", "fio and others", "rest of the kernel"
# By the name of the function in the kernel, the first that fits.
KERNEL = {
    "copying": r"memcpy|memset|memmove|copy_(user|page|folio|to|from)|copyin|copyout|clear_page|_copy_|brd_do_bvec",
    "waiting for a lock": r"spin_lock_slowpath|spin_on_owner|osq_lock|rwsem_.*spin",
    "interrupts, timers": r"apic|send_IPI|hrtimer|clockevents|tick_|timer_|reschedule_interrupt|call_function",
    "scheduling": r"sched|pick_(next|task)|(en|de)queue_(task|entity)|try_to_wake|ttwu|psi_|switch|select_task_rq"
    r"|wake_up|update_(load|curr|rq|cfs|min)|(set|put)_(next|prev)|check_preempt|resched|worker|queue_work|process_one_work"
    r"|idle",
}
GROUPS = (IDLE, HANDLER, OTHERS, *KERNEL, REST)
REGISTERS = re.compile(r"RIP=([0-9a-f]+).*?CPL=(\d).*?HLT=(\d)", re.DOTALL)
Sample = tuple[int, bool, bool]  # RIP, in user mode, halted


async def _sample(monitor: Path) -> list[Sample]:
    client = QMPClient("bench")
    await client.connect(str(monitor))
    found: list[Sample] = []
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        text = await client.execute("human-monitor-command", {"command-line": "info registers -a"})
        found += [(int(rip, 16), level == "3", halted == "1") for rip, level, halted in REGISTERS.findall(str(text))]
        await asyncio.sleep(BETWEEN)
    await client.disconnect()
    return found


def symbols(text: str) -> Callable[[int], str]:
    """The function at an address, from the text of /proc/kallsyms."""
    fields = (line.split() for line in text.splitlines())
    table = sorted((int(address, 16), name) for address, kind, name, *_ in fields if kind in "tTwW")
    addresses = [address for address, _ in table]
    return lambda rip: table[bisect(addresses, rip) - 1][1]


def _ranges(maps: str) -> list[tuple[int, int]]:
    """What may be executed, from the text of /proc/PID/maps."""
    lines = (line.split() for line in maps.splitlines())
    spans = (fields[0].split("-") for fields in lines if "x" in fields[1])
    return [(int(first, 16), int(end, 16)) for first, end in spans]


def _row(
    load: Load, name: str, samples: list[Sample], handler: str, function: Callable[[int], str]
) -> dict[str, object]:
    ranges = _ranges(handler)
    groups: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for rip, user, halted in samples:
        if halted:
            groups[IDLE] += 1
        elif user:
            groups[HANDLER if any(first <= rip < end for first, end in ranges) else OTHERS] += 1
        else:
            here = function(rip)
            functions[here] += 1
            groups[next((group for group, names in KERNEL.items() if re.search(names, here)), REST)] += 1
    return {
        "load": load.name,
        "candidate": name,
        "samples": len(samples),
        "shares": {group: groups[group] / len(samples) for group in GROUPS},
        "most": [[each, count / len(samples)] for each, count in functions.most_common(MOST)],
    }


def _under(bench: Bench, load: Load, candidate: Candidate, monitor: Path) -> tuple[list[Sample], str]:
    """What was seen under the load, and what the handler has mapped."""
    options = (f"filename={candidate.disks[LOOP][0]}", "direct=1", *load.options, f"runtime={AFTER + SECONDS + 1:.0f}")
    fio = "fio --name=load " + " ".join(f"--{option}" for option in options)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bench.guest.run, fio)
        time.sleep(AFTER)
        samples = asyncio.run(_sample(monitor))
        running.result()
    return samples, bench.guest.look(f"cat /proc/{candidate.pid}/maps") if candidate.pid else ""


def measure() -> Iterator[dict[str, object]]:
    """All loads with a gate, after each what is known so far."""
    with tempfile.TemporaryDirectory() as directory:
        monitor = Path(directory, "monitor")
        guest = Guest(name="profile", memory="2G", disks=1, options=[f"-qmp unix:{monitor},server=on,wait=off"])
        bench = Bench(guest, 1)
        try:
            bench.up()
            function = symbols(guest.look("cat /proc/kallsyms"))
            rows: list[dict[str, object]] = []
            for number, load in enumerate(GATES, 1):
                print(f"  {load.name} ({number} of {len(GATES)})", file=sys.stderr, flush=True)
                for name in NAMES:
                    samples, maps = _under(bench, load, bench.candidates[name], monitor)
                    rows.append(_row(load, name, samples, maps, function))
                yield {"groups": GROUPS, "every": BETWEEN, "seconds": SECONDS, "rows": rows}
        finally:
            bench.close()
