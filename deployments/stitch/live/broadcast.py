"""A session on air: its live clock and who listens. performance.py puts utterances on it.

Belongs to Stitch; knows no stage, no file and no HTTP. The ingress paces idle motion itself
(deployments/ingress/live/hub.py). Sent from here: speech, the mouth's way back to rest, and when the head must wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from deployments.common.clocks import stable_time_s
from deployments.common.messages import Ending, LiveEvent, LiveStart
from deployments.common.patience import within
from models.live.pauses import RestFragment
from models.live.timeline import IdleGrid, LiveClock, LiveFragment
from models.media.encode import MediaSpec
from models.types import PreparedAvatar

LISTENER_PIECES = 256  # a listener that takes none of so many is gone
HEARTBEAT_S = 5.0


class Broadcast:
    """One session that somebody watches. Not thread-safe: one event loop."""

    def __init__(self, start: LiveStart, grid: IdleGrid, clock: LiveClock) -> None:
        self.start, self.grid, self.clock = start, grid, clock
        self.taken = 0  # the line is spoken for up to this position
        self.rested: dict[int, RestFragment] = {}  # since what the session's file ends with, by position
        self._listeners: set[asyncio.Queue[LiveEvent | None]] = set()

    @property
    def watched(self) -> bool:
        return bool(self._listeners)

    def shows(self, avatar: PreparedAvatar, spec: MediaSpec) -> bool:
        return self.start.picture == (avatar.avatar_id, avatar.version, spec)

    def position(self) -> int:
        """The position that is due now."""
        return self.clock.position(stable_time_s())

    def send(self, piece: LiveFragment) -> None:
        self._tell(LiveEvent(self.clock, piece=piece))

    def expect(self, position: int) -> None:
        """Tell that speech is going to begin at a position; -1: that it is not."""
        self._tell(LiveEvent(self.clock, expect=position))

    def making(self, facts: dict[str, Any]) -> None:
        """Tell how far what is made has come."""
        self._tell(LiveEvent(self.clock, making=facts))

    def _tell(self, event: LiveEvent) -> None:
        for listener in list(self._listeners):
            if listener.qsize() >= LISTENER_PIECES:
                self._listeners.discard(listener)  # its stream ends, and it may ask again
                listener.put_nowait(None)
            else:
                listener.put_nowait(event)

    async def listen(self) -> AsyncGenerator[LiveEvent, None]:
        """The start, then pieces as they are released; a sign of life when there are none."""
        queue: asyncio.Queue[LiveEvent | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield LiveEvent(self.clock, self.start)
            while True:
                try:
                    event = await within(HEARTBEAT_S, queue.get())
                except TimeoutError:
                    event = LiveEvent(self.clock)
                if event is None:
                    return
                yield event
        finally:
            self._listeners.discard(queue)

    def close(self, why: Ending) -> None:
        """End every listener's stream, and say why."""
        for listener in self._listeners:
            listener.put_nowait(LiveEvent(self.clock, ended=why))
            listener.put_nowait(None)
