"""A LUN's chain of time-outs, from its policy to its initiators, for `tcmu-retry doctor`."""

from __future__ import annotations

from tcmu_retry.core.chain import Link, initiator_link, kernel_links, policy_links, session_links
from tcmu_retry.core.initiators import Profile
from tcmu_retry.core.policy import Policy
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.tcmu.configfs import ATTRIBUTES


def links(lun: Lun, policy: Policy, profile: Profile, opened: int) -> list[Link]:
    """All of it but ring and storage. opened: commands that all initiators have open. Blocking."""
    if sharers := lun.sharers():
        profile = profile.at_once(sharers)
    windows: dict[str, tuple[int, int | None]] = {}
    for name, window in lun.windows().items():
        windows[name] = (window.depth, None if window.free is None else min(window.free + opened, window.depth))
    return [
        *policy_links(policy, profile),
        *kernel_links(lun.attributes(), ATTRIBUTES),
        *session_links(windows),
        initiator_link(profile),
    ]
