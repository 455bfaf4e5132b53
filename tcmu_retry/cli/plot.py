"""An outage drawn: held commands and the oldest one's age, throughput, probes, states, and what was said and done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tcmu_retry.cli.client import USAGE, CliError
from tcmu_retry.core import events

SUFFIXES = (".svg", ".png", ".pdf")
# Paul Tol's "light" and "bright" schemes: told apart by every eye.
SHADES = {"retrying": "#eedd88", "down": "#ee8866", "failed": "#ffaabb", "stopped": "#bbcc33"}
HELD, AGE, READ, WRITE, PROBE, POLICY = "#4477aa", "#ee6677", "#228833", "#4477aa", "#222222", "#aa3377"
LOOK_SECONDS = 1.0  # samples are taken once in
ORDER = ("failed", "down", "stopped", "retrying", "online")


def draw(name: str, samples: Sequence[dict[str, Any]], happened: Sequence[dict[str, Any]], path: str) -> None:
    """Write the picture of one LUN's samples; the suffix says which kind. Raises CliError."""
    if Path(path).suffix not in SUFFIXES:
        raise CliError(f"{path}: a picture's name ends in one of {', '.join(SUFFIXES)}", USAGE)
    if len(samples) < 2:
        raise CliError(f"there is no outage of {name} to draw yet; its curve is kept from the first failure on")
    try:
        import matplotlib as mpl
    except ImportError:
        raise CliError("drawing needs matplotlib; install python3-matplotlib, or tcmu-retry[plot] by pip") from None
    mpl.use("agg")
    mpl.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": name})
    from matplotlib import dates
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    when = [datetime.fromtimestamp(sample["time"]) for sample in samples]

    def curve(key: str) -> list[float]:
        return [float(sample[key]) for sample in samples]

    figure, (top, middle, bottom) = plt.subplots(
        3, 1, sharex=True, figsize=(9, 6), height_ratios=(3, 3, 1), layout="constrained"
    )
    top.set_title(f"{name}: {when[0]:%Y-%m-%d %H:%M:%S} to {when[-1]:%H:%M:%S}", loc="left")
    [held] = top.step(when, curve("held"), where="post", color=HELD, label="held commands", gid="held")
    top.set_ylabel("held commands")
    top.set_ylim(bottom=0)
    right = top.twinx()
    [age] = right.plot(when, curve("oldest_held"), color=AGE, linestyle="--", label="oldest, s", gid="oldest")
    right.set_ylabel("age of the oldest, s")
    right.set_ylim(bottom=0)
    for key, color in (("read_rate", READ), ("write_rate", WRITE)):
        rates = [rate / (1 << 20) for rate in curve(key)]
        middle.step(when, rates, where="pre", color=color, label=key.replace("_rate", "s"), gid=key)
    middle.set_ylabel("MiB/s")
    middle.set_ylim(bottom=0)
    bottom.vlines(
        [at for at, sample in zip(when, samples, strict=True) for _ in range(min(sample["probes"], 1))],
        0, 1, color=PROBE, linewidth=1, label="probes", gid="probes",
    )  # fmt: skip
    bottom.set_yticks([])
    bottom.set_ylabel("probes")
    bottom.set_ylim(0, 1)
    shades: dict[str, Patch] = {}
    for first, last, state in _stretches(samples):
        for axis in (top, middle, bottom):
            axis.axvspan(when[first], when[last], color=SHADES[state], alpha=0.35, linewidth=0, gid=f"state-{state}")
        shades[state] = Patch(color=SHADES[state], alpha=0.35, label=state)
    marked = False
    for event in happened:
        # A LUN's first sample comes with its second look, and the last one before the end of what is drawn.
        within = samples[0]["time"] - 2 * LOOK_SECONDS <= event["time"] <= samples[-1]["time"] + LOOK_SECONDS
        if event["code"] == events.POLICY_CHANGED and within:
            for axis in (top, middle, bottom):
                axis.axvline(
                    datetime.fromtimestamp(event["time"]), color=POLICY, linestyle=":",
                    label="" if marked or axis is not bottom else "policy changed", gid="policy-changed",
                )  # fmt: skip
            marked = True
    top.legend(handles=[held, age, *shades.values()], loc="best", fontsize=8)
    middle.legend(loc="center right", fontsize=8)
    if marked:
        bottom.legend(loc="center right", fontsize=8)
    bottom.xaxis.set_major_formatter(dates.ConciseDateFormatter(bottom.xaxis.get_major_locator()))  # type: ignore[no-untyped-call]
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        plt.close(figure)


def _stretches(samples: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int, str]]:
    """Where the worse of both directions was not online: (first, last, state)."""
    states = [min(sample["read_state"], sample["write_state"], key=ORDER.index) for sample in samples]
    first = 0
    for index in range(1, len(states) + 1):
        if index == len(states) or states[index] != states[first]:
            if states[first] != "online":
                yield first, min(index, len(states) - 1), states[first]
            first = index
