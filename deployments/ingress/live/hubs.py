"""All hubs of an ingress replica, one per session that is watched; disconnects viewers that do not read."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import contextvars
import functools
import time
from collections.abc import Callable

from deployments.common.clocks import Ask, HostClocks
from deployments.ingress.backpressure import QUEUES
from deployments.ingress.live.hub import Hub, IdleLoops, Subscribe, Viewer
from deployments.ingress.tcp_tables import Client
from models.errors import BusyError

CONGESTED_BYTES = 512 * 2**10  # unsent on a viewer's connection: three seconds of video
STUCK_S = 15.0  # a viewer is disconnected after this time of congestion, or without reading anything at all
CHECK_S = 0.5


class Hubs:
    """Starts a hub for the first viewer of a session, and stops it after the last one."""

    def __init__(
        self,
        subscribe: Subscribe,
        max_viewers: Callable[[], int],
        ask: Ask | None = None,
        draining: asyncio.Event | None = None,
    ) -> None:
        """ask: measures the clock of a session's host; None: the clocks of all hosts agree.

        draining: set while this replica is being stopped. Viewers then leave when their session is silent.
        """
        self.draining = draining or asyncio.Event()
        self._subscribe, self._max_viewers = subscribe, max_viewers
        self._hubs: dict[str, asyncio.Task[Hub]] = {}
        self._loops = IdleLoops()
        self._clocks = HostClocks(ask)
        self._queues = QUEUES
        self._joining = 0  # viewers whose hub is being started
        self._keeper: asyncio.Task[None] | None = None

    async def view(self, session_id: str, client: Client | None = None) -> Viewer:
        """A viewer of the session at its live edge. Raises BusyError, and what Stitch raises, e.g. SessionNotFound."""
        if self.viewers() + self._joining >= self._max_viewers():
            raise BusyError("The maximum number of viewers is watching already.", "Try again later.")
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())
        task = self._hubs.get(session_id)
        if task is None or (task.done() and (task.cancelled() or task.exception() or task.result().ended)):
            # In a context of its own: Serve cancels the calls of a request's context when the request ends, and the hub
            # has other viewers, too.
            task = contextvars.Context().run(asyncio.create_task, self._start(session_id))
            self._hubs[session_id] = task
            task.add_done_callback(functools.partial(self._drop_failed, session_id))
        self._joining += 1
        try:
            return (await asyncio.shield(task)).join(client)
        finally:
            self._joining -= 1

    def viewers(self) -> int:
        return sum(len(hub.viewers) for hub in self._running())

    def stats(self) -> dict[str, int]:
        """The numbers of hubs, of viewers, of fragments that slow viewers missed, and of those that came late."""
        hubs = self._running()
        viewers = [viewer for hub in hubs for viewer in hub.viewers]
        dropped, late = sum(viewer.dropped for viewer in viewers), sum(hub.late for hub in hubs)
        return {"hubs": len(self._hubs), "viewers": len(viewers), "dropped": dropped, "late": late}

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        for hub in self._running():
            await hub.stop()
        self._hubs.clear()

    async def _start(self, session_id: str) -> Hub:
        hub = Hub(session_id, self._subscribe, self._loops, self._clocks)
        await hub.start()
        return hub

    def _drop_failed(self, session_id: str, task: asyncio.Task[Hub]) -> None:
        """Remove a hub that could not be started, even if the viewers that asked for it have left meanwhile."""
        failed = task.cancelled() or task.exception() is not None
        if failed and self._hubs.get(session_id) is task:
            del self._hubs[session_id]

    def _running(self) -> list[Hub]:
        done = [task for task in self._hubs.values() if task.done() and not task.cancelled()]
        return [task.result() for task in done if task.exception() is None]

    async def _keep(self) -> None:
        """Disconnect stuck viewers and stop unused hubs, until there are no hubs."""
        while self._hubs:
            await asyncio.sleep(CHECK_S)
            await self._disconnect_stuck_viewers()
            for hub in self._running():
                self._clocks.refresh(hub.host, hub.session_id)
                if self.draining.is_set():
                    hub.end_idle_viewers()
                if hub.ended or hub.is_unused():
                    if hub in self._running():  # otherwise a new hub has taken its place
                        del self._hubs[hub.session_id]
                    await hub.stop()

    async def _disconnect_stuck_viewers(self) -> None:
        viewers = [viewer for hub in self._running() for viewer in hub.viewers]
        unsent = await self._queues.unsent({v.client for v in viewers if v.client is not None})
        now_s = time.monotonic()
        for viewer in viewers:
            if not viewer.started and now_s - viewer.joined_s > STUCK_S:
                viewer.close()  # the client left before the response began
            if viewer.client is None or unsent.get(viewer.client, 0) < CONGESTED_BYTES:
                viewer.congested_since_s = None
            elif viewer.congested_since_s is None:
                viewer.congested_since_s = now_s
            elif now_s - viewer.congested_since_s > STUCK_S:
                viewer.end("slow")
                viewer.close()
