"""What is printed: a table for people, or one JSON object for programs (members are only added within a schema)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

SCHEMA = 1


def as_json(**members: object) -> None:
    """Print one object. Names in it have underscores."""
    sys.stdout.write(json.dumps({"schema": SCHEMA, **underscored(members)}, indent=2) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table; a column whose head begins with > is aligned to the right."""
    shown = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        shown.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    count = 0
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
        count += 1
    if count:
        console = Console(highlight=False, markup=False)
        if not console.is_terminal:
            console.width = 400  # nobody folds lines for a pipe
        console.print(shown)
    else:
        say(empty)


def pairs(items: Iterable[tuple[str, object]]) -> None:
    """Print names and values below each other."""
    items = list(items)
    width = max((len(name) for name, _ in items), default=0)
    for name, value in items:
        say(f"{name:<{width}}  {value}".rstrip())


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def underscored(value: Any) -> Any:
    """Names as JSON has them."""
    if isinstance(value, dict):
        return {key.replace("-", "_"): underscored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [underscored(item) for item in value]
    return value
