"""The kernel's announcements of LUNs, each of which is answered.

The kernel waits, unkillably and without a limit, for the answer to an announcement; every way through `_answered`
ends in a reply. Whoever made the kernel announce something holds locks of LIO's tree in configfs meanwhile: the main
loop writes nothing to the tree and reads there only the serial number of a LUN that is being made or is exported, which
nobody can be removing; and nobody touches a LUN's directory once its removal was announced.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable

from tcmu_retry.backends.base import BackendError
from tcmu_retry.core import events
from tcmu_retry.daemon import takeover, view
from tcmu_retry.daemon.config import ConfigError
from tcmu_retry.daemon.export import SUBTYPE
from tcmu_retry.daemon.luns import Luns
from tcmu_retry.daemon.offload import offload
from tcmu_retry.daemon.tasks import Tasks
from tcmu_retry.daemon.unfreeze import end_waits
from tcmu_retry.daemon.watchers import Watchers
from tcmu_retry.tcmu.netlink import Added, Event, Reconfigured, Removed, TcmuNetlink
from tcmu_retry.tcmu.uio import UioDevice

log = logging.getLogger(__name__)

ENABLE_SECONDS = 20.0  # whoever enables a LUN waits for us, unkillably
CATCH_UP_SECONDS = 0.1  # between looks at whether all that was heard is answered


class Announcements:
    """refused: why a change of a LUN was, by the LUN's name."""

    def __init__(self, luns: Luns, watchers: Watchers, tasks: Tasks) -> None:
        self.refused: dict[str, str] = {}
        self._luns = luns
        self._watchers = watchers
        self._tasks = tasks
        self._netlink = TcmuNetlink()
        self._ending = False
        self._answering = 0  # announcements
        self._catching_up = False

    async def start(self) -> None:
        """Who waits for the answer of a former daemon is let go. Raises OSError where the kernel lacks TCMU."""
        self._netlink.start(self._announced, self._lost)
        await offload(end_waits)

    def promise(self) -> None:
        """From now on the kernel waits for our answers."""
        self._netlink.set_features(reply=True)

    def end(self) -> None:
        """What comes from now on is refused at once."""
        self._ending = True

    def close(self) -> None:
        # Sticky in the kernel: with nobody there to answer, the next `enable` would wait for ever.
        self._netlink.set_features(reply=False)
        self._netlink.close()

    def _lost(self) -> None:
        if not self._catching_up and not self._ending:
            self._catching_up = True
            self._tasks.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        """Whoever waits for the answer to one that was lost would wait for ever; those that were heard come first."""
        for _ in range(round(ENABLE_SECONDS / CATCH_UP_SECONDS)):
            await asyncio.sleep(CATCH_UP_SECONDS)
            if not self._answering:
                break
        self._catching_up = False
        await offload(end_waits)
        self._luns.look()

    def _announced(self, event: Event) -> None:
        if event.device.subtype != SUBTYPE:
            return  # another handler's; an answer of ours would be taken for its
        if self._ending:
            self._netlink.reply(event, -errno.ESHUTDOWN)
            return
        match event:
            case Added():
                self._luns.comes(event.device)
                self._tasks.spawn(self._answered(event, self._added(event.device)))
            case Removed():
                self._luns.goes(event.device)
                self._tasks.spawn(self._answered(event, self._removed(event.device)))
            case Reconfigured():
                self._tasks.spawn(self._answered(event, self._reconfigured(event)))

    async def _answered(self, event: Event, handling: Awaitable[int]) -> None:
        status = -errno.EIO
        self._answering += 1
        try:
            status = await handling
        except Exception:
            log.exception("%s of %s failed in our own code", type(event).__name__, event.device.name)
        finally:
            self._answering -= 1
            self._netlink.reply(event, status)

    async def _added(self, uio: UioDevice) -> int:
        try:
            await asyncio.wait_for(self._luns.attach(uio, fresh=True), ENABLE_SECONDS)
        except TimeoutError:
            why, code = f"its device did not let itself be opened within {ENABLE_SECONDS:g} s", errno.ETIMEDOUT
        except (BackendError, ConfigError) as error:
            why, code = str(error), error.errno or errno.EINVAL
        except OSError as error:
            why, code = str(error), error.errno or errno.EIO
        else:
            return 0
        return self._refuse(events.LUN_REFUSED, uio.name, why, code)

    def _refuse(self, code: str, name: str, why: str, error: int) -> int:
        """An answer for the kernel, which passes on no more than the number: the sentence goes out as an event."""
        self._watchers.notice(view.notice(code, name, None, {"reason": why}, time.time()))
        return -error

    async def _removed(self, uio: UioDevice) -> int:
        await self._luns.forget(uio.uio)
        await offload(takeover.forget, uio, True)
        return 0

    async def _reconfigured(self, event: Reconfigured) -> int:
        """Restoring a saved configuration writes every value again; only a new one is a change."""
        device = self._luns.served(event.device.uio)
        if device is None:
            return 0
        try:
            if event.size not in (None, device.lun.size):
                await device.resize(event.size)
            config = event.config.strip() if event.config is not None else None
            if config not in (None, f"{SUBTYPE}/{device.lun.config}"):
                await device.move(await self._luns.place(device.name, config))
            if event.write_cache not in (None, device.lun.write_cache):
                raise BackendError(
                    "whether it has a write cache is said by cache= in its configuration", errno.EOPNOTSUPP
                )
        except (BackendError, ConfigError) as error:
            self.refused[device.name] = str(error)
            return self._refuse(events.CHANGE_REFUSED, device.name, str(error), error.errno)
        return 0
