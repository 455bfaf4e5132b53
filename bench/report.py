"""docs/performance.md and its picture, from what was measured: no number in the page is written by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from bench.guest import ALL, BARE, BUFFERED, CACHED, FILEIO, GATES, IBLOCK, OURS_BRD, RUNNER, WRITEBACK, WRITETHROUGH

mpl.use("Agg")
from matplotlib import pyplot as plt

Rows = dict[tuple[str, str], dict[str, dict[str, Any]]]
ENOUGH = 12  # turns
OVER_FILES = (WRITETHROUGH, WRITEBACK)


def rows(found: Iterable[dict[str, Any]]) -> Rows:
    """By path and load, then by candidate."""
    table: Rows = {}
    for row in found:
        table.setdefault((row["path"], row["load"]), {})[row["candidate"]] = row
    return table


def ratios(row: Mapping[str, dict[str, Any]], one: str, other: str) -> list[float]:
    """Within each turn."""
    if one not in row or other not in row:
        return []
    return [a / b for a, b in zip(row[one]["iops"], row[other]["iops"], strict=True)]


def _cell(found: list[float], gate: float | None = None) -> str:
    """The median, and between which values the middle half of the turns lies."""
    if not found:
        return ""
    low, middle, high = statistics.quantiles(found, n=4)
    met = gate is not None and len(found) >= ENOUGH and middle >= gate
    return f"{'**' * met}{middle:.2f}{'**' * met} ({low:.2f}-{high:.2f})"


def gate(load: str) -> tuple[float, float]:
    """Gate and goal against tcmu-runner."""
    if "sequential" in load:
        return 1.5, 2.0
    return 1.2, 1.5 if "QD 32" in load else 2.0


def guest(told: Mapping[str, Any]) -> list[str]:
    return [
        "## In a guest",
        "",
        f"Linux {told['kernel']}, 2 processors, emulated where the machine has no hardware virtualisation.",
        f"tcmu-runner {told['runner']} is Debian's, with its handler for raw files, as targetcli sets it up;",
        f"{told['fio']}. One fio runs {_turns(told)},",
        "under each load; in a turn the candidates follow each other in an order drawn anew. A ratio is the median of",
        "those within the turns (the middle half of them). fio: libaio, direct, random blocks; it takes what has",
        "completed at once.",
        f"Initiator's I/O scheduler: `none`. Files lie on {told['files']}. tcmu-runner cannot be had on brd: its",
        "handler for raw files wants a file of the LUN's size. What is dirty in the page cache is not written back in",
        "that time, which spares tcmu-runner and fileio the second half of a write.",
        "",
        "| candidate | storage | what is acknowledged |",
        "|---|---|---|",
        f"| {WRITETHROUGH} | file, O_DIRECT, RWF_DSYNC | durable |",
        f"| {WRITEBACK} | file, O_DIRECT, replay log | volatile until a flush |",
        f"| {RUNNER} | file, page cache | volatile until a flush |",
        f"| {FILEIO} | file, O_DSYNC | durable |",
        f"| {BUFFERED} | file, page cache | volatile until a flush |",
        f"| {OURS_BRD} | a RAM disk, O_DIRECT, RWF_DSYNC | durable |",
        f"| {IBLOCK} | a RAM disk | durable |",
        f"| {BARE} | file, O_DIRECT | what ours can at most reach over it |",
        f"| {CACHED} | file, page cache | what tcmu-runner and fileio can |",
        "",
        *_ratios_and_costs(told["rows"], "![ratios](performance.svg)"),
    ]  # fmt: skip


def iscsi(told: Mapping[str, Any]) -> list[str]:
    return _as_the_first("## In a guest, over iSCSI", "The same, logged in to the guest's own target.", told)


def matrix(told: Mapping[str, Any]) -> list[str]:
    return _as_the_first(
        "## In a guest, more loads", "As in the first two, in a guest with sixteen LUNs of each kind.", told
    )


def _as_the_first(title: str, how: str, told: Mapping[str, Any]) -> list[str]:
    how += f" Files lie on {told['files']}. {_turns(told).capitalize()}."
    return [title, "", how, "", *_ratios_and_costs(told["rows"])]


def _turns(told: Mapping[str, Any]) -> str:
    guests = f" in each of {told['guests']} guests" if told["guests"] > 1 else ""
    return f"{told['turns']} turns of {told['seconds']:g} s{guests}, after {told['before']:g} s that do not count"


def _ratios_and_costs(found: Iterable[dict[str, Any]], *more: str) -> list[str]:
    table = rows(found)
    gated = {load.name for load in GATES}
    lines = [
        "Ratios of IOPS. **Bold**: the gate against tcmu-runner is met (1.2; sequential 1.5), which takes at least"
        f" {ENOUGH} turns to say.",
        "",
        "| path | load | writethrough / tcmu-runner | writeback / tcmu-runner | ours on brd / tcmu-runner | goal "
        "| writethrough / fileio O_DSYNC | writeback / fileio buffered | brd: ours / iblock |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (path, load), row in table.items():
        least, goal = gate(load)
        cells = [_cell(ratios(row, ours, RUNNER), least if load in gated else None) for ours in (*OVER_FILES, OURS_BRD)]
        cells.append(f"{goal:g}" if load in gated else "")
        for one, other in ((WRITETHROUGH, FILEIO), (WRITEBACK, BUFFERED), (OURS_BRD, IBLOCK)):
            cells.append(_cell(ratios(row, one, other)))
        lines.append(f"| {path} | {load} | " + " | ".join(cells) + " |")
    lines += [
        "",
        *(line for one in more for line in (one, "")),
        "What the handler's process cost: CPU (µs) and voluntary context switches a command, looking on before a sleep",
        "included, in one longer turn. Behind them the IOPS of every turn.",
        "",
        "| path | load | candidate | µs CPU | switches | IOPS of each turn |",
        "|---|---|---|---|---|---|",
    ]
    for (path, load), row in table.items():
        for name in ALL:
            if name in row:
                lines.append(f"| {path} | {load} | {name} | " + " | ".join(_cost(row[name])) + " |")
    return lines


def _cost(row: Mapping[str, Any]) -> list[str]:
    cpu, switches = row["cpu"], row["switches"]
    return [
        "" if cpu is None else f"{cpu:.0f}", "" if switches is None else f"{switches:.2f}",
        ", ".join(f"{iops:.0f}" for iops in row["iops"]),
    ]  # fmt: skip


def profile(told: Mapping[str, Any]) -> list[str]:
    groups = told["groups"]
    return [
        "## What the guest's processors do",
        "",
        "The same loads over tcm_loop, one candidate at a time, in a guest of its own; registers of both processors",
        f"from QEMU's monitor, every {told['every'] * 1000:.0f} ms for {told['seconds']:.0f} s (bench/profile.py). In",
        "user mode: the handler's process, looking on before a sleep included, and all others, of which fio is nearly",
        "all; in the kernel by the name of the function, which may be a neighbour of the one that ran.",
        "",
        "![shares](performance-profile.svg)",
        "",
        f"| load | candidate | {' | '.join(groups)} | most, in the kernel |",
        "|---|---|" + "---|" * (len(groups) + 1),
        *(
            f"| {row['load']} | {row['candidate']} | "
            + " | ".join(f"{row['shares'][group]:.0%}" for group in groups)
            + f" | {', '.join(f'`{name}` {share:.0%}' for name, share in row['most'])} |"
            for row in told["rows"]
        ),
    ]  # fmt: skip


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"


def outside(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## CPU a command, outside a guest",
        "",
        "A C program keeps a ring full (bench/kernel.c); the handler reads and writes a file with O_DIRECT. CPU of all",
        "the handler's threads, the kernel's work for it included; of three runs the least, for noise only adds.",
        "Instructions are callgrind's, in user mode, with looking on before a sleep. Gate: 1.3 times the CPU of the",
        "minimal C handler (bench/minimal.c). Each write is durable when it ends, but for `writeback`, which flushes",
        "when its replay log is half full.",
        "",
        "| load | handler | µs a command | of which in user mode | times minimal | IOPS | instructions a command |",
        "|---|---|---|---|---|---|---|",
    ]
    least = {one["load"]: one["cpu"] for one in results if one["handler"] == "minimal"}
    lines += [
        f"| {one['load']} | {one['handler']} | {one['cpu']:.2f} | {one['user']:.2f} |"
        f" {one['cpu'] / least[one['load']]:.2f} | {one['iops']:.0f} | {_count(one.get('instructions'))} |"
        for one in results
    ]
    lines += [
        "",
        "Python instructions for each command that succeeds: 0 in both cache modes, counted in",
        "tests/unit/pump/test_native.py (`test_no_python_runs_for_a_command_that_succeeds`).",
    ]
    return lines


def held(found: Mapping[str, float]) -> list[str]:
    return [
        "## 10,000 held commands",
        "",
        "A device over a simulated ring, a write of 4 KiB to each block; storage that fails, then works (held.py).",
        "",
        "| | measured | gate |",
        "|---|---|---|",
        f"| Python memory a held command, without CDB and iovs | {found['bytes']:.0f} B | 1024 B |",
        f"| CPU while nothing is due | {found['idle']:.3%} | 1 % |",
        f"| from the end of the successful probe to the first command out | {found['first'] * 1000:.1f} ms | 50 ms |",
        f"| CPU of the whole process in that time, the simulator's included | {found['first_cpu'] * 1000:.1f} ms | |",
        f"| to the last of them | {found['last']:.2f} s | |",
        f"| from the first write to the last one held | {found['arrival']:.1f} s | |",
    ]


def isolation(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Thirteen good LUNs beside three bad ones",
        "",
        "One hangs, one fails for a second of two, one has no space; kernel and initiators are simulated, in the",
        "daemon's own process (bench/isolation.py). D-Bus: `GetStatus` of good and bad ones, in ms.",
        "",
        "| | a good LUN's commands/s in each run | D-Bus, median | 99 % within | longest | asked |",
        "|---|---|---|---|---|---|",
    ]
    for bad in (False, True):
        runs = [one for one in found if one["bad"] is bad]
        answers = sorted(each for one in runs for each in one["answers"])
        lines.append(
            f"| {'with' if bad else 'without'} them | {', '.join(format(one['rate'], '.1f') for one in runs)} |"
            f" {statistics.median(answers):.1f} | {answers[len(answers) * 99 // 100]:.1f} | {answers[-1]:.1f} |"
            f" {len(answers)} |"
        )
    return lines


def luns(found: list[dict[str, float]]) -> list[str]:
    lines = [
        "## LUNs that nobody uses",
        "",
        "The daemon over simulated rings (bench/luns.py): private memory a LUN, the simulator's own included, and the",
        "CPU of the whole process.",
        "",
        "| LUNs | memory a LUN | CPU, all | CPU a LUN |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one['luns']} | {one['bytes'] / 1024:.0f} KiB | {one['idle']:.2%} | {one['idle'] / one['luns']:.4%} |"
        for one in found
    ]
    return lines


def picture(found: Iterable[dict[str, Any]], path: Path) -> None:
    """Ours over tcmu-runner, a bar a load, with the gates."""
    table = {key: row for key, row in rows(found).items() if RUNNER in row}
    figure, axes = plt.subplots(figsize=(9, 1 + 0.45 * len(table)))
    for place, ((_, load), row) in enumerate(table.items()):
        for shift, (name, colour) in enumerate(((WRITETHROUGH, "#33658a"), (WRITEBACK, "#86bbd8"))):
            value = statistics.median(ratios(row, name, RUNNER))
            axes.barh(place + 0.36 * shift, value, 0.34, color=colour, label=name if not place else None)
        least, _ = gate(load)
        axes.plot([least, least], [place - 0.2, place + 0.56], color="#b00020", label=None if place else "gate")
    axes.set_yticks([place + 0.18 for place in range(len(table))], [f"{path}: {load}" for path, load in table])
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("IOPS, times tcmu-runner's in the same turn")
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def profile_picture(told: Mapping[str, Any], path: Path) -> None:
    """A bar a load and candidate, in shares of the guest's processors."""
    found, groups = told["rows"], told["groups"]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.28 * len(found)))
    names = [f"{row['load']}: {row['candidate']}" for row in found]
    left = [0.0] * len(found)
    colours = ["#e8e8e8", "#33658a", "#86bbd8", "#b00020", "#f26419", "#f6ae2d", "#758e4f", "#b8b8c8"]
    for group, colour in zip(groups, colours, strict=True):
        shares = [100 * row["shares"][group] for row in found]
        axes.barh(names, shares, left=left, color=colour, label=group)
        left = [one + other for one, other in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the guest's processors")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.3, 1.0), frameon=False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
