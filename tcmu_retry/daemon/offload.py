"""Blocking calls off the main loop, one thread each, so that one which hangs holds up nothing but itself.

asyncio's own executor is no use for storage: its few threads would all end up waiting for the storage that is down,
and the interpreter joins them when it exits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar


class Closable(Protocol):
    """What is open. close may block."""

    def close(self) -> None: ...


P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Closable)


async def offload(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run call(...) in a daemonic thread and give its result. Cancelling leaves the thread to itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result, error = call(*arguments, **options), None
        except Exception as failure:
            result, error = None, failure
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    name = getattr(call, "__name__", "call")
    threading.Thread(target=run, name=f"offload-{name}", daemon=True).start()
    return await future


async def offload_opening(call: Callable[[], C]) -> C:
    """As `offload`; what is open only after nobody waits for it any more is closed again."""
    opening = asyncio.ensure_future(offload(call))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise


def _close(opening: asyncio.Future[C]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        closing = asyncio.ensure_future(offload(opening.result().close))
        closing.add_done_callback(lambda done: done.cancelled() or done.exception())
