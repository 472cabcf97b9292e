"""The replica's side of session ownership: claims sessions, reports them, and hands them over.

When Serve stops this replica, it hands a session over as soon as no utterance of it runs. The directory learns of that
first; then the viewers' hubs are told to subscribe again, and utterances that wait here raise MovedError, upon which
their callers send them again (deployments/common/speech_call.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import ray
from cachetools import TTLCache
from ray import serve

from deployments.common.keyed_lock import KeyedLock
from deployments.common.metrics import increment
from deployments.stitch.interrupts import Interrupt, Interrupts
from deployments.stitch.live.registry import LiveRegistry
from deployments.stitch.ownership.actor import DirectoryClient, DirectoryError
from deployments.stitch.ownership.directory import MAX_SESSIONS, Claim, Load, Reply, Report, SessionUse
from deployments.stitch.ownership.load import RenderLoad
from models.errors import MovedError

log = logging.getLogger("ray.serve")

REPORT_S, MIN_REPORT_S = 1.0, 0.1  # between two reports: without and with a change
HELD_S = 300.0  # a session that is neither watched nor used for this long is claimed again with its next use
REPORTS_PER_FULL = 30  # one in this number of reports lists all held sessions, so that the directory keeps them
RELEASE_TRIES = 3
SETTLE_S = 0.2  # after a move, the time in which utterances that waited at the old owner arrive here
VIEWERS_S = 5.0  # how long the first utterance after a move waits for the viewers' hubs


class Directory(Protocol):
    """DirectoryClient, or a fake."""

    async def call(self, method: str, *arguments: object, timeout_s: float = ...) -> object:
        """The answer of a method of DirectoryActor. Raises DirectoryError."""


def serve_directory() -> tuple[str, Directory | None]:
    """This replica's id and its application's directory; no directory without Ray, as in local testing mode."""
    if not ray.is_initialized():
        return "", None
    context = serve.get_replica_context()
    return context.replica_id.unique_id, DirectoryClient(context.app_name)


class SessionOwner:
    """The sessions that this replica owns. Without a directory it owns all. Use it from one event loop."""

    def __init__(
        self,
        replica: str,
        directory: Directory | None,
        interrupts: Interrupts,
        live: LiveRegistry,
        lock: KeyedLock,
        close_file: Callable[[str], None],
    ) -> None:
        """close_file: closes a session's file; runs on a thread."""
        self.draining = False
        self.load = RenderLoad()
        self._replica, self._directory = replica, directory
        self._interrupts, self._live, self._lock, self._close_file = interrupts, live, lock, close_file
        self._held: TTLCache[str, None] = TTLCache(MAX_SESSIONS, HELD_S, timer=time.monotonic)
        self._claims: dict[str, asyncio.Task[Claim]] = {}
        self._arrivals: dict[str, list[tuple[float, asyncio.Future[None]]]] = {}  # after a move, until SETTLE_S passed
        self._expected: set[str] = set()  # sessions whose viewers' hubs have not subscribed here yet
        self._waiting: dict[str, Interrupt] = {}  # utterances that hold their session's lock and wait for a slot
        self._changed = asyncio.Event()
        self._directory_id = ""
        self._reporting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to report to the directory."""
        if self._directory is not None and self._reporting is None:
            self._reporting = asyncio.create_task(self._report_for_ever())

    # --- use a session

    async def take(self, session_id: str) -> None:
        """Call it before a session is spoken in or shown here. Raises MovedError if it belongs to another replica."""
        if self._directory is None:
            return
        if self.draining and not self._interrupts.count(session_id):
            await self._hand_over(session_id)
            raise moved_error(session_id)
        if session_id not in self._held:
            if session_id not in self._claims:
                task = self._claims[session_id] = asyncio.create_task(self._claim(session_id))
                task.add_done_callback(lambda task: self._claims.pop(session_id, None))
            claim = await asyncio.shield(self._claims[session_id])
            if claim.owner != self._replica:
                raise moved_error(session_id)
        self._held[session_id] = None

    async def _claim(self, session_id: str) -> Claim:
        assert self._directory is not None
        try:
            claim = await self._directory.call("claim", session_id, self._replica)
            assert isinstance(claim, Claim)
        except DirectoryError as error:  # the epoch of the session's file keeps out a second writer
            log.warning("The directory of sessions does not answer; this replica goes on without it: %s", error)
            return Claim(self._replica)
        if claim.owner == self._replica:
            self._held[session_id] = None
            if claim.watched:
                self._expected.add(session_id)
            if claim.moved:
                increment("warmtalk_handovers_total")
                self._arrivals[session_id] = []
                asyncio.get_running_loop().call_later(SETTLE_S, self._settle, session_id)
            self._changed.set()
        return claim

    async def arrive(self, session_id: str, sent_s: float) -> None:
        """`take` for an utterance. After a move, those that waited at the old owner go first, in the order sent.

        They also wait until the viewers' hubs have subscribed here, so that none is spoken unseen.
        """
        await self.settled(session_id, sent_s)
        if session_id in self._expected:
            await self._live.wait_for_viewers(session_id, VIEWERS_S)
            self._expected.discard(session_id)

    async def settled(self, session_id: str, sent_s: float = math.inf) -> None:
        """`take`, and after a move wait for those that waited at the old owner and were sent before."""
        await self.take(session_id)
        if (arrivals := self._arrivals.get(session_id)) is not None:
            turn = asyncio.get_running_loop().create_future()
            arrivals.append((sent_s, turn))
            await turn

    def _settle(self, session_id: str) -> None:
        for _, turn in sorted(self._arrivals.pop(session_id, []), key=lambda arrival: arrival[0]):
            if not turn.done():
                turn.set_result(None)

    @asynccontextmanager
    async def turn(self, session_id: str, interrupt: Interrupt, slots: asyncio.Semaphore) -> AsyncIterator[None]:
        """Hold a slot for an utterance whose session is locked. Raises MovedError, InterruptedSpeech."""
        try:
            if self.draining:
                raise moved_error(session_id)
            self._waiting[session_id] = interrupt
            async with interrupt.acquire(slots):
                interrupt.check()
                del self._waiting[session_id]
                yield
        except MovedError:
            await self._hand_over(session_id)
            raise
        finally:
            if self._waiting.get(session_id) is interrupt:
                del self._waiting[session_id]
            self._changed.set()

    # --- report

    def changed(self) -> None:
        """Report soon: who speaks or watches has changed."""
        self._changed.set()

    async def _report_for_ever(self) -> None:
        for number in range(1, 2**63):
            try:
                await self._exchange(full=number % REPORTS_PER_FULL == 1)
            except DirectoryError as error:
                log.info("The directory of sessions does not answer: %s", error)
            except Exception:
                log.exception("Session ownership failed")
            await asyncio.sleep(MIN_REPORT_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S - MIN_REPORT_S):
                    await self._changed.wait()

    async def _exchange(self, full: bool) -> None:
        """Report, and do what the directory replies."""
        assert self._directory is not None
        self._changed.clear()
        reply = await self._directory.call("report", self._report(full))
        assert isinstance(reply, Reply)
        if reply.directory != self._directory_id:
            self._directory_id = reply.directory
            if not full:  # a new directory: tell it all
                reply = await self._directory.call("report", self._report(full=True))
                assert isinstance(reply, Reply)
        if reply.draining != self.draining:
            self.draining = reply.draining
            log.info("This replica %s sessions.", "hands over its" if self.draining else "takes")
        for session_id in reply.lost:
            if not self._interrupts.count(session_id):
                self._forget(session_id)
        if self.draining:
            await self._drain()

    def _report(self, full: bool) -> Report:
        speaking, watched = set(self._interrupts.sessions()), set(self._live.watched())
        sessions = {*speaking, *watched, *(self._held if full else ())}
        load = Load(
            self.load.threads,
            self.load.busy(),
            self.load.backlog_s(),
            len(self._interrupts),
            len(self._interrupts) - self.load.begun(),
            len(watched),
            len(self._held),
        )
        uses = {session_id: SessionUse(session_id in speaking, session_id in watched) for session_id in sessions}
        return Report(self._replica, load, uses, self.draining)

    # --- hand over

    async def _drain(self) -> None:
        """Release every session of which no utterance runs. Utterances that wait for a slot move, too."""
        assert self._directory is not None
        for session_id, interrupt in list(self._waiting.items()):
            interrupt.set(moved_error(session_id))  # `turn` hands the session over
        watched = self._live.watched()
        kept = {*self._interrupts.sessions(), *self._lock.keys()}
        await self._directory.call("release_all_but", self._replica, kept, watched)
        for session_id in {*watched, *self._held} - kept:
            self._forget(session_id)

    async def _hand_over(self, session_id: str) -> None:
        """Release one session. Without an answer of the directory it is fenced off by its next owner."""
        assert self._directory is not None
        watched = session_id in self._live.watched()
        for _ in range(RELEASE_TRIES):
            try:
                await self._directory.call("release", self._replica, session_id, watched)
                break
            except DirectoryError as error:
                log.warning("Session %s could not be released: %s", session_id, error)
        self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        self._held.pop(session_id, None)
        self._expected.discard(session_id)
        self._live.close(session_id, None)
        asyncio.get_running_loop().run_in_executor(None, self._close_file, session_id)


def moved_error(session_id: str) -> MovedError:
    return MovedError(f"The session {session_id!r} moves to another replica.", "Send the request again.")
