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
            "sd tries six times, and each try lasts 60 s or 90 s with open-iscsi's defaults (Debian 12, kernel 6.1);"
            " first errors were measured at 429 s, 435 s, 504 s and 524 s",
        ),
        Profile(
            "linux-tuned",
            FOR_EVER,
            FOR_EVER,
            "with packaging/udev/60-tcmu-retry-initiator.rules: a day for each command, and no limit of retries",
        ),
        Profile(
            "windows", 60, None, "Disk\\TimeoutValue as installers commonly set it; MaxRequestHoldTime is 60 s too"
        ),
        Profile(
            "esxi",
            140,
            None,
            "Misc.APDTimeout; the host's own I/O fails after it, that of its virtual machines is tried on",
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
    return Profile("custom", seconds, None, "configured")
