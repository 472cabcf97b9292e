"""Notices when an asynchronous source yields nothing for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

T = TypeVar("T")


async def with_silences(
    source: AsyncGenerator[T, None], timeout_s: Callable[[], float | None]
) -> AsyncGenerator[T | None, None]:
    """The items of a source as they arrive, and None whenever none has arrived for timeout_s(). Closes the source.

    timeout_s is called before each wait; its result None means: wait as long as it takes. The wait for an item goes on
    after a None: the source is not cancelled.
    """
    coming: asyncio.Future[T] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(source))
            await asyncio.wait({coming}, timeout=timeout_s())
            if not coming.done():
                yield None
                continue
            done, coming = coming, None
            try:
                item = done.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
        await source.aclose()
