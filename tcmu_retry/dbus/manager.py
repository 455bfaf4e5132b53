"""org.tcmu.Retry1.Manager."""

from __future__ import annotations

from collections.abc import Mapping

from tcmu_retry.daemon.api import ApiError, ExportRequest, Notice, ServiceApi
from tcmu_retry.dbus._lib import Variant
from tcmu_retry.dbus.interface import own
from tcmu_retry.dbus.names import MANAGER
from tcmu_retry.dbus.values import options, record, variant

_REQUEST = {
    "name": "text",
    "config": "text",
    "size": "number",
    "block-size": "number",
    "portals": "list of texts",
    "initiators": "list of texts",
    "any-initiator": "switch",
    "wwn": "text",
}


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


def event(notice: Notice) -> list[object]:
    """The body of the signal Event."""
    fields = {key: variant(value) for key, value in notice.fields.items() if value is not None}
    return [notice.code, notice.device, notice.message, notice.time, fields]
