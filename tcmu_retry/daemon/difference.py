"""What another configuration changes of a LUN that is served: some of it at once, some when it is exported anew."""

from __future__ import annotations

from dataclasses import replace

from tcmu_retry.core.policy import Policy, flatten
from tcmu_retry.daemon.config import DeviceConfig

LIVE = ("health", "io_warn_after", "initiator", "budgets")
FIXED = ("path", "buffered", "read_only", "cache", "filters")


def applied(before: DeviceConfig, after: DeviceConfig) -> DeviceConfig:
    """The configuration that counts then."""
    return replace(before, policy=after.policy, **{name: getattr(after, name) for name in LIVE})


def lines(before: DeviceConfig, after: DeviceConfig) -> list[str]:
    """Of all but the policy."""
    changed = [f"{name} changed" for name in LIVE if getattr(before, name) != getattr(after, name)]
    later = [name for name in FIXED if getattr(before, name) != getattr(after, name)]
    return changed + [f"{name} stays as it is until the LUN is exported anew" for name in later]


def policy_lines(before: Policy, after: Policy) -> list[str]:
    """Of the policy that counts."""
    old, new = flatten(before), flatten(after)
    changed = [f"{key} {old.get(key, 'unset')} -> {new[key]}" for key in new if old.get(key) != new[key]]
    return changed + [f"{key} {old[key]} -> unset" for key in old.keys() - new.keys()]
