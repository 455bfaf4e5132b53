"""`watch` in numbers: rates between two looks, the curve of held commands, and colours only where they are wanted."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from tcmu_retry.cli.watch import View


def status(name: str = "vm1", held: int = 0, state: str = "online", **more: object) -> dict[str, Any]:
    side: dict[str, object] = {"state": state, "window": 1, "stopped": 0.0}
    if state == "down":
        side |= {"outage": 3.0, "next-probe-in": 1.5, "error": "ENOLINK"}
    return {
        "name": name, "read": {"state": "online"}, "write": side, "held": held, "oldest-held": 4.2, "in-flight": 2,
        "hung": 0, "hold-reason": "", "draining": False, **more,
    }  # fmt: skip


def counters(read: int, written: int) -> dict[str, int]:
    return {"read_bytes": read, "written_bytes": written}


def shown(view: View, terminal: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=140, force_terminal=terminal, color_system="standard" if terminal else None
    )
    console.print(view.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rates_are_those_between_two_looks() -> None:
    view = View()
    [first] = view.look(10.0, [(status(), counters(0, 0))])
    assert first["read-rate"] is None
    [second] = view.look(12.0, [(status(), counters(4 << 20, 1 << 20))])
    assert (second["read-rate"], second["write-rate"]) == (2 << 20, 512 << 10)
    assert "2 MiB/s" in shown(view)
    [third] = view.look(13.0, [(status(), counters(0, 0))])
    assert third["read-rate"] == 0, "a LUN that was made anew begins at nothing"


def test_an_outage_is_seen() -> None:
    view = View()
    for held in (0, 1, 4, 8):
        view.look(float(held), [(status(held=held, state="down"), counters(0, 0)), (status("vm2"), counters(0, 0))])
    text = shown(view)
    assert "read online, write down" in text
    assert "1.5 s" in text
    assert " ▁▄█" in text
    vm2 = next(line for line in text.splitlines() if line.startswith("vm2"))
    assert vm2.split()[1:4] == ["online", "0", "-"]


def test_a_person_s_hold_and_hung_io_are_seen() -> None:
    view = View()
    view.look(1.0, [(status(**{"hold-reason": "switch [replaced]", "hung": 1}), counters(0, 0))])
    assert "(switch [replaced])" in shown(view)
    assert "(1 hung)" in shown(view)


def test_events_stand_below_the_newest_last() -> None:
    view = View()
    for number in range(7):
        view.hear(["TR-001", "vm1", f"event {number}", 1.0, {}])
    text = shown(view)
    assert "event 1" not in text
    assert text.index("event 2") < text.index("event 6")


def test_no_color(monkeypatch: Any) -> None:
    view = View()
    view.look(1.0, [(status(state="down"), counters(0, 0))])
    assert "\x1b[31m" in shown(view, terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in shown(view, terminal=True)
