"""Interrupts: end the current utterance of a session and those that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from models.errors import InterruptedSpeech, WarmTalkError

T = TypeVar("T")


class Interrupt:
    """The interrupt of one utterance. It is set at most once and never cleared. Not thread-safe: one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._error: WarmTalkError = InterruptedSpeech(
            "The speech was interrupted.", "Send it again if it is still wanted."
        )
        self._callbacks: list[Callable[[], object]] = []

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self, error: WarmTalkError | None = None) -> None:
        """End the utterance. error: what to raise in place of InterruptedSpeech."""
        if self.is_set:
            return
        self._error = error or self._error
        self._event.set()
        for callback in self._callbacks:
            callback()

    def on_set(self, callback: Callable[[], object]) -> None:
        """Call `callback` inside `set`, or now if the interrupt is set already.

        `run` may have to wait for work that cannot be cancelled, a callback does not.
        """
        if self.is_set:
            callback()
        else:
            self._callbacks.append(callback)

    def check(self) -> None:
        """Raises InterruptedSpeech, or the error given to `set`, if the interrupt is set."""
        if self.is_set:
            raise self._error

    async def run(self, work: Awaitable[T]) -> T:
        """Return the result of `work`. When the interrupt is set, cancel the work and raise InterruptedSpeech.

        Raises InterruptedSpeech also where the work has a result: it may have ended because of the interrupt.
        """
        task = asyncio.ensure_future(work)
        waiter = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
            self.check()
            return await task
        finally:
            waiter.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # mark it as retrieved

    @asynccontextmanager
    async def acquire(self, semaphore: asyncio.Semaphore) -> AsyncIterator[None]:
        """Hold the semaphore. Raises InterruptedSpeech when the interrupt is set while waiting for it."""
        acquired = asyncio.ensure_future(semaphore.acquire())
        try:
            await self.run(acquired)
        except BaseException:
            if acquired.done() and not acquired.cancelled():
                semaphore.release()  # it was acquired while the caller was leaving
            raise
        try:
            yield
        finally:
            semaphore.release()


class Interrupts:
    """The interrupts of all utterances that are spoken or wait, by session."""

    def __init__(self) -> None:
        self._by_session: dict[str, set[Interrupt]] = {}

    @contextmanager
    def register(self, session_id: str) -> Iterator[Interrupt]:
        """The interrupt of a new utterance, registered while the block runs."""
        interrupt = Interrupt()
        self._by_session.setdefault(session_id, set()).add(interrupt)
        try:
            yield interrupt
        finally:
            self._by_session[session_id].discard(interrupt)
            if not self._by_session[session_id]:
                del self._by_session[session_id]

    def __len__(self) -> int:
        """The number of utterances of all sessions, waiting ones included."""
        return sum(map(len, self._by_session.values()))

    def count(self, session_id: str) -> int:
        """The number of utterances of the session, waiting ones included."""
        return len(self._by_session.get(session_id, ()))

    def sessions(self) -> list[str]:
        """Ids of the sessions that have an utterance."""
        return list(self._by_session)

    def interrupt(self, session_id: str) -> int:
        """Interrupt every utterance that the session has now; later ones are not affected.

        Returns the number of utterances that were not interrupted before.
        """
        interrupts = [interrupt for interrupt in self._by_session.get(session_id, ()) if not interrupt.is_set]
        for interrupt in interrupts:
            interrupt.set()
        return len(interrupts)
