"""A name on a bus, kept for as long as the daemon runs: a bus that is restarted is joined again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path

from tcmu_retry.dbus._lib import (
    AuthError,
    BusType,
    InvalidAddressError,
    Message,
    MessageBus,
    NameFlag,
    RequestNameReply,
)
from tcmu_retry.dbus.authority import ask_bus, authorise
from tcmu_retry.dbus.interface import Method
from tcmu_retry.dbus.tree import Tree

log = logging.getLogger(__name__)

REJOIN_SECONDS = 1.0
REJOIN_SECONDS_AT_MOST = 30.0


class BusError(Exception):
    """A name cannot be offered: one sentence that says why and what to do."""


class OwnerEndsError(BusError):
    """The name is a killed process's, and comes free by itself."""


class Presence:
    """One connection, one name, one tree of objects."""

    def __init__(self, name: str, tree: Tree, address: str | None, taken: str) -> None:
        """address: of the bus, None for the system bus. taken: what to do where somebody else has the name."""
        self._name = name
        self._tree = tree
        self._address = address
        self._taken = taken
        self._bus: MessageBus | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Raises BusError; then nothing was left behind."""
        where = f"the bus at {self._address}" if self._address else "the system bus"
        try:
            bus = await MessageBus(bus_address=self._address, bus_type=BusType.SYSTEM).connect()
        except (OSError, EOFError, AuthError, InvalidAddressError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BusError(f"{where} is not to be reached ({reason}); is dbus-daemon running?") from error
        self._tree.attach(bus)
        try:
            await self._own(bus, where)
        except BaseException:
            self._tree.detach()
            bus.disconnect()
            raise
        self._bus = bus

    def keep(self) -> None:
        """From now on, join again whenever the bus was lost, or could not be joined yet."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Leave the bus; calls that still run are not answered."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self._tree.detach()
        if self._bus is not None:
            self._bus.disconnect()
            await _ended(self._bus)

    async def authorise(self, message: Message, method: Method) -> None:
        """Raises ApiError NotAuthorized."""
        assert self._bus is not None
        await authorise(self._bus, message, method)

    async def _own(self, bus: MessageBus, where: str) -> None:
        try:
            reply = await bus.request_name(self._name, NameFlag.DO_NOT_QUEUE)
        except Exception as error:
            raise BusError(
                f"{where} does not let us be {self._name} ({error}); is {self._name}.conf installed?"
            ) from error
        if reply is RequestNameReply.PRIMARY_OWNER:
            return
        try:
            number = await ask_bus(bus, "GetConnectionUnixProcessID", self._name)
            program, killed = _program(number)
        except (LookupError, OSError) as error:
            raise OwnerEndsError(f"{self._name} was just given free on {where}") from error
        if killed:
            raise OwnerEndsError(
                f"{self._name} is still process {number}'s ({program}) on {where}: it was killed, and ends when its I/O"
                " returns; bring back the storage that this waits for"
            )
        raise BusError(f"{self._name} is taken on {where} by process {number} ({program}); {self._taken}")

    async def _keep(self) -> None:
        """The LUNs live on without a bus, and a person must be able to end a hold: join again when it is back."""
        while True:
            if self._bus is not None:
                await _ended(self._bus)
                self._tree.detach()
                log.error("the bus is gone; LUNs are served on, and it is joined again once it is back")
            wait = REJOIN_SECONDS
            while not await self._rejoined():
                await asyncio.sleep(wait)
                wait = min(wait * 2, REJOIN_SECONDS_AT_MOST)
            log.info("%s is on the bus", self._name)

    async def _rejoined(self) -> bool:
        try:
            await self.join()
        except BusError as error:
            log.debug("not yet: %s", error)
            return False
        except Exception:  # the library's; whoever gave up here would leave nobody to end a hold
            log.exception("joining the bus failed in a way that was not expected; it is tried again")
            return False
        return True


def _program(process: int) -> tuple[str, bool]:
    """Its name, and whether it was killed and is kept by a thread that waits in the kernel. Raises OSError."""
    text = Path(f"/proc/{process}/status").read_text(errors="replace")
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    killed = fields["State"][0] in "ZX" or bool(pending >> signal.SIGKILL - 1 & 1)
    return fields["Name"], killed


async def _ended(bus: MessageBus) -> None:
    """Returns when the connection is gone, however it went."""
    with contextlib.suppress(Exception):
        # Shielded: a waiter that is cancelled would cancel the library's future, and with it every other waiter.
        await asyncio.shield(bus.wait_for_disconnect())  # type: ignore[no-untyped-call]
