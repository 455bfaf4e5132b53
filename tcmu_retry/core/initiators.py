"""How long initiators wait: what a policy may promise to whom."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tcmu_retry.core.words import meant, parse_duration

FOR_EVER = math.inf


@dataclass(frozen=True, slots=True)
class Profile:
    """What one kind of initiator tolerates, in seconds. busy None: not known.

    silence: a command that is held, if its aborts are answered at once.
    busy: BUSY and what is sent again like it, from the first submission of a command.
    """

    name: str
    silence: float
    busy: float | None
    because: str


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "linux",
            360,
            180,
            "sd gives up after six tries of 60 s or 90 s each; measured: EIO after 429 s to 524 s",
        ),
        Profile(
            "linux-tuned",
            FOR_EVER,
            FOR_EVER,
            "a day for each try, and tries without end, by packaging/udev/60-tcmu-retry-initiator.rules",
        ),
        Profile("windows", 60, None, "Disk\\TimeOutValue as installers commonly set it, MaxRequestHoldTime"),
        Profile(
            "esxi",
            140,
            None,
            "Misc.APDTimeout, after which the host's own I/O fails and that of its virtual machines is tried on",
        ),
    )
}


def parse_profile(value: object, key: str) -> Profile:
    """A profile by name, or of one's own by a duration. Raises ValueError."""
    if isinstance(value, str) and value in PROFILES:
        return PROFILES[value]
    try:
        seconds = parse_duration(value, key)
    except ValueError:
        raise ValueError(
            f"{key}={value} is neither a known initiator nor a duration such as 300s; {meant(str(value), PROFILES)}"
        ) from None
    return Profile("custom", seconds or FOR_EVER, None, "configured")
