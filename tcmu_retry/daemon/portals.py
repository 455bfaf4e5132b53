"""Logins that wait for our held commands.

When a connection is lost, the kernel's iSCSI target waits for that connection's commands before it is done with it, and
a login that replaces it waits with it, inside the one thread that serves the portal: every other login then stays in
the listener's accept queue. Nothing tells the daemon. So while any LUN has commands open, the queues are looked at: one
that stays filled from one look to the next is a login that waits.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from tcmu_retry.daemon.offload import offload
from tcmu_retry.tcmu.configfs import exports
from tcmu_retry.tcmu.sockets import backlogs

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
PATIENCE = 3  # looks in a row that find a login waiting; the target takes milliseconds for one

Queues = Mapping[tuple[str, int], int]


class PortalWatch:
    """Counts for how many looks in a row each listener has had a connection waiting."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], int] = {}

    def look(self, queues: Queues) -> list[str]:
        """The listeners, "address:port", whose logins have waited for PATIENCE looks; each again only after as many."""
        self._waiting = {portal: self._waiting.get(portal, 0) + 1 for portal, queued in queues.items() if queued}
        stuck = [portal for portal, looks in self._waiting.items() if looks >= PATIENCE]
        for portal in stuck:
            del self._waiting[portal]
        return [_text(*portal) for portal in stuck]


async def watch_portals(open_luns: Callable[[], Mapping[str, Path]], login_waits: Callable[[str, str], None]) -> None:
    """Look for ever. open_luns: names and configfs directories of the LUNs that have commands open now."""
    watch = PortalWatch()
    failed = False
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        luns = open_luns()
        try:
            stuck = watch.look(await offload(backlogs) if luns else {})
            for portal in stuck:
                for name in [name for name, path in luns.items() if await offload(_behind, path, portal)]:
                    login_waits(name, portal)
            failed = False
        except Exception as error:  # not only OSError: netlink's errors are none, and without this watch logins freeze
            if not failed:
                log.error("the target's listeners cannot be watched: %s; logins may wait for held commands", error)
            failed = True


def _behind(path: Path, portal: str) -> bool:
    """Blocking: whether a LUN is exported at a portal."""
    return any(_normal(np) == portal for export in exports(path) for np in export.portals)


def _normal(portal: str) -> str:
    address, _, port = portal.rpartition(":")
    return _text(address.strip("[]"), int(port))


def _text(address: str, port: int) -> str:
    shown = ipaddress.ip_address(address)
    return f"[{shown}]:{port}" if shown.version == 6 else f"{shown}:{port}"
