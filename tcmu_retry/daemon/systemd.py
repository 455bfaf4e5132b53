"""The daemon's side of sd_notify(3): ready, a line of status, and the watchdog.

The watchdog is fed as long as this loop turns and every LUN's pump does. A pump whose thread stands still answers
nobody, and nothing but a new process helps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

from tcmu_retry.daemon.api import DeviceStatus

log = logging.getLogger(__name__)

STATUS_SECONDS = 5.0  # how often the line of status is looked at, without a watchdog that asks for more
LONGEST = 3  # LUNs that are named


class Notifier:
    """Tells the service manager; does nothing where none listens."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._sender: socket.socket | None = None
        if self._address:  # now: a daemon that has used up its file descriptors must feed the watchdog all the same
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            weakref.finalize(self, self._sender.close)
        pid = environment.get("WATCHDOG_PID", str(os.getpid()))
        self.watchdog: float | None = None  # seconds after which we are ended
        with contextlib.suppress(KeyError, ValueError):
            if pid == str(os.getpid()):
                self.watchdog = int(environment["WATCHDOG_USEC"]) / 1e6

    def tell(self, **fields: str) -> None:
        """READY="1", STATUS="…" and so on. Never waits: a manager that does not read misses it."""
        if self._sender is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        data = "\n".join(f"{name}={value}" for name, value in fields.items()).encode()
        with contextlib.suppress(OSError):
            self._sender.sendto(data, address)


class Heart:
    """Beats in the main loop."""

    def __init__(
        self,
        notifier: Notifier,
        pulses: Callable[[], Mapping[str, float]],
        status: Callable[[], Sequence[DeviceStatus]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """pulses: by LUN, when its pump last turned, CLOCK_MONOTONIC seconds; asking makes it turn again."""
        self._notifier = notifier
        self._pulses = pulses
        self._status = status
        self._clock = clock
        self._said = ""
        self._faint: set[str] = set()
        self._asked = float("-inf")  # when `pulses` was last asked

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(min(self._notifier.watchdog or STATUS_SECONDS * 4, STATUS_SECONDS * 4) / 4)

    def beat(self) -> None:
        """Feed the watchdog unless a pump stands still; say what changed."""
        now = self._clock()
        limit = (self._notifier.watchdog or STATUS_SECONDS * 4) / 2
        # A pump that sleeps turns when it is asked: one that has turned since is well, however late this loop comes.
        faint = {name for name, turned in self._pulses().items() if turned < self._asked and now - turned > limit}
        self._asked = now
        for name in faint - self._faint:
            log.critical("LUN %s: its pump has stood still for %.0f s; the watchdog is not fed any more", name, limit)
        self._faint = faint
        if self._notifier.watchdog and not faint:
            self._notifier.tell(WATCHDOG="1")
        line = summary(self._status())
        if line != self._said:
            self._said = line
            self._notifier.tell(STATUS=line)


def summary(statuses: Sequence[DeviceStatus]) -> str:
    """All LUNs in a line: "3 LUNs; vm1: write down, 12 held"."""
    count = f"{len(statuses)} LUN{'s' if len(statuses) != 1 else ''}"
    troubled = [f"{status.name}: {', '.join(what)}" for status in statuses if (what := _trouble(status))]
    if not troubled:
        return f"{count}, all is well" if statuses else "no LUN yet"
    more = f"; {len(troubled) - LONGEST} more" if len(troubled) > LONGEST else ""
    return f"{count}; " + "; ".join(troubled[:LONGEST]) + more


def _trouble(status: DeviceStatus) -> list[str]:
    if status.ring_error:
        return ["its ring is broken"]
    sides = (("read", status.read), ("write", status.write))
    what = [f"{name} {side.state}" for name, side in sides if side.state != "online"]
    if status.hold_reason:
        what.append(f"held by a person ({status.hold_reason})")
    if status.held:
        what.append(f"{status.held} held")
    if status.hung:
        what.append(f"{status.hung} hung")
    if status.backend_error and not what:
        what.append("storage not open")
    return what
