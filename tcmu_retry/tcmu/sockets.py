"""Socket diagnosis: how many connections wait to be accepted at the target's listeners."""

from __future__ import annotations

import errno
import socket

from pyroute2 import DiagSocket
from pyroute2.netlink.diag import SS_LISTEN


def backlogs() -> dict[tuple[str, int], int]:
    """For each TCP listener of this network namespace, (address, port): connections not accepted yet. May block.

    Raises OSError, and NetlinkError of pyroute2.
    """
    found = {}
    with DiagSocket() as diagnosis:
        diagnosis.bind()
        for family in (socket.AF_INET, socket.AF_INET6):
            for listener in diagnosis.get_sock_stats(family=family, states=1 << SS_LISTEN):
                if "idiag_rqueue" not in listener:  # NLMSG_ERROR, of which this socket of pyroute2 knows no more
                    raise OSError(
                        errno.EOPNOTSUPP, "the kernel does not tell; it needs its modules inet_diag and tcp_diag"
                    )
                # For a listener idiag_rqueue is its accept queue (sk_ack_backlog).
                found[listener["idiag_src"], listener["idiag_sport"]] = listener["idiag_rqueue"]
    return found
