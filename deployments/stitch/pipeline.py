"""Drives one utterance down the line: text or speech in, chunks of face crops with their speech out, in order.

Keeps a bounded window of chunks in flight, retries a chunk when a replica dies, and adds up where the time went. Knows
the stages only as handles; knows nothing of pictures, files or HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.common.errors import is_own_cancellation
from deployments.common.stage import StageTiming, Stamped
from deployments.stitch.calls import Call
from deployments.stitch.chunks import Chunk, Entry, Job, LineSettings, Segment
from models.errors import BusyError, StageError, WarmTalkError
from models.speech.activity import ActivityDetector
from models.speech.audio import pad_to_frames
from models.speech.av_offset import LipOffset
from models.types import FaceCrops, Speech

SPEECH_AHEAD = 4  # sentences of a growing text that are spoken before their pictures are made
RETRY_PAUSE_S = 0.1  # doubled at each try: 0.1, 0.2, 0.4 … while Serve notices the death and starts a new replica


@dataclass(slots=True)
class Line:
    """The stages as handles, for one utterance. `enhance` is None where the graph has no Enhance stage."""

    tts: Any
    features: Any
    lipsync: Any
    enhance: Any | None
    settings: LineSettings
    calls: list[Call] = field(default_factory=list)
    retries: int = 0
    engines: dict[str, str] = field(default_factory=dict)  # stage → engine, of the stages that have answered

    async def run(self, job: Job) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of an utterance in order. Raises WarmTalkError; cancels what is under way when closed."""
        queue: asyncio.Queue[Entry | None] = asyncio.Queue(self.settings.window_chunks)
        pump = asyncio.create_task(self._pump(job, queue))
        held: Entry | None = None
        try:
            while (held := await _next_or_error(queue, pump)) is not None:
                stamped = await held.task
                yield _cut(held.segment, held.start, stamped.value)
        finally:
            pump.cancel()
            await asyncio.wait({pump})  # it closes the stream of TTS: nothing of this utterance runs on after it
            if held:
                held.cancel()
            while not queue.empty():
                if entry := queue.get_nowait():
                    entry.cancel()

    async def _pump(self, job: Job, queue: asyncio.Queue[Any]) -> None:
        """Start a task for each chunk, as many at a time as the queue has room for."""
        deadline_s = time.time()
        follows = -1  # the position behind the segment before
        async with aclosing(self._segments(job)) as segments:
            async for segment in segments:
                first, start = segment.first_frame, 0
                segment.position = job.place(first, segment.frames) if job.place else job.position + first
                segment.opens, follows = segment.position != follows, segment.position + segment.frames
                while start < segment.frames:
                    frame = segment.first_frame + start
                    opens = segment.opens and not start
                    size = self.settings.first_chunk_frames if opens else self.settings.chunk_frames
                    count = min(size, segment.frames - start)
                    due_s = deadline_s + frame / self.settings.fps
                    task = asyncio.create_task(self._render(job, segment, start, count, due_s))
                    task.add_done_callback(_retrieve)
                    entry = Entry(segment, start, task)
                    try:
                        await queue.put(entry)
                    except asyncio.CancelledError:
                        entry.cancel()
                        raise
                    start += count
        await queue.put(None)

    async def _segments(self, job: Job) -> AsyncGenerator[Segment, None]:
        """The utterance's speech in padded segments, each a whole number of frames."""
        first_frame, added_s = 0, 0.0
        async with aclosing(self._speech(job)) as source:
            before: Segment | None = None
            offset, ear = LipOffset(self.settings.av_offset_s), ActivityDetector()
            async for speech in source:
                padded = pad_to_frames(speech, self.settings.fps, added_s)
                added_s += padded.duration_s - speech.duration_s
                frames = round(padded.duration_s * self.settings.fps)
                heard = offset(padded)
                active = await asyncio.to_thread(ear, heard)  # a millisecond a second: not on the loop of all sessions
                segment = Segment(padded, first_frame, frames, heard, active)
                if before is not None:
                    before.following = segment
                before = segment
                yield segment
                first_frame += segment.frames

    def _speech(self, job: Job) -> AsyncGenerator[Speech, None]:
        if job.parts is not None:
            return self._spoken_parts(job, job.parts)
        return self._spoken(job, job.text) if job.text else _given(job.speech)

    async def _spoken_parts(self, job: Job, parts: AsyncIterator[str]) -> AsyncGenerator[Speech, None]:
        """Sentences of a text that is still being written: one part is spoken while the one before it is rendered."""
        ahead: asyncio.Queue[Speech | Exception | None] = asyncio.Queue(SPEECH_AHEAD)

        async def read() -> None:
            try:
                async for part in parts:
                    async with aclosing(self._spoken(job, part)) as spoken:
                        async for speech in spoken:
                            await ahead.put(replace(speech, last=False))  # whether more comes is not known yet
                await ahead.put(None)
            except Exception as error:  # noqa: BLE001 - raised below, in its turn
                await ahead.put(error)

        reader = asyncio.create_task(read())
        try:
            while (speech := await ahead.get()) is not None:
                if isinstance(speech, Exception):
                    raise speech
                yield speech
        finally:
            reader.cancel()
            await asyncio.wait({reader})

    async def _spoken(self, job: Job, text: str) -> AsyncGenerator[Speech, None]:
        """Sentences from TTS. When its replica dies, ask again and skip the sentences that are already here."""
        received = 0
        for attempt in range(self.settings.tries):
            stream = self.tts.speak.remote(text, job.voice, job.speed)
            sentences = _as_they_come(stream)
            index, ready_s, ended = 0, time.time(), False
            try:
                async for stamped, here_s in sentences:
                    timing = stamped.timings[-1]
                    self._count(timing, ready_s, here_s)
                    if index >= received:
                        received += 1
                        yield stamped.value
                    index, ready_s = index + 1, timing.done_s  # the voice goes on without being asked
                    ended = stamped.value.last
                if not ended:
                    raise StageError("The voice ended before its last sentence.", "Look at the log of TTS.")
                return
            except (RayError, RayServeException) as error:
                await self._before_retry(error, attempt, "TTS")
            finally:
                stream.cancel()
                await sentences.aclose()

    async def _render(self, job: Job, segment: Segment, start: int, count: int, due_s: float) -> Stamped[FaceCrops]:
        """One chunk through AudioFeatures (once a segment), LipSync and Enhance. Retries the chain as a whole."""
        for attempt in range(self.settings.tries):
            response, features = None, self._features(segment)
            try:
                sent_s = time.time()
                frame = segment.first_frame + start
                response = self.lipsync.generate.remote(
                    features,
                    start,
                    count,
                    job.avatar_id,
                    segment.position + start,
                    frame,
                    due_s,
                    job.session_id,
                    job.avatar_version,
                )
                if job.enhance and self.enhance is not None:
                    response = self.enhance.restore.remote(response, job.strength)
                stamped: Stamped[FaceCrops] = await asyncio.wait_for(response, self.settings.chunk_timeout_s)
                here_s = time.time()
                if segment.done is not None:
                    sent_s = max(sent_s, await segment.done)
                self._account(stamped.timings, sent_s, here_s)
                return stamped
            except (TimeoutError, RayError, RayServeException, asyncio.CancelledError) as error:
                if response is not None:
                    response.cancel()
                if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                    raise
                if segment.features is features:  # else another chunk of the segment has asked anew already
                    segment.features = None
                await self._before_retry(error, attempt, "AudioFeatures, LipSync or Enhance")
        raise StageError("A chunk failed at every try.", "Look at the logs of LipSync and Enhance.")

    def _features(self, segment: Segment) -> Any:
        """The un-awaited response of the segment's features, asked for once and again after a failure."""
        if segment.features is None:
            sent_s = time.time()
            segment.features = self.features.windows.remote(segment.heard, self.settings.fps, segment.active)
            segment.done = asyncio.create_task(self._features_done(segment.features, sent_s))
            segment.done.add_done_callback(_retrieve)
        return segment.features

    async def _features_done(self, response: Any, sent_s: float) -> float:
        """Count the features' call, once a segment. Its result travels to LipSync, so the way back is LipSync's."""
        timing: StageTiming = (await response).timings[-1]
        self._count(timing, sent_s, timing.done_s)
        return timing.done_s

    def _account(self, timings: tuple[StageTiming, ...], ready_s: float, here_s: float) -> None:
        """Split the wall time of a finished chunk among its stages."""
        for timing in timings:
            end_s = here_s if timing is timings[-1] else timing.done_s
            self._count(timing, ready_s, end_s)
            ready_s = end_s

    def _count(self, timing: StageTiming, ready_s: float, end_s: float) -> None:
        self.engines[timing.stage] = timing.engine
        self.calls.append(Call.between(timing, ready_s, end_s))

    async def _before_retry(self, error: BaseException, attempt: int, stage: str) -> None:
        """Raise what must not be retried; otherwise wait a little longer each time."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, WarmTalkError):
            raise cause from None
        if isinstance(error, WarmTalkError):
            raise error
        last = attempt == self.settings.tries - 1
        if isinstance(error, BackPressureError) and last:
            raise BusyError("All replicas are busy and their queues are full.", "Try again in a few seconds.")
        broken = isinstance(error, RayTaskError) and not isinstance(error, TaskCancelledError)
        if last or (broken and not _lost_replica(cause)):
            raise StageError(
                f"{stage} failed: {type(cause or error).__name__}.", "Look at the server's logs."
            ) from error
        self.retries += 1
        await asyncio.sleep(RETRY_PAUSE_S * 2**attempt)


def _lost_replica(cause: BaseException | None) -> bool:
    """Whether a task failed only because what it depended on was lost."""
    return isinstance(cause, RayError) and not isinstance(cause, RayTaskError)


def _cut(segment: Segment, start: int, crops: FaceCrops) -> Chunk:
    """A segment's whole speech goes with its first chunk: the sound encoder looks ahead, and must not wait for it."""
    speech, following = segment.speech, segment.following
    closes = start + len(crops) == segment.frames
    said = speech if start == 0 else None
    known = None if following is None else (following.speech, following.first_frame)
    return Chunk(crops, said, speech.last and closes, known, segment.position + start, closes)


