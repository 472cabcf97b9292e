"""Cuts a session's speech short: what is being said, and what waits behind it. Knows nothing of what it cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from models.errors import InterruptedSpeech

T = TypeVar("T")


class Cut:
    """Set once, when what it belongs to is to end."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._at_once: list[Callable[[], object]] = []

    @property
    def made(self) -> bool:
        return self._event.is_set()

    def make(self) -> None:
        if not self.made:
            self._event.set()
            for act in self._at_once:
                act()

    def then(self, act: Callable[[], object]) -> None:
        """Call `act` in the moment of the cut: `unless` waits until work has ended that cannot be broken off."""
        if self.made:
            act()
        else:
            self._at_once.append(act)

    def check(self) -> None:
        """Raises InterruptedSpeech after the cut."""
        if self.made:
            raise InterruptedSpeech("The speech was interrupted.", "Send it again if it is still wanted.")

    async def unless(self, work: Awaitable[T]) -> T:
        """What `work` gives; it is cancelled, and InterruptedSpeech raised, as soon as the cut is made.

        A cut that has been made counts, whatever the work gives: it may have ended because of it.
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
                task.exception()  # it is seen, where the cut went first

    @asynccontextmanager
    async def within(self, room: asyncio.Semaphore) -> AsyncIterator[None]:
        """A place in `room`, waited for no longer than the cut is not made. Raises InterruptedSpeech."""
        place = asyncio.ensure_future(room.acquire())
        try:
            await self.unless(place)
        except BaseException:
            if place.done() and not place.cancelled():
                room.release()  # it was given in the moment of leaving
            raise
        try:
            yield
        finally:
            room.release()


class Cuts:
    """The cuts of all that a session says or is going to say: `with cuts.of(session_id) as cut: …`."""

    def __init__(self) -> None:
        self._of: dict[str, set[Cut]] = {}

    @contextmanager
    def of(self, session_id: str) -> Iterator[Cut]:
        cut = Cut()
        self._of.setdefault(session_id, set()).add(cut)
        try:
            yield cut
        finally:
            self._of[session_id].discard(cut)
            if not self._of[session_id]:
                del self._of[session_id]

    def __len__(self) -> int:
        """All that is being said or waits."""
        return sum(map(len, self._of.values()))

    def count(self, session_id: str) -> int:
        """What the session says, and what of it waits."""
        return len(self._of.get(session_id, ()))

    def speaking(self) -> list[str]:
        """Sessions that say something, or are going to."""
        return list(self._of)

    def make(self, session_id: str) -> int:
        """Cut everything that the session says now; what is asked for later is not concerned.

        Returns how much was not cut before.
        """
        cuts = [cut for cut in self._of.get(session_id, ()) if not cut.made]
        for cut in cuts:
            cut.make()
        return len(cuts)
