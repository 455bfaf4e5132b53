"""org.tcmu.Retry1.Device."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tcmu_retry.core.policy import flatten
from tcmu_retry.daemon.api import DeviceApi, PolicyOptions
from tcmu_retry.dbus._lib import Variant
from tcmu_retry.dbus.interface import own
from tcmu_retry.dbus.names import DEVICE
from tcmu_retry.dbus.values import options, plain, record, seconds

PAGE = 1000  # commands in one answer: some milliseconds of the main loop, well below the bus's largest message


class DeviceObject:
    """One LUN."""

    interface = own(DEVICE)

    def __init__(self, device: DeviceApi) -> None:
        self._device = device

    def properties(self) -> dict[str, object]:
        status = self._device.status()
        return {
            "Name": status.name,
            "Wwn": status.wwn,
            "Path": status.path,
            "Size": status.size,
            "BlockSize": status.block_size,
            "ReadState": status.read.state,
            "WriteState": status.write.state,
            "Held": status.held,
            "HeldBytes": status.held_bytes,
            "HoldReason": status.hold_reason,
            "Draining": status.draining,
            "BackendError": status.backend_error,
            "RingError": status.ring_error,
            "Policy": flatten(self._device.policy),
            "PolicyGeneration": status.policy_generation,
            "PolicyChanged": dict(self._device.policy_changed),
        }

    def get_status(self) -> dict[str, Variant]:
        return record(self._device.status())

    def get_held(self, offset: int, limit: int) -> list[dict[str, Variant]]:
        return [record(command) for command in self._device.held(offset, min(limit or PAGE, PAGE))]

    def get_statistics(self) -> dict[str, int]:
        return self._device.statistics()

    async def set_policy(self, changes: Mapping[str, Variant], how: Mapping[str, Variant]) -> dict[str, str]:
        known = {"dry-run": "switch", "persist": "switch", "reset": "switch", "if-generation": "number"}
        given = PolicyOptions(**options(how, known))
        return flatten(await self._device.set_policy(plain(dict(changes)), given))

    def kick(self, serials: list[int]) -> int:
        return self._device.kick(serials)

    def fail(self, serials: list[int]) -> int:
        return self._device.fail(serials)

    def release(self) -> int:
        return self._device.release()

    def hold(self, reason: str, expires: float) -> None:
        self._device.hold(reason, seconds(expires, "the end of a hold"))

    def resume(self) -> None:
        self._device.resume()

    async def diagnose(self) -> list[dict[str, Variant]]:
        links = [record(link) for link in await self._device.diagnose()]
        for link in links:
            if math.isinf(link["lasts"].value):
                del link["lasts"]
        return links

    async def drain(self) -> None:
        await self._device.drain()

    def undrain(self) -> None:
        self._device.undrain()
