"""What the kernel says of the target's listeners."""

from __future__ import annotations

import socket

import pytest

from tcmu_retry.tcmu import sockets
from tests.unit.pump.rig import patiently


def test_a_listener_is_there_with_the_connections_that_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):
            patiently(lambda: sockets.backlogs()[address] == 1)


def test_a_kernel_without_the_module_is_told_of_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of Linux 6.1 without inet_diag, as pyroute2 gives it."""
    answer = ({"header": {"type": 2, "error": None}, "event": "NLMSG_ERROR"},)
    monkeypatch.setattr(sockets.DiagSocket, "get_sock_stats", lambda *_, **__: answer)
    with pytest.raises(OSError, match="inet_diag and tcp_diag"):
        sockets.backlogs()
