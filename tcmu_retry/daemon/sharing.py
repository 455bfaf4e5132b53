"""Whether an answer to task management that comes late makes anybody wait who should not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tcmu_retry.daemon.offload import offload

log = logging.getLogger(__name__)


class Sharing:
    """Looks, each time answers begin to be put off, who shares the initiator's session or the LUN; then hurries.

    While an initiator's LOGICAL UNIT RESET is out it sends nothing to the other LUNs of its session, and the kernel
    lets another initiator's reset of the LUN wait behind it.
    """

    def __init__(self, name: str, sharers: Callable[[], str], hurry: Callable[[], None]) -> None:
        self._name = name
        self._sharers = sharers
        self._hurry = hurry
        self._asking: asyncio.Task[None] | None = None
        self._asked = False

    def see(self, late: int) -> None:
        """late: how many answers are put off now."""
        if late and not self._asked:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        self._asked = bool(late)

    async def _ask(self) -> None:
        try:
            sharers = await offload(self._sharers)
        except Exception as error:  # not only OSError, while it is being removed
            sharers = f"LIO's tree cannot be read: {error}"
        if sharers:
            log.info("LUN %s: task management is answered at once, %s", self._name, sharers)
            self._hurry()

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
