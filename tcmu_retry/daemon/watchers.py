"""Who is told of LUNs and events; a storm of events reaches nobody one by one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tcmu_retry.daemon import journal
from tcmu_retry.daemon.api import DeviceApi, Notice
from tcmu_retry.daemon.storm import Storm

log = logging.getLogger(__name__)


class Watchers:
    """Each method but `add` tells all of them; belongs to the main loop."""

    def __init__(self) -> None:
        self._changed: list[Callable[[DeviceApi], None]] = []
        self._added: list[Callable[[DeviceApi], None]] = []
        self._removed: list[Callable[[str], None]] = []
        self._notice: list[Callable[[Notice], None]] = []
        self._storm = Storm()

    def add(
        self,
        changed: Callable[[DeviceApi], None],
        added: Callable[[DeviceApi], None],
        removed: Callable[[str], None],
        notice: Callable[[Notice], None],
    ) -> None:
        """As `daemon.api.ServiceApi.watch`."""
        self._changed.append(changed)
        self._added.append(added)
        self._removed.append(removed)
        self._notice.append(notice)

    def changed(self, device: DeviceApi) -> None:
        for tell in self._changed:
            tell(device)

    def added(self, device: DeviceApi) -> None:
        for tell in self._added:
            tell(device)

    def removed(self, name: str) -> None:
        for tell in self._removed:
            tell(name)

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
        for tell in self._notice:
            tell(notice)
