"""An answer on its way from the language model to the voice: read to its end, noted in its job as it is said.

Belongs to Chat; knows no handle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from deployments.chat.store import Job
from deployments.common.messages import SpeakEvent
from models.speech.text import normalise, split_sentences

CHARS_A_S = 15.0  # of speech, and
FPS = 25  # of video: how much could be heard of an answer that nobody watches is told by about these
UNWRITTEN = 0.5  # an answer that is still being written has not come further than this: its length is not known
UNFINISHED = 0.99


class Reading:
    """Reads an answer to its end, however slowly it is spoken. What breaks it off is raised by `finish` alone."""

    def __init__(self, source: AsyncGenerator[str, None]) -> None:
        self._pieces: list[str] = []
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(source))
        self._task.add_done_callback(lambda _: self._changed.set())

    async def _read(self, source: AsyncGenerator[str, None]) -> None:
        async with aclosing(source):
            async for piece in source:
                if any(c.isalnum() for c in normalise(piece)):  # the rest is shown, but there is nothing to say of it
                    self._pieces.append(piece)
                    self._changed.set()

    async def begun(self) -> bool:
        """Whether there is something to say, once that is known."""
        while not self._pieces and not self._task.done():
            await self._change()
        return bool(self._pieces)

    async def pieces(self) -> AsyncGenerator[str, None]:
        """What is to be said, as it comes."""
        while self._pieces or not self._task.done():
            if self._pieces:
                yield self._pieces.pop(0)
            else:
                await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def finish(self) -> None:
        """Wait for the end. Raises what broke it off."""
        await self._task

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def noted(job: Job, tokens: AsyncGenerator[str, None], began_s: float) -> AsyncGenerator[str, None]:
    """The tokens, each added to the job's reply as it comes."""
    async with aclosing(tokens):
        async for token in tokens:
            if not job.reply:
                job.latency["first_token_ms"] = round((time.perf_counter() - began_s) * 1e3, 1)
            job.reply += token
            yield token
    job.written = True


async def told(job: Job, parts: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The parts, each noted as given to the voice."""
    async with aclosing(parts):
        async for part in parts:
            job.saying = f"{job.saying or ''} {part}".strip()
            yield part


def note(job: Job, event: SpeakEvent, asked_ms: float) -> None:
    """Write down what was made and heard, and where its time went. asked_ms: when the voice was asked for it."""
    if (making := event.making) is not None:
        job.frames = making["frames"]
        if making["ttff_ms"] is not None:
            job.latency.setdefault("first_frame_ms", round(asked_ms + making["ttff_ms"], 1))
        job.latency |= {key: making[key] for key in ("ttff_ms", "duration_s", "stages")}
        job.heard = making["spoken"] if making["watched"] else None
        if making["shown_frames"]:
            job.video_url = f"/sessions/{job.session_id}/video.mp4"
        share = making["spoken_chars"] / max(len(job.reply.strip()), 1)
        job.progress = max(job.progress, round(min(share, UNFINISHED if job.written else UNWRITTEN), 3))
    if event.summary is not None:
        job.interrupted = job.interrupted or bool(event.summary.get("interrupted"))
        job.start_s = event.summary.get("start_s", job.start_s)  # behind the pause that is kept before it
        job.latency |= {key: event.summary[key] for key in ("ttff_ms", "rtf", "stages")}
        job.latency["duration_s"] = event.summary["made_s"]


def heard_of(job: Job, seen_s: float) -> str:
    """What was heard of an answer that was cut: its sentences that had begun; where nobody watches, by time alone."""
    if job.heard is not None:
        return job.heard
    heard, passed = [], 0
    for sentence in split_sentences(job.saying or "") if job.frames else ():
        if passed <= min(job.frames / FPS, seen_s) * CHARS_A_S:
            heard.append(sentence)
        passed += len(sentence)
    return " ".join(heard)
