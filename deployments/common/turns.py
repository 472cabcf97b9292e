"""Lets the calls of one session pass one after another, in order of arrival. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Queue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    callers: int = 0  # that hold it or wait for it


class Turns:
    """One turn at a time for each key: `async with turns.of(session_id): …`. Forgets a key with its last caller."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    def __len__(self) -> int:
        """Keys that somebody holds or waits for."""
        return len(self._queues)

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        queue = self._queues.setdefault(key, _Queue())
        queue.callers += 1
        try:
            async with queue.lock:
                yield
        finally:
            queue.callers -= 1
            if not queue.callers:
                del self._queues[key]
