"""Notices when Serve stops this ingress replica, so that its endless streams end while others can take them.

Serve takes a stopping replica off the list of its routers and then waits for its requests, of which a live stream is
one. It does not tell the replica. So the replica asks who is on the list.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from deployments.common.errors import is_own_cancellation

log = logging.getLogger("ray.serve")

CHECK_S = 2.0
LAST_CONFIRMATIONS = 15  # while no replica is listed: the only one is being replaced, or the application is deleted
CONFIRMATIONS = 2  # a replica also leaves the list for a moment, while it applies a new user_config
ANSWER_TIMEOUT_S = 2.0


class Draining:
    """Whether this replica is being stopped. Use it from one event loop."""

    def __init__(self, listed: Callable[[], Awaitable[set[str] | None]], own: Callable[[], str]) -> None:
        """listed: the ids of the replicas that get requests; None: unknown. own: this one's id; "": no Ray."""
        self.begun = asyncio.Event()
        self._listed, self._own = listed, own
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._watching is None and (replica := self._own()):
            self._watching = asyncio.create_task(self._watch(replica))

    async def _watch(self, replica: str) -> None:
        seen, missing = False, 0
        while True:
            await asyncio.sleep(CHECK_S)
            listed = await self._listed()
            if listed is None:
                continue
            seen |= replica in listed
            missing = missing + 1 if seen and replica not in listed else 0
            if missing >= (CONFIRMATIONS if listed else LAST_CONFIRMATIONS) and not self.begun.is_set():
                log.info("This replica is being stopped; its live streams end.")
                self.begun.set()
            elif not missing:
                self.begun.clear()


def own_id() -> str:
    """The id of this replica; "" without Ray, as in local testing mode."""
    return str(serve.get_replica_context().replica_id.unique_id) if ray.is_initialized() else ""


class ListedReplicas:
    """Call it for the ids of the replicas of this deployment that get requests; None if they do not answer."""

    def __init__(self) -> None:
        self._handle: Any = None  # of this deployment

    async def __call__(self) -> set[str] | None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                if self._handle is None:  # on a thread: it waits for Serve's controller
                    context = serve.get_replica_context()
                    names = (context.deployment, context.app_name)
                    self._handle = await asyncio.to_thread(serve.get_deployment_handle, *names)
                answers = await self._handle.broadcast("identify").results_async(return_exceptions=True)
        except DeploymentUnavailableError:
            return set()
        except (TimeoutError, RayError, RayServeException, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                raise
            return None
        return {answer for answer in answers if isinstance(answer, str)}
