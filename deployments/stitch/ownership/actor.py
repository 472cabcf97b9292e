"""The directory of sessions as a Ray actor, and its clients.

One detached actor per application, in Serve's namespace. Ray restarts it when its process dies; after that it is empty
and the replicas' reports fill it. It ends when nobody has called it for IDLE_S, because a removed application would
otherwise leave it behind; the next call starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.serve._private.constants import SERVE_NAMESPACE

from deployments.common.errors import is_own_cancellation
from deployments.stitch.ownership.directory import Claim, Reply, Report, Route, SessionDirectory

PROTOCOL = 1  # increase it when a message changes: during an update, old and new replicas each have their directory
IDLE_S = 600.0
CALL_TIMEOUT_S = 1.0


class DirectoryActor:
    """SessionDirectory behind Ray calls. All methods run on one event loop."""

    def __init__(self) -> None:
        self._directory = SessionDirectory()
        self._reported = asyncio.Event()
        self._called_s = time.monotonic()
        self._ending: asyncio.Task[None] | None = None

    def _touch(self) -> SessionDirectory:
        self._called_s = time.monotonic()
        if self._ending is None:
            self._ending = asyncio.create_task(self._end_when_idle())
        return self._directory

    async def _end_when_idle(self) -> None:
        while (left_s := self._called_s + IDLE_S - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
        await asyncio.to_thread(ray.kill, ray.get_runtime_context().current_actor)

    async def update(self, listed: Mapping[str, Any]) -> str:
        directory = self._touch()
        directory.update(listed)
        return directory.id

    async def route(self, session: str, listed: Mapping[str, Any], dead: Collection[str] = ()) -> Route:
        """As in the directory; a new one first waits for the reports of all replicas, or GATHER_S."""
        directory = self._touch()
        while directory.unheard([replica for replica in listed if replica not in dead]):
            self._reported.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._reported.wait()
        return directory.route(session, listed, dead)

    async def report(self, report: Report) -> Reply:
        reply = self._touch().report(report)
        self._reported.set()
        return reply

    async def claim(self, session: str, replica: str) -> Claim:
        return self._touch().claim(session, replica)

    async def release(self, replica: str, session: str, watched: bool) -> None:
        self._touch().release(replica, session, watched)

    async def release_all_but(self, replica: str, kept: Collection[str], watched: Collection[str]) -> None:
        self._touch().release_all_but(replica, kept, watched)


class DirectoryError(Exception):
    """The directory did not answer."""


class DirectoryClient:
    """Calls the directory of an application, and starts it where there is none. Use it from one event loop."""

    def __init__(self, application: str) -> None:
        self._name = f"warmtalk-sessions-{PROTOCOL}:{application}"
        self._actor: Any = None

    async def call(self, method: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """The answer of a method of DirectoryActor. Raises DirectoryError."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(self._connect)
                return await getattr(self._actor, method).remote(*arguments)
        except (RayError, ValueError, TimeoutError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                raise
            if isinstance(error, ActorDiedError):
                self._actor = None  # it ended for good; the next call starts another one
            raise DirectoryError(f"{method}: {type(error).__name__}: {error}") from error

    def _connect(self) -> Any:
        return (
            ray.remote(DirectoryActor)
            .options(
                name=self._name,
                namespace=SERVE_NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=10_000,  # a call may wait for the first reports
            )
            .remote()
        )
