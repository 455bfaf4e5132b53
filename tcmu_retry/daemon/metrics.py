"""Metrics for Prometheus: over HTTP on request, or in a file that node_exporter reads. docs/metrics.md lists them all.

Whoever scrapes asks from a thread of its own; what it is told is gathered in the main loop, which owns the LUNs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from tcmu_retry.core import events
from tcmu_retry.core.outage import State
from tcmu_retry.daemon import scrape
from tcmu_retry.daemon.api import DeviceApi, Notice, ServiceApi, Watcher
from tcmu_retry.daemon.offload import offload

log = logging.getLogger(__name__)

TEXTFILE_SECONDS = 15.0
GATHER_SECONDS = 5.0
BUCKETS = (1, 5, 15, 30, 60, 120, 300, 900, 3600, 14_400, 86_400)

# By name: kind and help. Every one of a LUN has the label `device`.
GAUGES = {
    "tcmu_retry_size_bytes": "Size of the LUN",
    "tcmu_retry_held_commands": "Commands that are held",
    "tcmu_retry_held_bytes": "Data of the commands that are held",
    "tcmu_retry_held_oldest_age_seconds": "Age of the oldest held command, 0 if none is held",
    "tcmu_retry_in_flight": "I/O that has not returned",
    "tcmu_retry_hung": "I/O that has not returned for longer than io_warn_after",
    "tcmu_retry_held_by_person": "1 while a person holds the LUN",
    "tcmu_retry_draining": "1 while the LUN is drained",
    "tcmu_retry_backend_open": "1 while the storage is open",
    "tcmu_retry_ring_broken": "1 while the ring is broken and all is answered BUSY",
}
SIDED = {
    "tcmu_retry_outage_age_seconds": "Since the first failure of the outage, 0 while online; by direction",
    "tcmu_retry_outage_probes": "Probes in this outage, 0 while online; by direction",
}
EVENTS, EVENTS_HELP = "tcmu_retry_events", "Events; by code, see `tcmu-retry explain`"
OUTAGES = "tcmu_retry_outage_duration_seconds"
OUTAGES_HELP = "Outages that ended, from the first failure to the end; by direction"
BUILD, BUILD_HELP = "tcmu_retry_build", "The running daemon"
STATE, STATE_HELP = "tcmu_retry_state", "1 for the state that a direction is in; by direction and state"
COUNTERS = {
    "tcmu_retry_commands": ("Commands that were answered by the storage; by op", "op"),
    "tcmu_retry_transferred_bytes": ("Data of these commands; by op", "op"),
    "tcmu_retry_io_errors": ("Attempts that ended in an error", ""),
}


class Metrics(Collector):
    """Watches the service from its making on; must be made in the main loop."""

    def __init__(self, service: ServiceApi) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._events = Counter(EVENTS, EVENTS_HELP, ("device", "code"), registry=self.registry)
        self._outages = Histogram(
            OUTAGES,
            OUTAGES_HELP,
            ("device", "direction"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._seen: set[tuple[str, str]] = set()  # labels that these two have
        self._textfile: asyncio.Task[None] | None = None
        service.watch(Watcher(removed=self._removed, notice=self._notice))

    def listen(self, where: str) -> None:
        """Serve HTTP at "ADDRESS:PORT". Raises ValueError and OSError."""
        address, _, port = where.rpartition(":")
        if not address or not port.isdecimal():
            raise ValueError(f"{where} is not ADDRESS:PORT, as 127.0.0.1:9724")
        scrape.serve(address.strip("[]"), int(port), self.registry)

    def keep_textfile(self, path: Path) -> None:
        """Write the file every 15 s, whole or not at all."""
        self._textfile = self._loop.create_task(self._keep(path))

    async def close(self, path: Path | None) -> None:
        """A file that nobody writes any more must not go on to say that all is well."""
        if self._textfile is not None:
            self._textfile.cancel()
        if path is not None:
            try:
                await asyncio.wait_for(offload(path.unlink, missing_ok=True), 1.0)
            except (OSError, TimeoutError) as error:
                log.warning("%s cannot be removed: %s", path, error)

    async def write(self, path: Path) -> None:
        """Raises OSError."""
        await offload(write_to_textfile, str(path), self.registry)

    async def _keep(self, path: Path) -> None:
        failed = False
        while True:
            try:
                await self.write(path)
                failed = False
            except (OSError, TimeoutError) as error:
                if not failed:
                    log.error("the metrics cannot be written to %s: %s; it is tried again", path, error)
                failed = True
            await asyncio.sleep(TEXTFILE_SECONDS)

    # ---- what is counted as it happens

    def _notice(self, notice: Notice) -> None:
        repeated = notice.fields.get("repeated", 1)
        self._seen.add((notice.device, notice.code))
        self._events.labels(notice.device, notice.code).inc(repeated if isinstance(repeated, int) else 1)
        seconds = notice.fields.get("seconds")
        if notice.code in (events.RECOVERED, events.GAVE_UP) and isinstance(seconds, int | float):
            direction = str(notice.fields.get("direction"))
            self._seen.add((notice.device, direction))
            self._outages.labels(notice.device, direction).observe(seconds)

    def _removed(self, name: str) -> None:
        for metric in (self._events, self._outages):
            for labels in [labels for labels in self._seen if labels[0] == name]:
                with contextlib.suppress(KeyError):  # it is the other one's
                    metric.remove(*labels)
        self._seen = {labels for labels in self._seen if labels[0] != name}

    # ---- what is looked up when somebody asks

    def describe(self) -> Iterable[Metric]:
        """For the registry: our names are none of the other collectors'."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Called in the asker's thread. Raises TimeoutError where the main loop does not answer."""
        return asyncio.run_coroutine_threadsafe(self._gather(), self._loop).result(GATHER_SECONDS)

    async def _gather(self) -> list[Metric]:
        info = InfoMetricFamily(BUILD, BUILD_HELP)
        info.add_metric((), {"version": self._service.version})
        gauges = {name: GaugeMetricFamily(name, text, labels=("device",)) for name, text in GAUGES.items()}
        sided = {name: GaugeMetricFamily(name, text, labels=("device", "direction")) for name, text in SIDED.items()}
        state = GaugeMetricFamily(STATE, STATE_HELP, labels=("device", "direction", "state"))
        counters = {
            name: CounterMetricFamily(name, text, labels=("device", *filter(None, (label,))))
            for name, (text, label) in COUNTERS.items()
        }
        for device in self._service.devices():
            _look(device, gauges, sided, state)
            _count(device, counters)
        return [info, *gauges.values(), *sided.values(), state, *counters.values()]


def _look(
    device: DeviceApi,
    gauges: dict[str, GaugeMetricFamily],
    sided: dict[str, GaugeMetricFamily],
    state: GaugeMetricFamily,
) -> None:
    status = device.status()
    values = (
        status.size,
        status.held,
        status.held_bytes,
        status.oldest_held,
        status.in_flight,
        status.hung,
        bool(status.hold_reason),
        status.draining,
        not status.backend_error,
        bool(status.ring_error),
    )
    for family, value in zip(gauges.values(), values, strict=True):
        family.add_metric((status.name,), value)
    for name, side in (("read", status.read), ("write", status.write)):
        for family, value in zip(sided.values(), (side.outage or 0.0, side.probes), strict=True):
            family.add_metric((status.name, name), value)
        for each in State:
            state.add_metric((status.name, name, each.value), side.state == each.value)


def _count(device: DeviceApi, families: dict[str, CounterMetricFamily]) -> None:
    counters = device.statistics()
    commands, transferred, errors = families.values()
    for op, key in (("read", "reads"), ("write", "writes"), ("other", "others")):
        commands.add_metric((device.name, op), counters[key])
    for op, key in (("read", "read_bytes"), ("write", "written_bytes")):
        transferred.add_metric((device.name, op), counters[key])
    errors.add_metric((device.name,), counters["errors"])
