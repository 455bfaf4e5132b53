"""A LUN's policy: as it is configured, and over that what people changed since, of which some is kept over restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from tcmu_retry.core.policy import Policy, PolicyError, change, flatten, touched
from tcmu_retry.daemon.api import ApiError, PolicyOptions
from tcmu_retry.daemon.offload import offload
from tcmu_retry.daemon.wishes import Wishes

log = logging.getLogger(__name__)


class Tuning:
    """Belongs to the main loop. Changes are flat settings, as `flatten` writes them."""

    def __init__(
        self,
        name: str,
        configured: Policy,
        kept: Mapping[str, str],
        keep: Callable[[Mapping[str, str]], None],
        apply: Callable[[Policy], None],
        wishes: Wishes,
    ) -> None:
        """keep: stores what is to outlive the daemon; may block, raises OSError. apply: makes a policy count.

        wishes: what a former daemon was asked and its end was not to take back.
        """
        self.generation = 1
        self.lock = asyncio.Lock()
        self._name = name
        self._configured = configured
        self._kept = dict(kept)
        self._wishes = wishes
        self._changed = {**kept, **wishes.policy}
        self._keep = keep
        self._apply = apply
        try:
            self.policy = change(configured, self._changed)
        except PolicyError as error:
            log.error("LUN %s: what was kept of its policy's changes is left out: %s", name, error)
            self.policy, self._changed = configured, {}

    @property
    def changed(self) -> Mapping[str, str]:
        """What differs from the configuration because somebody changed it while the LUN was served."""
        return self._changed

    async def set(self, changes: Mapping[str, object], options: PolicyOptions) -> Policy:
        """All of it or nothing; the effective policy. Raises ApiError."""
        async with self.lock:
            if options.if_generation not in (None, self.generation):
                raise ApiError(
                    "Busy",
                    f"the policy of {self._name} is at generation {self.generation}, not {options.if_generation};"
                    " look at it again and repeat the change",
                )
            try:
                policy = change(self._configured if options.reset else self.policy, changes)
                keys = touched(changes)
                new = {key: value for key, value in flatten(policy).items() if key in keys}
                kept = new if options.reset else {**self._kept, **new}
                if options.persist:
                    change(self._configured, kept)  # without what is not kept it may make no sense
            except PolicyError as error:
                raise ApiError("InvalidPolicy", str(error)) from error
            if options.dry_run:
                return policy
            if options.persist:
                try:
                    await offload(self._keep, kept)
                except OSError as error:
                    raise ApiError(
                        "Failed", f"the policy of {self._name} cannot be kept, so it is not changed: {error}"
                    ) from error
                self._kept = kept
            self._changed = new if options.reset else {**self._changed, **new}
            self._wishes.set_policy(self._changed)
            self._use(policy)
            return policy

    def reconfigure(self, configured: Policy) -> tuple[Policy, Callable[[], None]]:
        """With `lock` held: the policy under another configuration with the same changes, and what makes it count.

        Raises PolicyError.
        """
        policy = change(configured, self._changed)

        def use() -> None:
            self._configured = configured
            self._use(policy)

        return policy, use

    def _use(self, policy: Policy) -> None:
        if policy != self.policy:
            self.policy = policy
            self.generation += 1
            self._apply(policy)
