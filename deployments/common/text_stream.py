"""Text streams: texts that are spoken while they are still being written.

Stitch keeps them in `TextStreams`; callers send their text with `speak_text_stream`.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace

from cachetools import LRUCache
from ray.serve.handle import DeploymentHandle

from deployments.common.errors import cancel_call, stream_items
from deployments.common.messages import SpeakEvent, SpeakRequest
from models.errors import BusyError, TextError
from models.speech.text import normalise, printable

MAX_CHARS = 100_000  # in one text stream
MAX_STREAMS = 1024  # open in one replica
WRITER_TIMEOUT_S = 60.0  # a text stream without new text for this long ends
UNREAD_EXPIRY_S = 900.0  # a text stream that no request has begun to speak may be dropped after this time
WRITER_ERROR_WAIT_S = 2.0  # after the speech has ended: how long to wait for an error of the writer


@dataclass(slots=True)
class _Text:
    parts: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)  # None ends the text
    chars: int = 0
    fed_s: float = field(default_factory=time.monotonic)


class TextStreams:
    """The parts of text streams by key. Either the reader or the writer may come first. Use it from one event loop."""

    def __init__(self, writer_timeout_s: float = WRITER_TIMEOUT_S) -> None:
        self._texts: dict[str, _Text] = {}
        self._ended: LRUCache[str, None] = LRUCache(4 * MAX_STREAMS)  # keys that accept no more text
        self._reserved: set[str] = set()  # keys of requests that are being spoken or wait for their turn
        self._writer_timeout_s = writer_timeout_s

    def __len__(self) -> int:
        """How many text streams are open."""
        return len(self._texts)

    def feed(self, key: str, parts: list[str], last: bool) -> None:
        """Add parts, each of which can be spoken by itself. Text for an ended stream is dropped.

        Raises TextError for a text over MAX_CHARS, BusyError for more than MAX_STREAMS streams.
        """
        if key in self._ended:
            return
        if key not in self._texts and len(self._texts) >= MAX_STREAMS:
            self._drop_unread()
            if len(self._texts) >= MAX_STREAMS:
                raise BusyError("Too many text streams are open.", "Try again later.")
        text = self._texts.setdefault(key, _Text())
        text.fed_s = time.monotonic()
        for part in map(printable, parts):
            text.chars += len(part)
            if text.chars > MAX_CHARS:
                text.parts.put_nowait(None)
                raise text_too_long_error()
            if any(c.isalnum() for c in normalise(part)):  # skip parts without a word, such as a lone emoji
                text.parts.put_nowait(part)
        if last:
            text.parts.put_nowait(None)

    @contextmanager
    def reserve(self, key: str) -> Iterator[None]:
        """Keep a text stream while a request speaks it or waits for its turn; the stream ends with the block."""
        self._reserved.add(key)
        try:
            yield
        finally:
            self._reserved.discard(key)
            self._texts.pop(key, None)
            self._ended[key] = None

    def _drop_unread(self) -> None:
        before_s = time.monotonic() - UNREAD_EXPIRY_S
        unread = [key for key, text in self._texts.items() if key not in self._reserved and text.fed_s < before_s]
        for key in unread:
            del self._texts[key]

    async def read(self, key: str) -> AsyncGenerator[str, None]:
        """The parts as they arrive. Ends with the text, or when its writer sends nothing for too long."""
        text = self._texts.setdefault(key, _Text())
        try:
            while True:
                try:
                    async with asyncio.timeout(self._writer_timeout_s):
                        part = await text.parts.get()
                except TimeoutError:
                    return
                if part is None:
                    return
                yield part
        finally:
            self._texts.pop(key, None)


def text_too_long_error() -> TextError:
    return TextError(f"The text exceeds {MAX_CHARS} characters.", "Send it in parts.")


async def speak_text_stream(
    stitch: DeploymentHandle, request: SpeakRequest, parts: AsyncIterator[str]
) -> AsyncGenerator[SpeakEvent, None]:
    """Let Stitch speak the parts while they arrive, as one utterance.

    parts: sentences or clauses (models/llm/token_stream.py splits tokens into them). Yields what Stitch.speak yields;
    closing the generator ends the speech. Raises what Stitch.speak raises. An error of `parts` is raised after the
    parts before it have been spoken.
    """
    key = uuid.uuid4().hex
    plain = stitch.options(session_id=request.session_id)
    events = stitch.options(stream=True, _by_reference=False, session_id=request.session_id).speak.remote(
        replace(request, text_stream_key=key)
    )

    async def feed() -> None:
        try:
            async for part in parts:
                await plain.feed.remote(request.session_id, key, [part], False)
        finally:
            try:
                await plain.feed.remote(request.session_id, key, [], True)
            except BaseException:
                cancel_call(events)  # the end of the text cannot be sent, so the speech would wait for it
                raise

    # In a new context: of calls that share a request's context, and so its id within Serve, Ray 2.60 loses some when
    # that request has ended. A lost part would never be spoken.
    feeder = contextvars.Context().run(asyncio.create_task, feed())
    try:
        try:
            async with aclosing(stream_items(events)) as items:
                async for event in items:
                    yield event
        except TextError:  # no part could be spoken: an error of the writer may be the cause
            if feeder.done() and not feeder.cancelled() and (writer_error := feeder.exception()) is not None:
                raise writer_error from None
            raise
        done, _ = await asyncio.wait({feeder}, timeout=WRITER_ERROR_WAIT_S)  # interrupted speech ends before its writer
        if done:
            feeder.result()
    finally:
        cancel_call(events)
        feeder.cancel()
        await asyncio.wait({feeder})  # not `await feeder`: its cancellation looks like one of this task
        if not feeder.cancelled():
            feeder.exception()  # mark it as retrieved
