"""Who is told of LUNs and events; a storm of events reaches nobody one by one."""

from __future__ import annotations

import asyncio
import logging
import time

from tcmu_retry.daemon import journal
from tcmu_retry.daemon.api import DeviceApi, Notice, Watcher
from tcmu_retry.daemon.storm import Storm

log = logging.getLogger(__name__)


class Watchers:
    """Each method but `add` tells all of them; belongs to the main loop."""

    def __init__(self) -> None:
        self._all: list[Watcher] = []
        self._storm = Storm()

    def add(self, watcher: Watcher) -> None:
        self._all.append(watcher)

    def changed(self, device: DeviceApi) -> None:
        for watcher in self._all:
            watcher.changed(device)

    def added(self, device: DeviceApi) -> None:
        for watcher in self._all:
            watcher.added(device)

    def removed(self, name: str) -> None:
        for watcher in self._all:
            watcher.removed(name)

    def notice(self, notice: Notice) -> None:
        """It goes to the journal too."""
        waiting = self._storm.due()
        if self._storm.passes(notice, time.monotonic()):
            self._say(notice)
        if waiting is None:
            self._wait_for_end()

    def _wait_for_end(self) -> None:
        if (due := self._storm.due()) is not None:
            asyncio.get_running_loop().call_at(due, self._storm_goes_on)

    def _storm_goes_on(self) -> None:
        for notice in self._storm.end(time.monotonic()):
            self._say(notice)
        self._wait_for_end()

    def _say(self, notice: Notice) -> None:
        journal.write(log, notice)
        for watcher in self._all:
            watcher.notice(notice)
