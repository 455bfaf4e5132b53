"""The chain of time-outs from storage to initiator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcmu_retry.core.initiators import FOR_EVER, Profile
from tcmu_retry.core.policy import Fallback, Policy
from tcmu_retry.core.words import format_duration
from tcmu_retry.scsi.request import Direction


@dataclass(frozen=True, slots=True)
class Link:
    """One link. lasts: seconds until it ends a hold, FOR_EVER for never. wrong: what to do about it, "" if right."""

    where: str  # ring | storage | policy | kernel | session | initiator
    setting: str
    value: str
    lasts: float = FOR_EVER
    wrong: str = ""


# LIO raises MaxCmdSN with a response, and an aborted command gets none: it costs its session a place until the next
# login (iscsit_aborted_task, Linux 6.1 to today). A window that is closed stays closed until then.
SENT = 128  # commands that open-iscsi has open at most in a session (cmds_max)
ABORTED = 6 * 32  # in one hold by Linux with all defaults: six tries of what it has open at one LUN (queue_depth)

# What `export` sets, and why holding needs it.
REASONS = {
    "cmd_time_out": "never: the kernel's own time-out fails a held command for good, and tells nobody",
    "qfull_time_out": "commands that find ring or data area full wait in the kernel, well under Linux's 180 s",
    "tmr_notification": "ABORT TASK and LUN RESET are heard of and answered in time, however long a command is held",
    "hw_max_sectors": "the longest command, so that a window of them fits into the data area",
    "default_cmdsn_depth": "a session's window, the widest there is: held commands fill it, aborted ones narrow it",
    "authentication": "no CHAP; access is by the initiator's name",
    "generate_node_acls": "any initiator may log in",
    "cache_dynamic_acls": "and keeps its registrations over a new login",
    "demo_mode_write_protect": "and may write",
}


def ring_links(error: str) -> list[Link]:
    """What kernel and daemon share; error: what is in the way of mending it, "" while it is in order."""
    if not error:
        return []
    wrong = (
        f"its ring is broken and all commands are answered BUSY: {error}; this is tried again by itself, and if it does"
        " not end: free what is in the way, or unexport the LUN and export it again"
    )
    return [Link("ring", "commands", "BUSY", 0.0, wrong)]


def policy_links(policy: Policy, profile: Profile) -> list[Link]:
    """What the policy promises, held against what the initiator tolerates."""
    links = []
    for side in Direction:
        settings = policy.of(side)
        key = f"{side.value}.retry_timeout"
        if not settings.retry:
            links.append(Link("policy", f"{side.value}.retry", "false", 0.0))
            continue
        lasts = settings.retry_timeout or FOR_EVER
        value = format_duration(settings.retry_timeout) if settings.retry_timeout else "0s (for ever)"
        wrong = ""
        if settings.retry_timeout > profile.silence:
            wrong = (
                f"{key}={value} is more than {profile.name} waits ({format_duration(profile.silence)}): the initiator"
                f" fails first, and {settings.fallback.value} comes too late; shorten it or tune the initiator"
            )
        elif settings.fallback is Fallback.BUSY and profile.busy is not None and settings.retry_timeout > profile.busy:
            wrong = f"BUSY after {value} is an error at once for {profile.name}, which counts from the first submission"
        links.append(Link("policy", key, value, lasts, wrong))
    return links


def kernel_links(attributes: Mapping[str, str], wanted: Mapping[str, str]) -> list[Link]:
    """Attributes of the kernel's device."""
    links = []
    for name, want in wanted.items():
        value = attributes.get(name, "not readable")
        wrong = "" if value == want else f"{name} must be {want}; unexport the LUN and export it again"
        lasts = float(value) if name == "cmd_time_out" and value.isdigit() and value != "0" else FOR_EVER
        links.append(Link("kernel", name, value, lasts, wrong))
    return links


def session_links(windows: Mapping[str, tuple[int, int | None]]) -> list[Link]:
    """Command windows of the sessions, by initiator: the depth, and what aborts have left of it (None: not known)."""
    least = SENT + ABORTED
    links = []
    for name, (depth, left) in windows.items():
        value, wrong = str(depth) if left is None else f"{depth}, {left} left", ""
        if depth < least:
            wrong = (
                f"a window below {least} may close in an outage, for each aborted command takes a place until the next"
                " login; set default_cmdsn_depth (of an ACL: cmdsn_depth) to 512 before the initiator logs in"
            )
        elif left is not None and left < least:
            wrong = (
                f"aborted commands have left {left} places and the next outage may take {ABORTED}; with none left it"
                " can send nothing: let the initiator log out and in, or write another cmdsn_depth to its ACL"
            )
        links.append(Link("session", f"window of {name}", value, wrong=wrong))
    return links


def initiator_link(profile: Profile) -> Link:
    """How long the initiator waits for a held command, and what ends that."""
    value = "for ever" if profile.silence == FOR_EVER else format_duration(profile.silence)
    return Link("initiator", f"{profile.name}: {profile.because}", value, profile.silence)
