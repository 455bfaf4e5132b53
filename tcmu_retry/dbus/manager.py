"""org.tcmu.Retry1.Manager."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from tcmu_retry.daemon.api import ApiError, ExportRequest, Notice, ServiceApi
from tcmu_retry.dbus._lib import Variant
from tcmu_retry.dbus.interface import own
from tcmu_retry.dbus.names import MANAGER
from tcmu_retry.dbus.values import options, plain, record, seconds, variant

_REQUEST = {
    "name": "text",
    "config": "text",
    "size": "number",
    "block-size": "number",
    "portals": "list of texts",
    "initiators": "list of texts",
    "any-initiator": "switch",
    "wwn": "text",
    "target": "text",
}
LONGEST = 10_000  # events or samples in one answer
USUAL = 1000
LONGEST_WAY = 300.0  # seconds


class Manager:
    """Makes and removes LUNs."""

    interface = own(MANAGER)

    def __init__(self, service: ServiceApi) -> None:
        self._service = service

    def properties(self) -> dict[str, object]:
        return {"Version": self._service.version}

    async def export(self, request: Mapping[str, Variant]) -> dict[str, Variant]:
        given = options(request, _REQUEST)
        for required in ("name", "config"):
            if not given.get(required):
                raise ApiError("InvalidArgument", f"an export needs a {required}")
        result = await self._service.export(ExportRequest(**given))
        settings = [list(setting) for setting in result.settings]
        return record(result, settings=Variant("a(sss)", settings))

    async def unexport(self, name: str) -> None:
        await self._service.unexport(name)

    def check_config(self, config: str) -> str:
        return self._service.check_config(config)

    def give_way(self, duration: float) -> None:
        self._service.give_way(min(seconds(duration, "the time to give way") or 0.0, LONGEST_WAY))

    async def get_history(self, device: str, how: Mapping[str, Variant]) -> list[list[object]]:
        return [event(notice) for notice in await self._service.history(device, *_range(how))]

    async def get_samples(self, device: str, how: Mapping[str, Variant]) -> list[list[object]]:
        return [list(astuple(sample)) for sample in await self._service.samples(device, *_range(how, LONGEST))]


def _range(how: Mapping[str, Variant], usual: int = USUAL) -> tuple[float, int]:
    """since and limit. Raises ApiError InvalidArgument."""
    given: dict[str, Any] = dict(how)
    since = plain(given.pop("since", 0.0))
    if not isinstance(since, int | float) or isinstance(since, bool):
        raise ApiError("InvalidArgument", "the option since must be a number of seconds since the epoch")
    limit = options(given, {"limit": "number"}).get("limit", usual)
    return seconds(since, "since") or 0.0, min(limit, LONGEST)


def event(notice: Notice) -> list[object]:
    """The body of the signal Event."""
    fields = {key: variant(value) for key, value in notice.fields.items() if value is not None}
    return [notice.code, notice.device, notice.message, notice.time, fields]
