"""Sessions that nothing can be sent in any more.

Each aborted command costs its session a place of the command window until the next login: LIO raises MaxCmdSN with a
response, and an aborted command gets none. With the last place gone and nothing open the initiator can send nothing,
no timer of its own runs any more, and it waits for ever, storage or not. Such a session is ended: its initiator logs in
again within seconds, to a whole window. The sign is a window that stays closed while no command comes and none is open.
Looked at only after aborts; LIO tells it only of initiators with an ACL.

When to end it: Linux's error handler, where it is at work, finds out by itself within the 10 s of its TEST UNIT READY
and drops the session in a way of its own, so it goes first. And what Linux has queued for longer than 180 s fails when
the session ends; what closed the window are first tries, 60 s to 90 s old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from tcmu_retry.daemon.offload import offload
from tcmu_retry.tcmu import configfs
from tcmu_retry.tcmu.configfs import Window

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
PATIENCE = 3  # looks in a row


class WindowWatch:
    """Counts for how many looks in a row a window was closed. An ACL's directory stands for its session."""

    def __init__(self) -> None:
        self._looks: dict[tuple[Path, int | None], int] = {}

    def look(self, windows: Mapping[Path, Window]) -> list[Path]:
        """The sessions that were closed for PATIENCE looks; each again only after as many."""
        closed = [(acl, window.expected) for acl, window in windows.items() if window.free == 0]
        self._looks = {each: self._looks.get(each, 0) + 1 for each in closed}
        dead = [each for each, looks in self._looks.items() if looks >= PATIENCE]
        for each in dead:
            del self._looks[each]
        return [acl for acl, _ in dead]


async def watch_windows(
    aborted: Callable[[], Mapping[str, Path]],
    settled: Callable[[str], bool],
    closed: Callable[[str, str], None],
) -> None:
    """Look for ever.

    aborted: names and configfs directories of the LUNs that had commands aborted since it was last asked. settled:
    whether nothing of a LUN is open that was at the last look. closed: is told a LUN and whose session was ended.
    """
    watch = WindowWatch()
    suspects: dict[str, Path] = {}
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        suspects.update(aborted())
        windows: dict[Path, Window] = {}
        of: dict[Path, str] = {}
        for name, path in list(suspects.items()):
            try:
                found = await offload(configfs.sessions, path)
            except Exception:  # not only OSError, while it is being removed: this watch must not end
                found = {}
            if not any(window.free == 0 for window in found.values()):
                del suspects[name]
            elif settled(name):
                windows |= found
                of |= dict.fromkeys(found, name)
        for acl in watch.look(windows):
            try:
                await offload(configfs.end_session, acl, windows[acl])
                closed(of[acl], acl.name)
            except Exception as error:
                log.error("the session of %s, which can send nothing any more, cannot be ended: %s", acl.name, error)