async def _as_they_come(stream: Any) -> AsyncGenerator[tuple[Any, float], None]:
    """The items of a stream with the wall-clock times at which they came, however late they are taken."""
    arrived: asyncio.Queue[tuple[Any, float] | Exception | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in stream:
                arrived.put_nowait((item, time.time()))
            arrived.put_nowait(None)
        except asyncio.CancelledError:
            arrived.put_nowait(RayServeException("The replica went away."))  # else nobody is there to take it
            raise
        except Exception as error:  # noqa: BLE001 - raised below, in its turn
            arrived.put_nowait(error)

    reader = asyncio.create_task(read())
    try:
        while (entry := await arrived.get()) is not None:
            if isinstance(entry, Exception):
                raise entry
            yield entry
    finally:
        reader.cancel()


async def _given(speech: tuple[Speech, ...]) -> AsyncGenerator[Speech, None]:
    for segment in speech:
        yield segment


async def _next_or_error(queue: asyncio.Queue[Entry | None], pump: asyncio.Task[None]) -> Entry | None:
    """The queue's next entry; the pump's error once everything before it has been taken."""
    if not queue.empty():
        return queue.get_nowait()
    getter = asyncio.create_task(queue.get())
    try:
        await asyncio.wait({getter, pump}, return_when=asyncio.FIRST_COMPLETED)
        if pump.done() and not getter.done():
            pump.result()  # raises what broke it; where nothing did, its last entry is on the way
        return await getter
    except BaseException:
        if not getter.cancel() and not getter.cancelled() and (entry := getter.result()) is not None:
            entry.cancel()  # it came in the moment of being closed
        raise


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Mark a chunk's error as seen: it is raised where the chunk is taken, or dropped with the utterance."""
    if not task.cancelled():
        task.exception()
