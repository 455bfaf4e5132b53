"""Fills the history: every event as it comes, and the curve of a LUN from a minute before it fails to a minute after.

A LUN that is well is sampled once a second too, and the last minute of that kept in memory: it becomes the curve's
beginning. In an outage that grows old samples become rarer, so that a week of it takes some thousand.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from tcmu_retry.daemon.api import DeviceApi, DeviceStatus, Notice, Sample
from tcmu_retry.daemon.history import History

BEFORE = 60  # samples
AFTER = 60.0
JUMP = 60.0  # seconds between two looks that only a clock makes
SPREAD = 300.0  # the distance of samples is the age of the outage by this


class Curve:
    """One LUN's samples. Pure: time comes in."""

    def __init__(self) -> None:
        self._before: deque[Sample] = deque(maxlen=BEFORE)
        self._base: tuple[float, dict[str, int]] | None = None  # when, and the counters then
        self._probes = 0
        self._stretch = 0.0  # 0: all is well
        self._until = 0.0
        self._looked = 0.0

    def look(self, status: DeviceStatus, counters: dict[str, int], now: float) -> list[Sample]:
        """What is to be kept, of this moment and what led to it; [] for nothing. now: seconds since the epoch."""
        if self._base is None or not 0 <= now - self._looked <= JUMP:
            # The first look, or the host's clock was set: what was before has no place in the order of what comes.
            self._base, self._looked, self._stretch, self._until = (now, counters), now, 0.0, 0.0
            self._before.clear()
            return []
        self._looked = now
        then, old = self._base
        matters = bool(status.held or status.hung or status.read.outage is not None or status.write.outage is not None)
        if matters:
            self._until = now + AFTER
        keep = now <= self._until
        if keep and self._stretch and now - then < min((now - self._stretch) / SPREAD, AFTER * 10) - 0.5:
            return []
        passed = max(now - then, 0.001)
        probes = status.read.probes + status.write.probes
        begun = keep and not self._stretch
        if begun:
            self._stretch = self._before[0].time if self._before else now
        elif not keep:
            self._stretch = 0.0
        sample = Sample(
            time=now,
            stretch=self._stretch,
            held=status.held,
            oldest_held=status.oldest_held,
            read_rate=(counters["read_bytes"] - old["read_bytes"]) / passed,
            write_rate=(counters["written_bytes"] - old["written_bytes"]) / passed,
            errors=max(counters["errors"] - old["errors"], 0),
            probes=probes - self._probes if probes >= self._probes else probes,
            read_state=status.read.state,
            write_state=status.write.state,
        )
        self._probes = probes
        self._base = now, counters
        if not keep:
            self._before.append(sample)
            return []
        led = [replace(each, stretch=self._stretch) for each in self._before] if begun else []
        self._before.clear()
        return [*led, sample]


class Recorder:
    """Looks at all LUNs once a second, in the main loop, as long as there are any."""

    def __init__(self, history: History, clock: Callable[[], float] = time.time) -> None:
        self._history = history
        self._clock = clock
        self._curves: dict[str, tuple[DeviceApi, Curve]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def added(self, device: DeviceApi) -> None:
        self._curves[device.name] = device, Curve()
        if self._timer is None:
            self._again()

    def removed(self, name: str) -> None:
        self._curves.pop(name, None)

    def notice(self, notice: Notice) -> None:
        self._history.add_event(notice)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._curves.clear()
        self._history.close()

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1.0, self._look) if self._curves else None

    def _look(self) -> None:
        now = self._clock()
        for name, (device, curve) in self._curves.items():
            if samples := curve.look(device.status(), device.statistics(), now):
                self._history.add_samples(name, samples)
        self._again()
