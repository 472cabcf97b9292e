"""The reply of the language model on its way to the voice, and what the job records of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from deployments.chat.store import ChatJob
from deployments.common.messages import SpeakEvent
from models.errors import WarmTalkError
from models.speech.readable import has_word
from models.speech.text import split_sentences

CHARS_PER_S = 15.0  # typical speaking rate, to estimate what was heard of a reply without viewers
FPS = 25  # typical frame rate, for the same estimate
MAX_PROGRESS_UNWRITTEN = 0.5  # while the length of the reply is unknown
MAX_PROGRESS_UNFINISHED = 0.99


class ReplyReader:
    """Reads a reply to its end at the model's speed, however slowly it is spoken. `finish` raises the model's error."""

    def __init__(self, source: AsyncGenerator[str, None], on_error: Callable[[WarmTalkError], None]) -> None:
        """on_error: called with the model's error when it occurs, while the reply before it may still be spoken."""
        self._pieces: list[str] = []
        self._on_error = on_error
        self._has_word = False
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(source))
        self._task.add_done_callback(lambda _: self._changed.set())

    async def _read(self, source: AsyncGenerator[str, None]) -> None:
        try:
            async with aclosing(source):
                async for piece in source:
                    self._has_word = self._has_word or has_word(piece)
                    self._pieces.append(piece)
                    self._changed.set()
        except WarmTalkError as error:
            self._on_error(error)
            raise

    async def has_speech(self) -> bool:
        """Wait for the first piece that can be spoken; False if the reply ends without one."""
        while not self._has_word and not self._task.done():
            await self._wait_for_change()
        return self._has_word

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The pieces as they arrive, with those that cannot be spoken: Stitch reports them."""
        while self._pieces or not self._task.done():
            if self._pieces:
                yield self._pieces.pop(0)
            else:
                await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def finish(self) -> None:
        """Wait for the end of the reply. Raises what stopped the model."""
        await self._task

    async def close(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def record_tokens(job: ChatJob, tokens: AsyncGenerator[str, None], began_s: float) -> AsyncGenerator[str, None]:
    """Yield the tokens; add each to the job's reply. began_s: time.perf_counter at the start of the answer."""
    async with aclosing(tokens):
        async for token in tokens:
            if not job.reply:
                job.latency["first_token_ms"] = round((time.perf_counter() - began_s) * 1e3, 1)
            job.reply += token
            yield token
    job.written = True


async def record_spoken(job: ChatJob, pieces: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield the pieces; add each to the job as given to the voice."""
    async with aclosing(pieces):
        async for piece in pieces:
            if has_word(piece):
                job.saying = f"{job.saying or ''} {piece}".strip()
            yield piece


def record_event(job: ChatJob, event: SpeakEvent, asked_ms: float) -> None:
    """Store progress and timings of the speech in the job.

    asked_ms: when the speech was requested, in milliseconds after the start of the answer.
    """
    if (making := event.making) is not None:
        job.frames = making["frames"]
        if making["ttff_ms"] is not None:
            job.latency.setdefault("first_frame_ms", round(asked_ms + making["ttff_ms"], 1))
        job.latency |= {key: making[key] for key in ("ttff_ms", "duration_s", "stages")}
        job.heard = making["spoken"] if making["watched"] else None
        if making["shown_frames"]:
            job.video_url = f"/sessions/{job.session_id}/video.mp4"
        share = making["spoken_chars"] / max(len(job.reply.strip()), 1)
        limit = MAX_PROGRESS_UNFINISHED if job.written else MAX_PROGRESS_UNWRITTEN
        job.progress = max(job.progress, round(min(share, limit), 3))
    if event.summary is not None:
        job.interrupted = job.interrupted or bool(event.summary.get("interrupted"))
        job.start_s = event.summary.get("start_s", job.start_s)  # after the pause that the file keeps before it
        job.latency |= {key: event.summary[key] for key in ("ttff_ms", "rtf", "stages")}
        job.latency["duration_s"] = event.summary["made_s"]
        job.warnings = event.summary.get("warnings", [])


def heard_text(job: ChatJob, seen_s: float) -> str:
    """The sentences of an interrupted answer that viewers began to hear.

    Without viewers this is an estimate from the generated frames and from seen_s, the time since the first frame.
    """
    if job.heard is not None:
        return job.heard
    heard, passed = [], 0
    for sentence in split_sentences(job.saying or "") if job.frames else ():
        if passed <= min(job.frames / FPS, seen_s) * CHARS_PER_S:
            heard.append(sentence)
        passed += len(sentence)
    return " ".join(heard)
