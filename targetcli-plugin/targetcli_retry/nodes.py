"""What a LUN of user:retry has in the tree besides targetcli's own: groups `policy` and `state`, verbs, `held`.

configshell's parser knows letters, digits, _ and - in a parameter's name: the dots of policy keys are written as -.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from targetcli.ui_node import ExecutionError, UINode

from targetcli_retry.bus import Device, RetryError

SHOWN = 200  # held commands
DIRECTIONS = ("read", "write")
STATE = {
    "read": "State of reads: online, retrying, down, failed or stopped.",
    "write": "State of writes.",
    "read_error": "Last error of the outage of reads.",
    "write_error": "Last error of the outage of writes.",
    "read_outage": "Seconds since reads failed first.",
    "write_outage": "Seconds since writes failed first.",
    "read_next_probe": "Seconds until the storage is tried again by a read.",
    "write_next_probe": "Seconds until the storage is tried again by a write.",
    "held": "Commands that wait.",
    "held_bytes": "Bytes of these.",
    "oldest_held": "Seconds since the oldest of these arrived.",
    "in_flight": "I/O that is out.",
    "hung": "I/O that is out for longer than io_warn_after.",
    "hold_reason": "Why a person holds the LUN.",
    "draining": "Whether nothing new is tried because of `drain`.",
    "backend_error": "Why the storage is not open.",
    "ring_error": "Why its ring, which is broken, is not mended yet.",
    "path": "The storage.",
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def told(method: Callable[..., Any]) -> Callable[..., Any]:
    """Whatever the daemon refuses is an error of the shell: a sentence."""

    @functools.wraps(method)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except RetryError as error:
            raise ExecutionError(str(error)) from None

    return wrapper


class Controls(UINode):  # type: ignore[misc]
    """A node of a LUN. `add_controls` comes once, after the node was made."""

    device: Device

    def add_controls(self, name: str) -> None:
        self.device = Device(name)
        for parameter, description in STATE.items():
            self.define_config_group_param("state", parameter, "string", description, False)
        try:
            keys = self.device.policy()
        except RetryError:
            return  # the groups and verbs say why, once they are used
        for parameter, description in _parameters(keys):
            self.define_config_group_param("policy", parameter, "string", description)
        Held(self)

    # ---- groups

    @told
    def ui_getgroup_policy(self, parameter: str) -> str:
        key, policy = parameter.replace("-", "."), self.device.policy()
        if key in policy:
            return policy[key]
        values = {side: policy.get(f"{side}.{key}", "n/a") for side in DIRECTIONS}
        if len(set(values.values())) == 1:
            return values["read"]
        return ", ".join(f"{side}: {value}" for side, value in values.items())

    @told
    def ui_setgroup_policy(self, parameter: str, value: str) -> None:
        self.assert_root()
        self.device.set_policy(parameter.replace("-", "."), value or "")

    @told
    def ui_getgroup_state(self, parameter: str) -> str:
        return str(_state(self.device.call("GetStatus")).get(parameter, "-"))

    # ---- verbs

    @told
    def ui_command_hold(self, reason: str = "", expires: str = "0") -> None:
        """
        Tries nothing until `resume`: commands wait, whatever the storage
        does.

        PARAMETERS
        ==========
        reason
        ------
        Shown to whoever looks at the LUN.

        expires
        -------
        The hold ends by itself after so long: 30s, 5m, 1h. 0: it does not.
        """
        self.assert_root()
        self.device.call("Hold", "(sd)", reason or "", _seconds(expires))
        self.shell.log.info("Held.")

    @told
    def ui_command_resume(self) -> None:
        """
        Ends a hold, and every stop, readonly and offline of a policy.
        """
        self.assert_root()
        self.device.call("Resume")
        self.shell.log.info("Resumed.")

    @told
    def ui_command_drain(self) -> None:
        """
        Starts nothing more and returns when no I/O is out; what is held
        stays held until `undrain`.
        """
        self.assert_root()
        self.device.call("Drain")
        self.shell.log.info("Drained.")

    @told
    def ui_command_undrain(self) -> None:
        """
        Ends a drain.
        """
        self.assert_root()
        self.device.call("Undrain")
        self.shell.log.info("Going on.")

    @told
    def ui_command_retry(self, serial: str = "all") -> None:
        """
        Tries now: one held command by its serial (`ls held`), or all; where
        none is held, the storage is probed.
        """
        self.assert_root()
        self._count(self.device.call("Kick", "(at)", _serials(serial)), "tried")

    @told
    def ui_command_fail(self, serial: str) -> None:
        """
        Answers held commands with an error now: one by its serial
        (`ls held`), or all.
        """
        self.assert_root()
        self._count(self.device.call("Fail", "(at)", _serials(serial)), "failed")

    @told
    def ui_command_release(self) -> None:
        """
        Answers BUSY to all that is open; initiators send it again.
        """
        self.assert_root()
        self._count(self.device.call("Release"), "released")

    def _count(self, count: int, done: str) -> None:
        self.shell.log.info(f"{count} command{'' if count == 1 else 's'} {done}.")

    def retry_summary(self) -> tuple[str, bool]:
        """State in a few words, and whether all is well."""
        try:
            status = _state(self.device.call("GetStatus"))
        except RetryError as error:
            return str(error), False
        words = [f"{side} {status[side]}" for side in DIRECTIONS if status[side] != "online"]
        if status["held"]:
            words.append(f"{status['held']} held")
        if status["hung"]:
            words.append(f"{status['hung']} hung")
        return ", ".join(words) or "online", not words


class Held(UINode):  # type: ignore[misc]
    """The held commands, as they are whenever somebody looks."""

    def __init__(self, parent: Controls) -> None:
        self._device = parent.device
        UINode.__init__(self, "held", parent)

    @property
    def children(self) -> set[UINode]:
        self._children = set()
        try:
            held = self._device.call("GetHeld", "(uu)", 0, SHOWN)
        except RetryError:
            return self._children
        for command in held:
            HeldCommand(self, command)
        return self._children

    def summary(self) -> tuple[str, bool]:
        try:
            count = self._device.call("GetStatus")["held"]
        except RetryError as error:
            return str(error), False
        return f"{count} command{'' if count == 1 else 's'}", not count


class HeldCommand(UINode):  # type: ignore[misc]
    """One of them, named by its serial."""

    def __init__(self, parent: Held, command: dict[str, Any]) -> None:
        self._command = command
        UINode.__init__(self, str(command["serial"]), parent)

    def summary(self) -> tuple[str, bool]:
        command = self._command
        text = f"{command['operation']} LBA {command['lba']}, {command['blocks']} blocks, {command['age']:.0f} s old"
        if command["error"]:
            text += f", {command['error']} after {command['attempts']} attempts"
        text += f", waits for {command['waits_for']}"
        if "next_in" in command:
            text += f" in {command['next_in']:.1f} s"
        return text, False


def _parameters(policy: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The parameters of group policy: those of both directions first."""
    for key in sorted({key.partition(".")[2] for key in policy if key.split(".")[0] in DIRECTIONS}):
        yield key.replace(".", "-"), f"{key} of both directions; see README.md of tcmu-retry."
    for key in sorted(policy):
        side, _, rest = key.partition(".")
        yield key.replace(".", "-"), f"{rest} of {side}s." if side in DIRECTIONS else f"{key}."


def _state(status: dict[str, Any]) -> dict[str, Any]:
    """The flat view of GetStatus."""
    flat = {key: value for key, value in status.items() if not isinstance(value, dict)}
    for side in DIRECTIONS:
        half = status[side]
        flat[side] = half["state"]
        flat[f"{side}_error"] = half.get("error") or "-"
        for name, key in (("outage", "outage"), ("next_probe", "next_probe_in")):
            if key in half:
                flat[f"{side}_{name}"] = f"{half[key]:.1f}"
    return {key: "-" if value == "" else value for key, value in flat.items()}


def _serials(word: str) -> list[int]:
    """Raises RetryError."""
    if word == "all":
        return []
    if not str(word).isdigit():
        raise RetryError(f"{word} is no serial of a held command; `ls held` shows them, and all means all of them")
    return [int(word)]


def _seconds(text: str) -> float:
    """Raises RetryError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", str(text))
    if match is None:
        raise RetryError(f"{text} is not a duration; write 30s, 5m or 1h")
    return float(match[1]) * _SECONDS[match[2]]
