"""How long initiators wait: what a policy may promise to whom."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tcmu_retry.core.words import format_duration, meant, parse_duration

FOR_EVER = math.inf


@dataclass(frozen=True, slots=True)
class Profile:
    """What one kind of initiator tolerates, in seconds. busy None: not known.

    silence: a command that is held, if its aborts are answered as below.
    busy: BUSY and what is sent again like it, from the first submission of a command.
    tried: no command of this age or older is aborted but by the initiator's time-outs.
    abort_late, reset_late: how late ABORT TASK and LOGICAL UNIT RESET of such a command may be answered.
    prompt: `silence` where they must be answered at once.
    """

    name: str
    silence: float
    busy: float | None
    because: str
    tried: float = FOR_EVER
    abort_late: float = 0.0
    reset_late: float = 0.0
    prompt: float = 0.0

    def at_once(self, why: str) -> Profile:
        """The same where aborts must be answered at once; why: what forbids another answer."""
        if not (self.abort_late or self.reset_late):
            return self
        because = f"{format_duration(self.prompt)} only, for aborts are answered at once: {why}; {self.because}"
        return replace(self, silence=self.prompt, because=because, tried=FOR_EVER, abort_late=0.0, reset_late=0.0)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "linux",
            480,
            180,
            "sd gives up after six tries of 60 s or 90 s each, and waits for the answers to aborts between them",
            # A try is sd's 30 s and iscsi_eh_cmd_timed_out's, at most 2 s before the target's clock. The waits are
            # open-iscsi's abort_timeout of 15 s and lu_reset_timeout of 30 s (usr/iscsi_settings.h) less a margin.
            # 6 tries of 60 s, an abort and 4 resets between them: 482.5 s.
            tried=58,
            abort_late=12.5,
            reset_late=27.5,
            prompt=360,
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
