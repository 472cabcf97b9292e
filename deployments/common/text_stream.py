"""Texts that are spoken while they are still being written: what Stitch holds of them, and how a caller feeds one.

Knows no stage; a handle of Stitch is given to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from deployments.common.errors import items_of
from deployments.common.messages import SpeakEvent, SpeakRequest
from deployments.common.patience import within
from models.errors import BusyError, TextError
from models.speech.text import normalise, printable

MAX_CHARS = 100_000  # of one growing text
PAUSE_S = 60.0  # a writer that is silent for so long is gone, and its text has ended
MAX_TEXTS = 1024  # begun and not spoken yet
UNREAD_S = 900.0  # a text that nobody has begun to speak for so long is nobody's: its request never came here
TOLD_S = 2.0  # what went wrong with the writer is known so long after the speech has ended, or is of no interest


@dataclass(slots=True)
class _Text:
    parts: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    chars: int = 0
    fed_s: float = field(default_factory=time.monotonic)


class GrowingTexts:
    """Parts of texts by key: whoever comes first, reader or writer, begins one. One event loop."""

    def __init__(self, pause_s: float = PAUSE_S) -> None:
        self._texts: dict[str, _Text] = {}
        self._over: OrderedDict[str, None] = OrderedDict()  # keys of the latest that are spoken, or never will be
        self._read: set[str] = set()  # that somebody speaks, or is going to
        self._pause_s = pause_s

    def __len__(self) -> int:
        return len(self._texts)

    def feed(self, key: str, parts: list[str], last: bool) -> None:
        """Add parts, each fit to be spoken by itself; nothing where the text is over. Raises TextError, BusyError."""
        if key in self._over:
            return
        if key not in self._texts and len(self._texts) >= MAX_TEXTS:
            self._drop_unread()
            if len(self._texts) >= MAX_TEXTS:
                raise BusyError("Too many texts are being written at once.", "Try again later.")
        text = self._texts.setdefault(key, _Text())
        text.fed_s = time.monotonic()
        for part in map(printable, parts):
            text.chars += len(part)
            if text.chars > MAX_CHARS:
                text.parts.put_nowait(None)
                raise too_long()
            if any(c.isalnum() for c in normalise(part)):  # an emoji by itself is no sentence
                text.parts.put_nowait(part)
        if last:
            text.parts.put_nowait(None)

    @contextmanager
    def spoken(self, key: str) -> Iterator[None]:
        """While somebody speaks a text, or waits to: behind it the text is over, whatever is still written of it."""
        self._read.add(key)
        try:
            yield
        finally:
            self._read.discard(key)
            self._texts.pop(key, None)
            self._over[key] = None
            while len(self._over) > 4 * MAX_TEXTS:
                self._over.popitem(last=False)

    def _drop_unread(self) -> None:
        before_s = time.monotonic() - UNREAD_S
        for key in [key for key, text in self._texts.items() if key not in self._read and text.fed_s < before_s]:
            del self._texts[key]

    async def read(self, key: str) -> AsyncGenerator[str, None]:
        """The parts as they come; ends with the text, or when its writer is silent for too long."""
        text = self._texts.setdefault(key, _Text())
        try:
            while True:
                try:
                    part = await within(self._pause_s, text.parts.get())
                except TimeoutError:
                    return
                if part is None:
                    return
                yield part
        finally:
            self._texts.pop(key, None)


def too_long() -> TextError:
    return TextError(f"The text exceeds {MAX_CHARS} characters.", "Send it in parts.")


async def speak_growing(
    stitch: Any, request: SpeakRequest, parts: AsyncIterator[str]
) -> AsyncGenerator[SpeakEvent, None]:
    """Have Stitch speak the parts while they come: sentences or clauses (models/llm/pieces.py cuts tokens into them).

    stitch: its handle. Yields as Stitch.speak does; ends the speech when closed. Raises what it raises, and then what
    `parts` raise: what came before is spoken.
    """
    key = uuid.uuid4().hex
    plain = stitch.options(session_id=request.session_id)
    events = stitch.options(stream=True, _by_reference=False, session_id=request.session_id).speak.remote(
        replace(request, growing=key)
    )

    async def feed() -> None:
        try:
            async for part in parts:
                await plain.feed.remote(request.session_id, key, [part], False)
        finally:
            try:
                await plain.feed.remote(request.session_id, key, [], True)
            except BaseException:
                events.cancel()  # it would wait for a text that can no more be ended
                raise

    # In a context of its own: of calls that share a request's context, and so its id within Serve, Ray 2.60 loses some
    # when that request has ended; a lost part is never spoken.
    feeder = contextvars.Context().run(asyncio.create_task, feed())
    try:
        try:
            async with aclosing(items_of(events)) as items:
                async for event in items:
                    yield event
        except TextError:  # nothing came that could be spoken: the writer may know why
            if feeder.done() and not feeder.cancelled() and (why := feeder.exception()) is not None:
                raise why from None
            raise
        done, _ = await asyncio.wait({feeder}, timeout=TOLD_S)  # a speech that was cut does not wait for its writer
        if done:
            feeder.result()
    finally:
        events.cancel()
        feeder.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await feeder
