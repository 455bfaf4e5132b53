"""The one place that knows which D-Bus library is there: dbus-fast, or dbus-next, whose continuation it is.

TCMU_RETRY_DBUS names one of them and rules out the other. Only what both have in the same shape is used: the message
layer. Their service layers differ in what they tell a caller, hide who called, and send the object manager's signals
from the wrong object; `tree` does that part from the XML.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbus_fast import BusType, Message, MessageFlag, MessageType, NameFlag, RequestNameReply, Variant
    from dbus_fast.aio import MessageBus
    from dbus_fast.errors import AuthError, InvalidAddressError

    LIBRARY = "dbus_fast"
else:
    _wanted = os.environ.get("TCMU_RETRY_DBUS")
    for LIBRARY in (_wanted,) if _wanted else ("dbus_fast", "dbus_next"):
        try:
            _library = importlib.import_module(LIBRARY)
            MessageBus = importlib.import_module(f"{LIBRARY}.aio").MessageBus
            _errors = importlib.import_module(f"{LIBRARY}.errors")
            break
        except ImportError as error:
            _missing = error
    else:
        raise ImportError(f"no D-Bus library; install dbus-fast ({_missing})") from _missing
    BusType, Message, MessageFlag, MessageType = (
        _library.BusType,
        _library.Message,
        _library.MessageFlag,
        _library.MessageType,
    )
    NameFlag, RequestNameReply, Variant = _library.NameFlag, _library.RequestNameReply, _library.Variant
    AuthError, InvalidAddressError = _errors.AuthError, _errors.InvalidAddressError


async def close(bus: MessageBus) -> None:
    """Leave a bus; returns when it is left."""
    bus.disconnect()
    await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
    if LIBRARY == "dbus_next" and bus._sock is not None:
        bus._sock.close()  # which it leaves to the garbage collector


__all__ = [
    "LIBRARY",
    "AuthError",
    "BusType",
    "InvalidAddressError",
    "Message",
    "MessageBus",
    "MessageFlag",
    "MessageType",
    "NameFlag",
    "RequestNameReply",
    "Variant",
    "close",
]
