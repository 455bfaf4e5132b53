"""`targetcli-retry`: the installed targetcli, run with nodes of ours where it would make its own for user:retry."""

from __future__ import annotations

import runpy
import shutil
import sys
from typing import Any

from targetcli import ui_backstore
from targetcli.ui_node import ExecutionError

from targetcli_retry.bus import last_refusal
from targetcli_retry.nodes import Controls

HANDLER = "retry"
Backstore = ui_backstore.UIUserBackedBackstore
StorageObject = ui_backstore.UIUserBackedStorageObject


class RetryStorageObject(Controls, StorageObject):  # type: ignore[misc, valid-type]
    """A LUN of user:retry."""

    def __init__(self, storage_object: Any, parent: Any) -> None:
        StorageObject.__init__(self, storage_object, parent)
        self.add_controls(storage_object.name)

    def summary(self) -> tuple[str, bool]:
        text, _ = StorageObject.summary(self)
        state, well = self.retry_summary()
        return f"{text}, {state}", well


class RetryBackstore(Backstore):  # type: ignore[misc, valid-type]
    """/backstores/user:retry."""

    def refresh(self) -> None:
        self._children = set()
        for store in ui_backstore.RTSRoot().storage_objects:
            if store.plugin == "user" and store.config and store.config.split("/")[0] == HANDLER:
                RetryStorageObject(store, self)

    def ui_command_create(
        self, name: str, size: str, cfgstring: str, wwn: Any = None, hw_max_sectors: Any = None, control: Any = None
    ) -> Any:
        try:
            Backstore.ui_command_create(self, name, size, cfgstring, wwn, hw_max_sectors, control)
        except ExecutionError as error:
            reason = last_refusal(name)
            if "creation failed" not in str(error) or not reason:
                raise
            raise ExecutionError(f"{name}: {reason}") from None
        self.refresh()

    ui_command_create.__doc__ = Backstore.ui_command_create.__doc__


def _made(cls: type[Any], _parent: Any, name: str, *_rest: Any) -> Any:
    """What stands for a handler in the tree.

    targetcli 2.1 calls super() with its class by name, so nothing else may take that name.
    """
    return object.__new__(RetryBackstore if name == HANDLER and cls is Backstore else cls)


def main() -> None:
    """Exits as targetcli does."""
    script = shutil.which("targetcli")
    if script is None:
        sys.exit("targetcli-retry: there is no targetcli in PATH; install it (Debian: targetcli-fb)")
    Backstore.__new__ = staticmethod(_made)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
