"""The configuration read again while LUNs are served: for all of them or, if any of it is wrong, for none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from tcmu_retry.core.policy import PolicyError
from tcmu_retry.daemon.config import ConfigError, Source
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.offload import offload


async def reload(source: Source, served: Callable[[], Sequence[Device]]) -> list[str]:
    """What changed, in lines. served: the LUNs there are. Raises ConfigError; nothing was changed then."""
    _, problems = await offload(source.check)
    if problems:
        raise ConfigError("; ".join(problems))
    lines: list[str] = []
    uses: list[Callable[[], None]] = []
    async with contextlib.AsyncExitStack() as locks:
        devices = served()
        configs = []
        for device in devices:
            await locks.enter_async_context(device.policy_lock)
            configs.append(await offload(source.device, device.lun.config))
        for device, config in zip(devices, configs, strict=True):
            try:
                changed, use = device.reconfigure(config)
            except PolicyError as error:
                raise ConfigError(
                    f"LUN {device.name}: {error}, together with what was changed while it runs;"
                    f" `tcmu-retry policy reset {device.name}` takes that back"
                ) from None
            lines += [f"LUN {device.name}: {line}" for line in changed]
            uses.append(use)
        for use in uses:
            use()
    return lines
