"""org.kernel.TCMUService1: targetcli, unmodified, lists what it finds there as backstores; this is `user:retry`.

The name belongs to tcmu-runner too. While that has it the LUNs are served all the same, and the name is asked for again
and again.
"""

from __future__ import annotations

import errno
import logging

from tcmu_retry.daemon.api import ApiError, ServiceApi
from tcmu_retry.dbus._lib import Message
from tcmu_retry.dbus.interface import Method, own
from tcmu_retry.dbus.presence import BusError, Presence
from tcmu_retry.dbus.tree import Tree

log = logging.getLogger(__name__)

NAME = "org.kernel.TCMUService1"
ROOT = "/org/kernel/TCMUService1"
HANDLER = "retry"
DESCRIPTION = """\
The name of a file in /etc/tcmu-retry/devices.d without its .toml, or the
absolute path of a file or a block device, either with ;key=value settings:

    vm1
    /srv/vm1.img
    /srv/vm1.img;retry_timeout=2m;write.fallback=readonly

No blanks, commas or colons, and 249 characters at most: what needs them goes
into devices.d. The settings are in README.md of tcmu-retry."""


class Handler:
    """The one object."""

    interface = own(NAME)

    def __init__(self, service: ServiceApi) -> None:
        self._service = service

    def properties(self) -> dict[str, object]:
        return {"ConfigDesc": DESCRIPTION}

    async def check_config(self, config: str) -> tuple[bool, str]:
        problem = await self._service.check_new(_own_part(config))
        return not problem, problem

    async def change_medium(self, name: str, size: int, config: str) -> tuple[int, str]:
        try:
            await self._service.change_medium(name, size, _own_part(config))
        except ApiError as error:
            return errno.EINVAL, str(error)
        return 0, ""


class Bridge:
    """The handler while it is offered."""

    def __init__(self, service: ServiceApi, address: str | None) -> None:
        self._tree = Tree(ROOT, self._authorise, lambda path: None)
        self._tree.add(f"{ROOT}/{HANDLER}", Handler(service))
        self._presence = Presence(
            NAME, self._tree, address, "targetcli does not show user:retry until that program is stopped"
        )

    async def start(self) -> None:
        try:
            await self._presence.join()
        except BusError as error:
            log.error("%s", error)
        self._presence.keep()

    async def close(self) -> None:
        await self._presence.close()

    async def _authorise(self, message: Message, method: Method) -> None:
        await self._presence.authorise(message, method)


def _own_part(config: str) -> str:
    """The configuration string of "retry/CFGSTRING"."""
    return config.removeprefix(f"{HANDLER}/")
