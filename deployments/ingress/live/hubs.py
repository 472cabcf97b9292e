"""The hubs of an ingress replica, one a session that somebody watches; viewers who are stuck are sent away.

Knows nothing of HTTP; codes no pictures.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
import contextvars
import functools
import time
from collections.abc import Callable

from deployments.common.clocks import Ask, HostClocks
from deployments.ingress.live.hub import Hub, Loops, Subscribe, Viewer
from deployments.ingress.send_queues import Client, SendQueues
from models.errors import BusyError

CONGESTED_BYTES = 512 * 2**10  # unsent on a viewer's connection: three seconds
STUCK_S = 15.0  # a connection that stays congested is closed


class Live:
    """All hubs of an ingress replica."""

    def __init__(self, subscribe: Subscribe, max_viewers: Callable[[], int], ask: Ask | None = None) -> None:
        """ask: for the time at a session's host; None where all hosts are in step."""
        self._subscribe, self._max_viewers = subscribe, max_viewers
        self._hubs: dict[str, asyncio.Task[Hub]] = {}
        self._loops = Loops()
        self._clocks = HostClocks(ask)
        self._queues = SendQueues()
        self._joining = 0  # viewers whose hub is being started
        self._keeper: asyncio.Task[None] | None = None

    async def view(self, session_id: str, client: Client | None = None) -> Viewer:
        """A viewer of the session, at its live edge. Raises SessionNotFound and what else Stitch raises, BusyError."""
        if self.viewers() + self._joining >= self._max_viewers():
            raise BusyError("As many viewers watch as this server allows.", "Try again later.")
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())
        task = self._hubs.get(session_id)
        if task is None or (task.done() and (task.cancelled() or task.exception() or task.result().ended)):
            # in a context of its own: what is called in a request's ends with it, and a hub has other viewers, too
            task = contextvars.Context().run(asyncio.create_task, self._started(session_id))
            self._hubs[session_id] = task
            task.add_done_callback(functools.partial(self._drop_failed, session_id))
        self._joining += 1
        try:
            return (await asyncio.shield(task)).join(client)
        finally:
            self._joining -= 1

    def _drop_failed(self, session_id: str, task: asyncio.Task[Hub]) -> None:
        """Forget a hub that has not come about, even where whoever asked for it has left meanwhile."""
        failed = task.cancelled() or task.exception() is not None
        if failed and self._hubs.get(session_id) is task:
            del self._hubs[session_id]

    def viewers(self) -> int:
        return sum(len(hub.viewers) for hub in self._running())

    def stats(self) -> dict[str, int]:
        """Hubs, viewers, and pieces that slow viewers missed."""
        viewers = [viewer for hub in self._running() for viewer in hub.viewers]
        return {"hubs": len(self._hubs), "viewers": len(viewers), "dropped": sum(v.dropped for v in viewers)}

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        for hub in self._running():
            await hub.stop()
        self._hubs.clear()

    async def _started(self, session_id: str) -> Hub:
        hub = Hub(session_id, self._subscribe, self._loops, self._clocks)
        await hub.start()
        return hub

    def _running(self) -> list[Hub]:
        done = [task for task in self._hubs.values() if task.done() and not task.cancelled()]
        return [task.result() for task in done if task.exception() is None]

    async def _keep(self) -> None:
        """Look after viewers who do not read, and hubs that nobody watches; ends with the last hub."""
        while self._hubs:
            await asyncio.sleep(0.5)
            viewers = [viewer for hub in self._running() for viewer in hub.viewers]
            unsent = await self._queues.unsent({v.client for v in viewers if v.client is not None})
            now_s = time.monotonic()
            for viewer in viewers:
                if not viewer.begun and now_s - viewer.joined_s > STUCK_S:
                    viewer.close()  # whoever asked for it had gone before the answer
                if viewer.client is None or unsent.get(viewer.client, 0) < CONGESTED_BYTES:
                    viewer.congested_since_s = None
                elif viewer.congested_since_s is None:
                    viewer.congested_since_s = now_s
                elif now_s - viewer.congested_since_s > STUCK_S:
                    viewer.end("slow")
                    viewer.close()
            for hub in self._running():
                self._clocks.refresh(hub.host, hub.session_id)
                if hub.ended or hub.forgotten():
                    if hub in self._running():  # else somebody has asked for the session anew
                        del self._hubs[hub.session_id]
                    await hub.stop()
