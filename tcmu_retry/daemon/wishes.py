"""What people asked of a LUN and did not persist, in /run for the next daemon, unless this one stops for good.

It is of one ring, as the journal beside it, and believed only for that. Writing it does not block: /run is memory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass
class Wishes:
    """Of one LUN. until: when a person's hold ends by itself, CLOCK_MONOTONIC seconds; None: never."""

    store: Callable[[bytes], None] = lambda data: None  # may raise OSError
    identity: str = ""
    policy: Mapping[str, str] = field(default_factory=dict)  # changes, as `Tuning` has them
    hold: str = ""  # why a person holds it, "" if nobody does
    until: float | None = None

    def load(self, data: bytes) -> None:
        """Take what an earlier process stored, if it is of this ring."""
        try:
            found = json.loads(data)
            if found["identity"] == self.identity:
                self.policy, self.hold, self.until = found["policy"], found["hold"], found["until"]
        except (ValueError, KeyError, TypeError):
            if data:
                log.warning("what people had asked of a LUN is not to be read; it is as it is configured")

    def set_policy(self, changes: Mapping[str, str]) -> None:
        self.policy = dict(changes)
        self._keep()

    def set_hold(self, reason: str, until: float | None = None) -> None:
        """reason "": nobody holds it any more."""
        self.hold, self.until = reason, until
        self._keep()

    def drop(self) -> None:
        """This daemon ends, and with it what it was asked."""
        self.policy, self.hold, self.until = {}, "", None
        self._keep()

    def _keep(self) -> None:
        found = {"identity": self.identity, "policy": self.policy, "hold": self.hold, "until": self.until}
        try:
            self.store(json.dumps(found).encode())
        except OSError as error:
            log.warning("what people ask of a LUN ends with this daemon, there is no room for it in /run: %s", error)
