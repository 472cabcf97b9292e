"""The broadcast of a watched session: its live clock, and the streams of events to the ingresses that listen.

The ingress plays idle motion by itself (deployments/ingress/live/hub.py). Stitch sends speech, the return of the mouth
to rest, and holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from deployments.common.clocks import stable_time_s
from deployments.common.messages import Ending, LiveEvent, LiveStart
from models.live.pauses import RestFragment
from models.live.timeline import IdleGrid, LiveClock, LiveFragment
from models.media.encode import MediaSpec
from models.types import PreparedAvatar

MAX_QUEUED_EVENTS = 256  # a listener that reads none of these is disconnected
HEARTBEAT_S = 5.0


class Broadcast:
    """One session that somebody watches. Not thread-safe: one event loop."""

    def __init__(self, start: LiveStart, grid: IdleGrid, clock: LiveClock) -> None:
        self.start, self.grid, self.clock = start, grid, clock
        self.reserved_until = 0  # the timeline is reserved for speech up to this position
        self.rested: dict[int, RestFragment] = {}  # returns to rest since the end of the session's file, by position
        self._listeners: set[asyncio.Queue[LiveEvent | None]] = set()

    @property
    def watched(self) -> bool:
        return bool(self._listeners)

    def shows(self, avatar: PreparedAvatar, spec: MediaSpec) -> bool:
        """Whether frames of this avatar, encoded like this, fit the picture that viewers have."""
        return self.start.picture == (avatar.avatar_id, avatar.version, spec)

    def position(self) -> int:
        """The position that is due now."""
        return self.clock.position(stable_time_s())

    def send(self, fragment: LiveFragment) -> None:
        self._emit(LiveEvent(self.clock, piece=fragment))

    def expect_speech(self, position: int) -> None:
        """Announce that speech starts at a position; -1: the announced speech does not come."""
        self._emit(LiveEvent(self.clock, expect=position))

    def report(self, progress: dict[str, Any]) -> None:
        """Send the progress of an utterance."""
        self._emit(LiveEvent(self.clock, making=progress))

    def _emit(self, event: LiveEvent) -> None:
        for listener in list(self._listeners):
            if listener.qsize() >= MAX_QUEUED_EVENTS:
                self._listeners.discard(listener)  # its stream ends; the ingress may open another one
                listener.put_nowait(None)
            else:
                listener.put_nowait(event)

    async def listen(self) -> AsyncGenerator[LiveEvent, None]:
        """The start, then events as they are sent, and an empty event after HEARTBEAT_S without one."""
        queue: asyncio.Queue[LiveEvent | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield LiveEvent(self.clock, self.start)
            while True:
                event: LiveEvent | None
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        event = await queue.get()
                except TimeoutError:
                    event = LiveEvent(self.clock)
                if event is None:
                    return
                yield event
        finally:
            self._listeners.discard(queue)

    def close(self, reason: Ending | None) -> None:
        """End the stream of every listener, with the reason; None: the session has moved to another replica."""
        for listener in self._listeners:
            listener.put_nowait(LiveEvent(self.clock, ended=reason, moved=reason is None))
            listener.put_nowait(None)
