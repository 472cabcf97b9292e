"""Text streams: texts that are spoken while they are still being written.

Stitch keeps them in `TextStreams`; callers send their text with `speak_text_stream`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cachetools import LRUCache
from ray.serve.handle import DeploymentHandle

from configs.schema import IngressConfig
from deployments.common.errors import cancel_call, stream_items, to_warmtalk_error
from deployments.common.messages import SpeakEvent, SpeakRequest
from deployments.common.requests import detached
from deployments.common.speech_call import SpeechCall
from models.errors import BusyError, IdleError, StageError, TextError, WarmTalkError
from models.llm.token_stream import end_when_silent, speakable_pieces
from models.runtime.silences import with_silences
from models.speech.text import printable

log = logging.getLogger("ray.serve")

MAX_CHARS = 100_000  # in one text stream
MAX_STREAMS = 1024  # open in one replica
FEED_INTERVAL_S = 15.0  # a writer without new text reports this often that it is still there
LOST_WRITER_S = 4 * FEED_INTERVAL_S  # a text stream without text or report for this long has lost its writer
UNREAD_EXPIRY_S = 900.0  # a text stream that no request has begun to speak may be dropped after this time
WRITER_ERROR_WAIT_S = 2.0  # after the speech has ended: how long to wait for an error of the writer


@dataclass(slots=True)
class _Text:
    parts: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)  # None ends the text; "" is a report
    chars: int = 0
    fed_s: float = field(default_factory=time.monotonic)


class TextStreams:
    """The parts of text streams by key. Either the reader or the writer may come first. Use it from one event loop."""

    def __init__(self) -> None:
        self._texts: dict[str, _Text] = {}
        self._ended: LRUCache[str, None] = LRUCache(4 * MAX_STREAMS)  # keys that accept no more text
        self._reserved: set[str] = set()  # keys of requests that are being spoken or wait for their turn

    def __len__(self) -> int:
        """How many text streams are open."""
        return len(self._texts)

    def feed(self, key: str, parts: list[str], last: bool) -> None:
        """Add parts, each of which can be spoken by itself; without any, report that the writer is still there.

        Text for an ended stream is dropped.
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
            if part.strip():
                text.parts.put_nowait(part)
        if last or not parts:
            text.parts.put_nowait(None if last else "")

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
        """The parts as they arrive. Ends with the text, or with a warning in the log when its writer is lost."""
        text = self._texts.setdefault(key, _Text())
        try:
            while True:
                try:
                    async with asyncio.timeout(LOST_WRITER_S):
                        part = await text.parts.get()
                except TimeoutError:
                    log.warning("A text ended early: the process that sent it was lost.")
                    return
                if part is None:
                    return
                if part:
                    yield part
        finally:
            self._texts.pop(key, None)


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """How long the writer of a text may pause.

    timeout_s: after this time without further text, the text ends. sentence_pause_s: after this time, a sentence with
    its full stop is spoken.
    """

    timeout_s: float
    sentence_pause_s: float

    @classmethod
    def from_config(cls, config: IngressConfig) -> WriterLimits:
        return cls(config.writer_timeout_s, config.sentence_pause_ms / 1e3)

    def pieces(self, tokens: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The sentences of a text that arrives in tokens. Raises IdleError after all that has arrived."""
        silent = IdleError(
            f"No further text arrived for {self.timeout_s:g} s, so the text ended there.",
            "What had arrived is spoken. Send the rest as another text; to keep a text open, send a space.",
        )
        return speakable_pieces(end_when_silent(tokens, self.timeout_s, silent), self.sentence_pause_s)


def text_too_long_error() -> TextError:
    return TextError(f"The text exceeds {MAX_CHARS} characters.", "Send it in parts.")


class _TextFeed:
    """Sends a text to Stitch, and again from its beginning when the session moves before the text is spoken."""

    def __init__(self, stitch: DeploymentHandle, session_id: str) -> None:
        self._stitch, self._session_id = stitch.options(session_id=session_id), session_id
        self.key = uuid.uuid4().hex
        self._sent: list[str] = []
        self._ended = False
        self._lock = asyncio.Lock()  # keeps the parts in order

    async def add(self, parts: list[str], last: bool) -> None:
        """Raises what Stitch.feed raises."""
        async with self._lock:
            self._sent += parts
            self._ended = last
            await self._stitch.feed.remote(self._session_id, self.key, parts, last)

    async def move(self, request: SpeakRequest) -> SpeakRequest:
        """Send the text so far under a new key; return the request with it. Raises what Stitch.feed raises."""
        async with self._lock:
            self.key = uuid.uuid4().hex
            await self._stitch.feed.remote(self._session_id, self.key, self._sent, self._ended)
        return replace(request, text_stream_key=self.key)


async def speak_text_stream(
    stitch: DeploymentHandle, request: SpeakRequest, parts: AsyncGenerator[str, None]
) -> AsyncGenerator[SpeakEvent, None]:
    """Let Stitch speak the parts while they arrive, as one utterance.

    parts: sentences or clauses (models/llm/token_stream.py splits tokens into them). Yields what Stitch.speak yields;
    closing the generator ends the speech. Raises what Stitch.speak raises.

    When `parts` raises a WarmTalkError, an event with this error comes at once, and then the events of the parts before
    it. Any other error of `parts` is raised after the parts before it have been spoken.
    """
    text = _TextFeed(stitch, request.session_id)
    # Calls are made in a new context. Of calls that share a request's context, and so its id within Serve, Ray 2.60
    # loses some when that request has ended: a lost part would never be spoken, and a caller that has left a request
    # after an error of `parts` still reads the rest of the speech.
    context = detached()
    events = context.run(SpeechCall, stitch, replace(request, text_stream_key=text.key), text.move)
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()  # why `parts` ended early

    async def feed() -> None:
        try:
            async with aclosing(with_silences(_limited(parts, failed), lambda: FEED_INTERVAL_S)) as timed:
                async for part in timed:
                    await text.add([] if part is None else [part], last=False)
        finally:
            try:
                await text.add([], last=True)
            except BaseException:
                cancel_call(events)  # the end of the text cannot be sent, so the speech would wait for it
                raise

    feeder = context.run(asyncio.create_task, feed())
    reported = interrupted = False
    try:
        async with aclosing(stream_items(events)) as items, aclosing(_with_error(items, failed)) as all_events:
            async for event in all_events:
                reported = reported or event.error is not None
                interrupted = bool(event.summary and event.summary.get("interrupted"))
                yield event
        done, _ = await asyncio.wait({feeder}, timeout=WRITER_ERROR_WAIT_S)  # interrupted speech ends before its writer
        if done and not reported:
            feeder.result()
        if not done and not interrupted:
            raise StageError("The speech ended before its text.", "Send the rest as another text.")
    finally:
        cancel_call(events)
        feeder.cancel()
        await asyncio.wait({feeder})  # not `await feeder`: its cancellation looks like one of this task
        if not feeder.cancelled():
            feeder.exception()  # mark it as retrieved


async def _limited(parts: AsyncGenerator[str, None], failed: asyncio.Future[Exception]) -> AsyncGenerator[str, None]:
    """The parts, up to MAX_CHARS. The error with which they end is also the result of `failed`. Raises TextError."""
    chars = 0
    try:
        async with aclosing(parts):
            async for part in parts:
                chars += len(part)
                if chars > MAX_CHARS:
                    raise text_too_long_error()
                yield part
    except Exception as error:
        failed.set_result(error)
        raise


async def _with_error(
    items: AsyncGenerator[SpeakEvent, None], failed: asyncio.Future[Exception]
) -> AsyncGenerator[SpeakEvent, None]:
    """The items, and as soon as the text has ended with a WarmTalkError, an event with it."""
    reported = False
    coming: asyncio.Future[SpeakEvent | None] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(items, None))
            awaited: set[asyncio.Future[Any]] = {coming} if failed.done() else {coming, failed}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if failed.done() and not reported and isinstance(failed.result(), WarmTalkError):
                reported = True
                yield SpeakEvent(error=to_warmtalk_error(failed.result()))
            if not coming.done():
                continue
            done, coming = coming, None
            try:
                event = done.result()
            except TextError:  # no part could be spoken, because the text has ended too early
                if not failed.done():
                    raise
                if reported:
                    return
                raise failed.result() from None
            if event is None:
                return
            yield event
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
