"""A ring that is broken, and a LUN that is served on.

Nothing in such a ring can be believed, and nothing that a journal says of it: everything open is answered BUSY by the
kernel, and a new pump begins with an empty ring. The order: the kernel answers BUSY to what comes; the last I/O over
the ring's buffers returns, which is when the device lets itself be opened again, and the storage's lock proves it of an
earlier process; the ring is emptied; the new pump runs; the kernel lets commands in.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from tcmu_retry.core import events
from tcmu_retry.daemon.offload import offload, offload_opening
from tcmu_retry.tcmu.base import Channel, Door
from tcmu_retry.tcmu.ring import RingError

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
AGAIN_SECONDS_AT_MOST = 60.0


class Mending:
    """Of one LUN; its ring may break more than once. problem: what is in the way, "" while its ring is in order."""

    def __init__(
        self,
        door: Door,
        lock: Callable[[], Awaitable[int]],
        stop: Callable[[], None],
        serve: Callable[[Channel], None],
        emit: Callable[[str, Mapping[str, object]], None],
        changed: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        """lock: see that no earlier process has I/O at the storage: its errno, or 0. stop: what serves the broken ring.

        serve: begin with a channel whose ring is empty; has closed it when it raises. changed: `problem` is another.
        lost: the LUN is gone.
        """
        self.problem = ""
        self._door = door
        self._lock = lock
        self._stop = stop
        self._serve = serve
        self._emit = emit
        self._changed = changed
        self._lost = lost
        self._task: asyncio.Task[None] | None = None
        self._wait = 0.0
        self._mended = 0.0

    def begin(self, reason: str) -> None:
        """The ring is broken."""
        self._say(reason)
        self._task = asyncio.get_running_loop().create_task(self._run(reason))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, reason: str) -> None:
        began = time.monotonic()
        self._stop()
        if await self._exists():
            self._emit(events.RING_BROKEN, {"reason": reason})
        served = await self._mend()
        self._task = None
        if not served:
            self._lost()
            return
        self._say("")
        self._emit(events.RING_MENDED, {"seconds": round(time.monotonic() - began, 1)})

    def _say(self, problem: str) -> None:
        self.problem = problem
        self._changed()

    async def _exists(self) -> bool:
        """Whether there still is such a LUN; if not, its ring went with it and is not broken."""
        return await offload(self._door.exists)

    async def _mend(self) -> bool:
        """True once the LUN is served; False if it is gone. One that breaks again and again has to wait longer."""
        if time.monotonic() - self._mended > AGAIN_SECONDS_AT_MOST:
            self._wait = 0.0
        while await self._exists():
            try:
                # Refused while the LUN is being enabled, and then nobody can use it.
                with contextlib.suppress(OSError):
                    await offload(self._door.block, True)
                await asyncio.sleep(self._wait)
                if error := await self._lock():
                    raise OSError(error, "the storage's lock is not had, an earlier process may have I/O there")
                self._serve(await offload_opening(self._door.open_anew))
            except Exception as error:
                if not isinstance(error, OSError | RingError):  # whoever gave up here would leave a dead LUN
                    log.exception("mending a ring failed in a way that was not expected; it is tried again")
                self._say(str(error))
                busy = isinstance(error, OSError) and error.errno == errno.EBUSY
                self._wait = AGAIN_SECONDS if busy else self._longer()
            else:
                return await self._let_in()
        return False

    async def _let_in(self) -> bool:
        """Commands come again. False if the LUN is gone."""
        while await self._exists():
            self._wait, self._mended = self._longer(), time.monotonic()
            try:
                await offload(self._door.block, False)
            except OSError as error:
                self._say(f"the kernel answers BUSY to all, its action/block_dev cannot be set to 0: {error}")
                await asyncio.sleep(self._wait)
            else:
                return True
        return False

    def _longer(self) -> float:
        return min(max(2 * self._wait, AGAIN_SECONDS), AGAIN_SECONDS_AT_MOST)
