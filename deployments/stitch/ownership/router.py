"""The request router of Stitch: sends each request of a session to the session's owner.

Serve runs one router per handle, in the processes of Ingress and Chat. A router remembers owners, so that a request of
a known session costs no call. It asks the directory about new sessions, and about those whose owner is not on Serve's
list any more: a draining owner still gets the requests of the sessions that it has not released.

Written for Ray 2.60: it overrides methods of RequestRouter that are not public, and reads
`RunningReplica._replica_info`. A unit test checks that these exist.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from cachetools import LRUCache
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.stitch.ownership.actor import DirectoryClient, DirectoryError
from deployments.stitch.ownership.directory import GATHER_S, Route

log = logging.getLogger("ray.serve")

KNOWN_S, MAX_KNOWN = 60.0, 10_000  # how long, and of how many sessions, an owner is known without asking
REFRESH_S = 5.0  # the directory is asked again after this time, but no request waits for the answer
MAX_DEPARTED = 64  # replicas that are off Serve's list and may still own sessions
ROUTING_TASKS = 256  # requests for which a replica is sought at a time; each may wait for the directory
ROUTE_TIMEOUT_S = GATHER_S + 1.0
DOWN_S = 2.0  # after a directory did not answer, it is not asked again for this long


class SessionRouter(RequestRouter):  # type: ignore[misc]
    """Named in Stitch's request_router_config."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._directory = DirectoryClient(self.app_name)
        self._directory_id = ""
        self._down_until_s, self._warned = 0.0, False
        self._known: LRUCache[str, tuple[str, float]] = LRUCache(MAX_KNOWN)  # owner, and when the directory named it
        self._listed: dict[str, RunningReplica] = {}
        self._departed: LRUCache[str, RunningReplica] = LRUCache(MAX_DEPARTED)
        self._dead: LRUCache[str, None] = LRUCache(MAX_DEPARTED)
        self._asking: dict[str, asyncio.Task[str | None]] = {}
        self._updates: set[asyncio.Task[None]] = set()

    # --- the replicas

    @property
    def max_num_routing_tasks(self) -> int:
        return ROUTING_TASKS  # also while no replica is listed: a departed one may own the session

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        now = {replica.replica_id.unique_id: replica for replica in replicas}
        for replica, running in self._listed.items():
            if replica not in now and replica not in self._dead:
                self._departed[replica] = running
        returned = {replica for replica in now if self._departed.pop(replica, None) is not None}
        for session in [session for session, (owner, _) in self._known.items() if owner in returned]:
            del self._known[session]  # it may have handed its sessions over
        self._listed = now
        super().update_replicas(replicas)
        self._send_list()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        replica = replica_id.unique_id
        self._dead[replica] = None
        self._departed.pop(replica, None)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_unavailable(replica_id)
        if replica_id.unique_id in self._departed:  # Serve probes listed replicas only; this one has probably ended
            self.on_replica_actor_died(replica_id)

    def _infos(self) -> dict[str, Any]:
        return {replica: running._replica_info for replica, running in self._listed.items()}

    def _send_list(self) -> None:
        """Tell the directory which replicas Serve lists; in the background, until it answers or the list changes."""
        listed = self._listed

        async def send() -> None:
            while listed is self._listed:
                try:
                    self._directory_id = await self._directory.call("update", self._infos())
                    return
                except DirectoryError:
                    await asyncio.sleep(0.5)

        task = self._event_loop.create_task(send())
        self._updates.add(task)
        task.add_done_callback(self._updates.discard)

    # --- the choice

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # otherwise Serve retries without a pause
        if not pending_request.metadata.session_id:
            return [candidate_replicas]
        session = pending_request.metadata.session_id
        known, known_s = (None, 0.0) if _was_moved(pending_request) else self._known.get(session, (None, 0.0))
        age_s = time.monotonic() - known_s
        if known in self._listed and known not in self._dead and age_s < KNOWN_S:
            if age_s > REFRESH_S:
                self._ask_once(session)
            return [[self._listed[known]]]
        owner = await asyncio.shield(self._ask_once(session))
        if owner is None:  # the directory does not answer: the owner until now, if possible
            running = self._running(known) or self._by_hash(session, candidate_replicas)
        else:
            running = self._running(owner)
        return [[running]] if running is not None else []

    def _running(self, replica: str | None) -> RunningReplica | None:
        """A replica that may be listed or draining; None if its process has ended or it is not known here."""
        if replica is None or replica in self._dead:
            return None
        return self._listed.get(replica) or self._departed.get(replica)

    def _ask_once(self, session: str) -> asyncio.Task[str | None]:
        """The owner's id; None if the directory does not answer. Requests of one session share a call."""
        if session not in self._asking:
            task = self._asking[session] = self._event_loop.create_task(self._ask(session))
            task.add_done_callback(lambda task: self._asking.pop(session, None))
        return self._asking[session]

    async def _ask(self, session: str) -> str | None:
        if time.monotonic() < self._down_until_s:
            return None
        try:
            route: Route = await self._directory.call(
                "route", session, self._infos(), list(self._dead), timeout_s=ROUTE_TIMEOUT_S
            )
        except DirectoryError as error:
            self._down_until_s = time.monotonic() + DOWN_S
            if not self._warned:
                log.warning("The directory of sessions does not answer; requests are routed by hash: %s", error)
            self._warned = True
            return None
        self._warned = False
        if route.directory != self._directory_id:  # a new one, which does not know who has left the list
            self._directory_id = route.directory
            self._send_list()
        if route.replica and route.replica not in self._listed and route.replica not in self._departed:
            self._reach(route)
        if route.replica:
            self._known[session] = (route.replica, time.monotonic())
        return route.replica

    def _reach(self, route: Route) -> None:
        """Prepare to call an owner that left the list before this router existed."""
        if route.info is None:
            return  # no router has described it to this directory yet
        try:
            self._departed[route.replica] = self.create_replica_wrapper(route.info)
        except ValueError:  # its process has ended
            self._dead[route.replica] = None

    def _by_hash(self, session: str, candidates: list[RunningReplica]) -> RunningReplica | None:
        """Rendezvous hashing: all routers with the same list choose the same replica."""

        def weight(running: RunningReplica) -> bytes:
            return hashlib.sha256(f"{session} {running.replica_id.unique_id}".encode()).digest()

        return max(candidates, key=weight, default=None)

    # --- a draining owner, which Serve does not list

    async def _choose_replicas_with_backoff(
        self, pending_request: PendingRequest | None = None
    ) -> AsyncGenerator[list[RunningReplica], None]:
        if not self._replicas and self._departed and pending_request is not None:
            for running in (await self.choose_replicas([], pending_request))[:1]:
                yield running
        async for candidates in super()._choose_replicas_with_backoff(pending_request):
            yield candidates

    async def _select_from_candidate_replicas(
        self, candidates: list[RunningReplica], backoff_index: int
    ) -> RunningReplica | None:
        if len(candidates) == 1 and candidates[0].replica_id.unique_id in self._departed:
            return candidates[0]
        chosen: RunningReplica | None = await super()._select_from_candidate_replicas(candidates, backoff_index)
        return chosen

    # --- requests that share an id: Serve gives all calls in the context of one request the id of that request, finds
    # a pending one by its id, and so would never route the second of two at a time

    def _add_pending_request_to_indices(self, pending_request: PendingRequest) -> None:
        self._pending_requests_by_id[id(pending_request.metadata)] = pending_request

    def _remove_pending_request_from_indices(self, pending_request: PendingRequest) -> None:
        self._pending_requests_by_id.pop(id(pending_request.metadata), None)

    def _get_pending_request_matching_internal_request_id(self, request_metadata: Any = None) -> PendingRequest | None:
        found = self._pending_requests_by_id.get(id(request_metadata))
        return found if found is not None and not found.future.done() else None


def _was_moved(request: PendingRequest) -> bool:
    """Whether a replica has refused this request, because it does not own the session (SpeakRequest, LiveResume)."""
    return any(getattr(argument, "moves", 0) for argument in request.args)
