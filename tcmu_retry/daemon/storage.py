"""The storage under a LUN: opened in time, known to be the right one, opened anew after it was lost.

What may wait for the storage runs by `offload`. Pump, engine and disk are the device's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tcmu_retry.backends.absent import AbsentBackend
from tcmu_retry.backends.base import Backend, BackendError, Identity
from tcmu_retry.backends.file import open_backend
from tcmu_retry.backends.filters import apply
from tcmu_retry.backends.patience import storage_links
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.core import events
from tcmu_retry.core.chain import Link
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.offload import offload, offload_opening
from tcmu_retry.daemon.records import Memory

log = logging.getLogger(__name__)

T = TypeVar("T")

REPLAY_BYTES = 64 << 20  # what is acknowledged and not flushed, in write-back
OPEN_SECONDS = 10.0
ASK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Storage for a LUN. name: the configuration string that means it. open may block, raises BackendError."""

    name: str
    config: DeviceConfig
    open: Callable[[], Backend]
    memory: Memory


class Storage:
    """From a LUN's first opening to its end; `backend` is what its pump is to use now."""

    def __init__(
        self,
        lun: Callable[[], Lun],
        place: Place,
        emit: Callable[[str, Mapping[str, object]], None],
        replay: ReplayLog | None = None,
    ) -> None:
        """emit: tells of an event with its fields. replay: of the LUN's former daemon."""
        self.place = place
        self.error = ""  # why it cannot be used, in a sentence
        self._lun = lun
        self._emit = emit
        self._identity: Identity | None = place.memory.record.identity if place.memory.record else None
        self._log: ReplayLog | None = None
        if place.config.cache == "writeback":
            self._log = ReplayLog(REPLAY_BYTES) if replay is None else replay
        self._refused = False
        self.had = asyncio.Event()  # it was open, so no earlier process has I/O there
        self._look: asyncio.Task[list[Link]] | None = None
        self.backend = self._absent()

    @property
    def path(self) -> str:
        return self.place.config.path

    async def open(self) -> None:
        """Raises BackendError; the storage is absent then."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                self.backend = await offload_opening(self._open_checked)
        except TimeoutError:
            raise BackendError(
                f"{self.path} did not let itself be opened within {OPEN_SECONDS:g} s; bring its storage back",
                errno.ETIMEDOUT,
            ) from None
        self._identity = self.backend.identity
        self.had.set()

    async def reopen(self, use: Callable[[Backend], None]) -> int:
        """Close it and open it anew: the errno, 0 where it is there. `use` is given what is to be used from then on.

        While I/O is out the old file cannot be closed, and its lock keeps everybody else from opening it.
        """
        old, self.backend = self.backend, self._absent()
        use(self.backend)
        try:
            await offload(old.close)
            self.backend = await offload_opening(self._open_checked)
        except BackendError as failure:
            self.failed(failure)
            return failure.errno
        except Exception as error:  # without an end of this try there would be no other
            log.exception("LUN %s: opening its storage failed in our own code", self._lun().name)
            self.failed(BackendError(f"{self.path} cannot be opened: {error}; it is tried again", errno.EIO))
            return errno.EIO
        self._identity = self.backend.identity
        if self._refused:
            self._refused = False
            self._emit(events.STORAGE_ACCEPTED, {})
        self.error = ""
        self.had.set()
        use(self.backend)
        return 0

    async def lock(self) -> int:
        """See that no earlier process has I/O here: the errno, 0 where none has."""
        return 0 if self.had.is_set() else await self.reopen(lambda backend: None)

    def failed(self, failure: BackendError) -> None:
        """It could not be opened."""
        if self.error != str(failure):
            log.warning("LUN %s: %s", self._lun().name, failure)
            if failure.errno == errno.EMEDIUMTYPE and not self._refused:
                self._refused = True
                self._emit(events.STORAGE_REFUSED, {"reason": str(failure)})
        self.error = str(failure)

    async def close(self, flush: bool = True) -> None:
        """Storage that does not let itself be closed is left to the kernel. flush: no other daemon has the log."""
        if flush and self._log is not None and self._log.weight:
            # Before somebody else may have it: what a log writes again must not lie over what they wrote.
            with contextlib.suppress(BackendError):
                await self.forget_unflushed()
        try:
            await asyncio.wait_for(offload(self.backend.close), 1.0)
        except TimeoutError:
            log.warning("LUN %s: its storage does not let itself be closed; left to the kernel", self._lun().name)

    async def links(self) -> list[Link]:
        """Its time-outs. Everybody may ask, so storage that hangs has one thread of ours waiting for it at most."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(offload(storage_links, self.path))
        done, _ = await asyncio.wait({self._look}, timeout=ASK_SECONDS)
        if done:
            return self._look.result()
        return [Link("storage", self.path, "hangs", wrong="it answers nothing and fails nothing: bring it back first")]

    # ---- another size, another place

    async def has_room(self, size: int) -> None:
        """See that a LUN of `size` bytes fits. Raises BackendError."""
        self._check_room(await self._in_time(offload(self.backend.size)), size, self.path)

    async def forget_unflushed(self) -> None:
        """From here on nothing is written again. Raises BackendError."""
        if self._log is not None:
            await self._in_time(offload(self.backend.flush))

    async def open_other(self, to: Place) -> Backend:
        """Another place that can take the LUN's storage's. Raises BackendError."""
        lun = self._lun()
        new = await self._in_time(offload_opening(to.open))
        try:
            self._check_room(new.identity.size, lun.size, to.config.path)
            if lun.block_size % new.block_size:
                raise BackendError(
                    f"{to.config.path} has blocks of {new.block_size} bytes, LUN {lun.name} of {lun.block_size};"
                    " choose other storage",
                    errno.EINVAL,
                )
        except BackendError:
            new.close()
            raise
        return new

    async def take(self, to: Place, new: Backend) -> None:
        """Be the storage at another place from now on. Raises BackendError; nothing was changed then."""
        self.backend = await self._in_time(offload(self._log.over, new)) if self._log is not None else new
        self.place, self._identity, self.error = to, new.identity, ""

    async def _in_time(self, answer: Awaitable[T]) -> T:
        """A question to the storage, which may hang. Raises BackendError."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await answer
        except TimeoutError:
            message, code = f"it did not answer within {ASK_SECONDS:g} s", errno.EBUSY
        except OSError as error:
            code = error.errno or errno.EIO
            message = os.strerror(code)
        raise BackendError(
            f"the storage of LUN {self._lun().name} is not to be asked: {message}; bring it back first", code
        )

    def _check_room(self, available: int, size: int, path: str) -> None:
        if available < size:
            raise BackendError(
                f"{path} has {available} bytes and LUN {self._lun().name} would have {size}; enlarge it first",
                errno.ENOSPC,
            )

    # ---- opening

    def _absent(self) -> Backend:
        lun = self._lun()
        return AbsentBackend(Identity("", lun.size, ""), lun.block_size)

    def _open_checked(self) -> Backend:
        """Blocking. Raises BackendError."""
        lun, memory = self._lun(), self.place.memory
        backend = self.place.open()
        problem = None
        if self._identity is not None:
            problem = self._identity.difference(backend.identity)
        if problem is None and backend.identity.size < lun.size:
            problem = f"it has {backend.identity.size} bytes and the LUN {lun.size}"
        if problem is None and lun.block_size % backend.block_size:
            problem = f"its block size is {backend.block_size} and the LUN's {lun.block_size}"
        if problem:
            backend.close()
            what, advice = "is not the storage of", "bring the right one back, or unexport the LUN"
            if self._identity is None:
                what, advice = "does not do for", "choose other storage, or make the LUN to fit"
            raise BackendError(f"{self.path} {what} LUN {lun.name}: {problem}; {advice}", errno.EMEDIUMTYPE)
        if self._log is None:
            memory.keep(backend.identity, backend.can_discard)
            return backend
        try:
            logged = self._log.over(backend)
            memory.keep(backend.identity, backend.can_discard)
            return logged
        except OSError as error:
            backend.close()
            raise BackendError(
                f"{self.path} does not take what was written since its last flush: {error.strerror}; it is tried again",
                error.errno or errno.EIO,
            ) from error


def open_configured(config: DeviceConfig) -> Backend:
    """The storage that a configuration names, under its filters. Blocking. Raises BackendError."""
    return apply(open_backend(config.path, buffered=config.buffered, roots=config.roots), config.filters)


def measure(config: DeviceConfig) -> tuple[int, int]:
    """Bytes that the storage has, and of each of its blocks. Blocking. Raises BackendError."""
    backend = open_configured(config)
    try:
        return backend.identity.size, backend.block_size
    finally:
        backend.close()
