"""Waiting for something for so long and no longer, by tasks that may be cancelled at any moment."""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Awaited = TypeVar("Awaited")


async def within(seconds: float | None, awaited: Awaitable[Awaited]) -> Awaited:
    """What is awaited; None: however long it takes. Raises asyncio.TimeoutError.

    Not asyncio.wait_for(): before Python 3.12 that forgets a cancellation that comes together with what is awaited, and
    who has gone is served on.
    """
    task = asyncio.ensure_future(awaited)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if not task.done() or task.cancelled():
        raise TimeoutError
    return task.result()
