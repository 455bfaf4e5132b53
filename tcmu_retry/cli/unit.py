"""The systemd unit that the daemon belongs to, over D-Bus."""

from __future__ import annotations

from typing import Any

from tcmu_retry.cli.client import Client, CliError
from tcmu_retry.dbus.names import PROPERTIES
from tcmu_retry.dbus.systemd import SYSTEMD, SYSTEMD_MANAGER, SYSTEMD_PATH


class Unit:
    """Raises CliError."""

    def __init__(self, client: Client, path: str, name: str) -> None:
        self.name = name
        self._client = client
        self._path = path
        self._job = ""

    @classmethod
    async def of(cls, client: Client, process: int) -> Unit:
        """The one that a process belongs to."""
        try:
            path = await client.systemd(SYSTEMD_PATH, SYSTEMD_MANAGER, "GetUnitByPID", "u", process)
            return cls(client, path, await _property(client, path, "Unit", "Id"))
        except CliError:
            raise CliError(
                "systemd did not start this tcmu-retryd; end it with SIGUSR2 and start the new one at once"
            ) from None

    async def restart(self) -> None:
        """Let systemd begin to restart it."""
        self._job = await self._client.systemd(SYSTEMD_PATH, SYSTEMD_MANAGER, "RestartUnit", "ss", self.name, "replace")

    async def restarting(self) -> bool:
        """Whether that restart goes on; its length is bounded by the unit's TimeoutStopSec and TimeoutStartSec."""
        _, job = await _property(self._client, self._path, "Unit", "Job")
        return bool(job == self._job)

    async def down(self) -> str:
        """What it is instead of active, and why, in systemd's words; "" if it is active."""
        active = await _property(self._client, self._path, "Unit", "ActiveState")
        result = await _property(self._client, self._path, "Service", "Result")
        return "" if active == "active" else f"{active} ({result})"

    async def start_seconds(self) -> float:
        """Its TimeoutStartSec."""
        return int(await _property(self._client, self._path, "Service", "TimeoutStartUSec")) / 1e6


async def _property(client: Client, path: str, kind: str, name: str) -> Any:
    return await client.systemd(path, PROPERTIES, "Get", "ss", f"{SYSTEMD}.{kind}", name)
