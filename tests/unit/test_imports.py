"""Imports point one way: the pure rooms know nothing of the others, and the controls never touch the kernel's side."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "tcmu_retry"

MAY_IMPORT = {
    "core": {"scsi"},
    "scsi": set(),
    "backends": {"core", "scsi"},
    "tcmu": {"scsi"},
    "pump": {"backends", "core", "scsi", "tcmu"},
    "daemon": {"backends", "core", "pump", "scsi", "tcmu"},
    "dbus": {"core", "daemon"},
    "cli": {"core", "daemon", "dbus"},
}
# Of the rooms above: only their plain types.
ONLY = {
    ("core", "scsi"): {"request", "sense"},
    ("dbus", "daemon"): {"api"},
    ("cli", "daemon"): {"config"},  # for `config check`, which needs no daemon
    ("tcmu", "scsi"): {"request", "sense"},
}
PURE = {"core", "scsi"}
IMPURE = {"asyncio", "os", "time", "random", "threading", "socket", "subprocess", "logging", "pathlib", "mmap"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = [(room, path) for room in MAY_IMPORT for path in sorted((PACKAGE / room).rglob("*.py"))]


@pytest.mark.parametrize(("room", "path"), FILES, ids=[str(path.relative_to(PACKAGE)) for _, path in FILES])
def test_a_file_imports_only_what_its_room_may(room: str, path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "tcmu_retry" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
            other = parts[1]
            assert other == room or other in MAY_IMPORT[room], f"{room} must not import {name}"
            if (room, other) in ONLY and len(parts) > 2:
                assert parts[2] in ONLY[room, other], f"{room} may import only {ONLY[room, other]} of {other}"
        elif room in PURE:
            assert parts[0] not in IMPURE, f"{room} is pure and must not import {name}"


def test_every_room_is_in_the_table() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(MAY_IMPORT)
