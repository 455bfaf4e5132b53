"""What keeps a LUN's commands from being tried: a person's hold, a drain, a change of its size or storage, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable

from tcmu_retry.backends.base import BackendError
from tcmu_retry.core.engine import Engine
from tcmu_retry.daemon.api import ApiError
from tcmu_retry.daemon.commands import Commands
from tcmu_retry.daemon.wishes import Wishes

DRAIN_SECONDS = 5.0


class Pauses:
    """Each ends on its own, and what is held goes on when none is left.

    hold_reason: why a person holds it, "" if nobody does. draining: because a person asked. over: nothing starts again.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        wishes: Wishes,
        commands: Callable[[], Commands],
        in_flight: Callable[[], int],
        broken: Callable[[], str],
    ) -> None:
        """commands: those of the present ring. broken: why it is not served, "" while it is in order."""
        self.hold_reason = ""
        self.draining = False
        self.over = False
        self._name = name
        self._engine = engine
        self._wishes = wishes
        self._commands = commands
        self._in_flight = in_flight
        self._broken = broken
        self._changes = 0  # of size or storage, that go on
        self._expiry: asyncio.TimerHandle | None = None

    # ---- a person's hold

    def hold(self, reason: str, expires_in: float | None = None) -> None:
        self.hold_reason = reason or "held by an operator"
        self._wishes.set_hold(self.hold_reason, None if expires_in is None else time.monotonic() + expires_in)
        self._commands().close_gate()
        self._commands().act(self._engine.hold(time.monotonic(), self.hold_reason))
        self._cancel()
        if expires_in is not None:
            self._expiry = asyncio.get_running_loop().call_later(expires_in, self._hold_over)

    def hold_on(self) -> None:
        """As long as a former daemon was to."""
        if self._wishes.hold:
            until = self._wishes.until
            self.hold(self._wishes.hold, None if until is None else max(until - time.monotonic(), 0.0))

    def resume(self) -> None:
        self._end_hold()
        self._commands().act(self._engine.resume(time.monotonic()))

    def hold_expires_in(self) -> float | None:
        """Seconds; None: there is no hold, or one without an end."""
        return None if self._expiry is None else max(self._expiry.when() - asyncio.get_running_loop().time(), 0.0)

    def stop(self) -> None:
        self._cancel()

    def _hold_over(self) -> None:
        self._end_hold()
        self._commands().act(self._engine.hold_over(time.monotonic()))

    def _end_hold(self) -> None:
        self.hold_reason = ""
        self._wishes.set_hold("")
        self._cancel()

    def _cancel(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    # ---- drains

    async def drain(self) -> None:
        """Until `undrain`. Raises ApiError; nothing is drained then."""
        self.draining = True
        try:
            await self._drain()
        except ApiError:
            self.undrain()
            raise

    def undrain(self) -> None:
        self.draining = False
        self._go_on()

    @contextlib.asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """For a change: no I/O is out, what is held stays held. Raises BackendError EBUSY."""
        self._changes += 1
        try:
            try:
                await self._drain()
            except ApiError as error:
                raise BackendError(str(error), errno.EBUSY) from error
            yield
        finally:
            self._changes -= 1
            self._go_on()

    async def _drain(self) -> None:
        """Raises ApiError."""
        if broken := self._broken():
            raise ApiError("Busy", f"the ring of {self._name} is broken ({broken}); wait until it is mended")
        self._commands().close_gate()
        self._commands().act(self._engine.drain(time.monotonic()))
        if not await self._commands().quiet(DRAIN_SECONDS):
            raise ApiError("Busy", f"{self._in_flight()} I/O of {self._name} did not return within {DRAIN_SECONDS:g} s")

    def _go_on(self) -> None:
        """Neither a person's word nor the end of one change may let I/O start while another change goes on."""
        if not (self.draining or self._changes or self.over):
            self._commands().act(self._engine.undrain(time.monotonic()))
