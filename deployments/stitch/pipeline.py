"""Drives one utterance through the stages: text or speech in, chunks of face crops with their speech out, in order.

Keeps a bounded window of chunks in flight, retries a chunk when a replica is lost, and records what each call cost.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.common.errors import ReplicaFailedError, cancel_call, is_own_cancellation
from deployments.common.stage import StageTiming, Stamped
from deployments.common.text_stream import MAX_CHARS
from deployments.stitch.admission import Making
from deployments.stitch.attempts import Answers, Attempts
from deployments.stitch.chunks import (
    Chunk,
    PendingChunk,
    PipelineRequest,
    PipelineSettings,
    SpeechSegment,
)
from deployments.stitch.metrics import StageCall
from deployments.stitch.schedule import Schedule
from models.errors import StageError, TextError
from models.media.spec import growing
from models.restore.align import enlarged
from models.speech.activity import ActivityDetector
from models.speech.audio import pad_to_frames
from models.speech.av_offset import LipOffset
from models.speech.readable import check_text, skipped_for
from models.types import FaceCrops, Float32, SkippedText, Speech

MAX_SPEECH_AHEAD = 4  # sentences of a text stream that are synthesised before their frames are made
SPEECH, CHUNKS = "speech", "chunks"  # kinds of calls in Answers
CHUNK_STAGES = "AudioFeatures, LipSync or Enhance"


@dataclass(slots=True)
class Pipeline:
    """The stages of one utterance. `enhance` is None where the graph has no Enhance stage."""

    tts: DeploymentHandle
    features: DeploymentHandle
    lipsync: DeploymentHandle
    enhance: DeploymentHandle | None
    settings: PipelineSettings
    calls: list[StageCall] = field(default_factory=list)
    making: Making = field(default_factory=Making)
    answers: Answers = field(default_factory=Answers)  # of all utterances of this replica
    retries: int = 0
    engines: dict[str, str] = field(default_factory=dict)  # stage → engine, of the stages that have answered
    skipped: list[SkippedText] = field(default_factory=list)  # passages of the text that cannot be spoken
    # AudioFeatures and LipSync by value, for the first chunk: it is small, and the object store takes twice the time
    by_value: tuple[DeploymentHandle, DeploymentHandle] | None = None

    async def run(self, request: PipelineRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of an utterance in order. Closing it cancels all calls. Raises WarmTalkError."""
        self.making.start()
        queue: asyncio.Queue[PendingChunk | None] = asyncio.Queue(self.settings.window_chunks)
        feeder = asyncio.create_task(self._feed(request, queue))
        pending: PendingChunk | None = None
        try:
            while (pending := await _next_chunk(queue, feeder)) is not None:
                stamped = await pending.task
                yield _chunk_of(pending.segment, pending.start, stamped.value)
        finally:
            feeder.cancel()
            await asyncio.wait({feeder})  # it closes the stream of TTS
            if pending:
                pending.cancel()
            while not queue.empty():
                if waiting := queue.get_nowait():
                    waiting.cancel()

    async def _feed(self, request: PipelineRequest, queue: asyncio.Queue[Any]) -> None:
        """Start a task per chunk; the size of the queue limits how many run at a time."""
        schedule = Schedule(self.settings.fps, request.slack_s)
        previous_end, size = -1, 0  # on the timeline; of the latest chunk
        async with aclosing(self._segments(request)) as segments:
            async for segment in segments:
                segment.position = request.place(segment)
                start, size = 0, size if segment.position == previous_end else 0
                previous_end = segment.position + segment.frames
                while start < segment.frames:
                    size = growing(size, self.settings.first_chunk_frames, self.settings.chunk_frames)
                    count = min(size, segment.frames - start)
                    if request.slack_s is None and segment.first_frame + start > 0:
                        await self.making.give_way()
                    task = asyncio.create_task(self._measured_chunk(request, segment, start, count, schedule))
                    task.add_done_callback(_mark_retrieved)
                    pending = PendingChunk(segment, start, task)
                    try:
                        await queue.put(pending)
                    except asyncio.CancelledError:
                        pending.cancel()
                        raise
                    start += count
        await queue.put(None)

    # --- speech

    async def _segments(self, request: PipelineRequest) -> AsyncGenerator[SpeechSegment, None]:
        """The utterance's speech in segments, each padded to a whole number of frames."""
        first_frame, added_s = 0, 0.0
        async with aclosing(self._speech(request)) as source:
            previous: SpeechSegment | None = None
            offset, detector = LipOffset(self.settings.av_offset_s), ActivityDetector()
            async for speech in source:
                padded = pad_to_frames(speech, self.settings.fps, added_s)
                added_s += padded.duration_s - speech.duration_s
                frames = round(padded.duration_s * self.settings.fps)
                lip_speech = offset(padded)
                active = await asyncio.to_thread(detector, lip_speech)  # takes about 1 ms per second of speech
                segment = SpeechSegment(padded, first_frame, frames, lip_speech, active)
                if previous is not None:
                    previous.following = segment
                previous = segment
                yield segment
                first_frame += segment.frames

    def _speech(self, request: PipelineRequest) -> AsyncGenerator[Speech, None]:
        if request.parts is not None:
            return self._synthesise_parts(request, request.parts)
        return self._synthesise(request, request.text) if request.text else _recorded(request.speech)

    async def _synthesise_parts(
        self, request: PipelineRequest, parts: AsyncIterator[str]
    ) -> AsyncGenerator[Speech, None]:
        """Speech of a text that is still being written: a part is synthesised while the one before it is rendered.

        A part that cannot be spoken is skipped. Raises its TextError if nothing else was spoken.
        """
        ahead: asyncio.Queue[Speech | Exception | None] = asyncio.Queue(MAX_SPEECH_AHEAD)

        async def read() -> None:
            spoken, unreadable = False, None
            try:
                async for part in parts:
                    try:
                        check_text(part, MAX_CHARS, language="")  # the voice checks the script
                        async with aclosing(self._synthesise(request, part)) as sentences:
                            async for speech in sentences:
                                spoken = True
                                await ahead.put(replace(speech, last=False))  # more text may come
                    except TextError as error:
                        self.skipped.append(skipped_for(part, error))
                        unreadable = unreadable or error
                await ahead.put(None if spoken else unreadable)
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

    async def _synthesise(self, request: PipelineRequest, text: str) -> AsyncGenerator[Speech, None]:
        """Sentences from TTS. After the loss of its replica, call it again and skip the sentences already received."""
        received, tries, timeout_s = 0, self.settings.tries, self.settings.speech_timeout_s
        attempts = Attempts("TTS", tries, timeout_s, busy_limit_s=tries * timeout_s if self.calls else 0.0)
        while True:
            stream = self.tts.speak.remote(text, request.voice, request.speed)
            sentences = _with_arrival_times(stream)
            index, ready_s, ended = 0, time.time(), False
            try:
                while (item := await self._next_sentence(sentences)) is not None:
                    stamped, arrived_s = item
                    timing = stamped.timings[-1]
                    self._record(timing, ready_s, arrived_s)
                    if index >= received:
                        received += 1
                        self.skipped += stamped.value.skipped
                        yield stamped.value
                    index, ready_s = index + 1, timing.done_s  # the stage makes the next one at once
                    ended = stamped.value.last
                if not ended:
                    raise StageError("TTS ended before its last sentence.", "Read the log of TTS.")
                return
            except (TimeoutError, RayError, RayServeException, ReplicaFailedError) as error:
                cancel_call(stream)
                await attempts.pause_after(error)
                self.retries += 1
            finally:
                cancel_call(stream)
                await sentences.aclose()

    async def _next_sentence(self, sentences: AsyncGenerator[Any, None]) -> Any:
        """The next item of TTS with its time of arrival; None at the end. Raises TimeoutError."""
        async with self.answers.waiting(SPEECH, self.settings.speech_timeout_s):
            item = await anext(sentences, None)
        if item is not None:
            self.answers.answered(SPEECH, item[0].timings[-1].compute_s)
        return item

    # --- chunks

    async def _measured_chunk(
        self, request: PipelineRequest, segment: SpeechSegment, start: int, count: int, schedule: Schedule
    ) -> Stamped[FaceCrops]:
        """A chunk, measured for the admission of others, and enhanced less where that cannot keep up."""
        shares = None if request.fade is None else request.fade.next(count, self.settings.fps)
        with self.making.working():
            stamped = await self._make_chunk(request, segment, start, count, schedule, shares)
            if shares is not None and not shares.any():
                stamped = await asyncio.to_thread(_without_enhancement, stamped)
        self.making.made(count)
        if segment.first_frame + start == 0:
            schedule.begin()
        if shares is not None:
            self.making.reduced_frames += int((shares < 1).sum())
        if request.slack_s is not None:
            self.making.slack_s = request.slack_s(segment.position + start)
            if request.fade is not None:
                request.fade.made(self.making.slack_s)
        return stamped

    async def _make_chunk(
        self,
        request: PipelineRequest,
        segment: SpeechSegment,
        start: int,
        count: int,
        schedule: Schedule,
        shares: Float32 | None = None,
    ) -> Stamped[FaceCrops]:
        """One chunk through AudioFeatures (once per segment), LipSync and Enhance. A retry repeats the whole chain.

        shares: `(count,)`, by which the strength of the enhancement is multiplied. None: 1.
        """
        settings, first = self.settings, segment.first_frame + start == 0
        busy_limit_s = 0.0 if first else settings.tries * settings.chunk_timeout_s  # what was accepted is finished
        attempts = Attempts(CHUNK_STAGES, settings.tries, settings.chunk_timeout_s, busy_limit_s)
        while True:
            response, features, lipsync = None, None, self.lipsync
            try:
                if first and self.by_value is not None:
                    features, features_done = await self._first_features(segment, count), None
                    lipsync = self.lipsync if request.enhance else self.by_value[1]
                else:
                    features = self._features_of(segment)
                    features_done = segment.features_done  # another chunk may request new features meanwhile
                sent_s = time.time()
                urgency = schedule.urgency(segment.first_frame + start, segment.position + start, count)
                response = lipsync.generate.remote(
                    features,
                    start,
                    count,
                    request.avatar_id,
                    segment.position + start,
                    segment.first_frame + start,
                    urgency,
                    request.session_id,
                    request.avatar_version,
                )
                if request.enhance and self.enhance is not None and (shares is None or shares.any()):
                    given = (request.strength, urgency, request.session_id, shares)
                    response = self.enhance.restore.remote(response, *given)
                async with self.answers.waiting(CHUNKS, settings.chunk_timeout_s, request.slack_s is not None):
                    stamped: Stamped[FaceCrops] = await response
                arrived_s = time.time()
                self.answers.answered(CHUNKS, sum(timing.compute_s for timing in stamped.timings))
                if features_done is not None:
                    sent_s = max(sent_s, await features_done)
                self._record_chain(stamped.timings, sent_s, arrived_s)
                return stamped
            except (TimeoutError, RayError, RayServeException, ReplicaFailedError, asyncio.CancelledError) as error:
                if response is not None:
                    cancel_call(response)
                if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                    raise
                if segment.features is features:  # else another chunk of the segment has requested new features
                    segment.features = None
                await attempts.pause_after(error)
                self.retries += 1

    async def _first_features(self, segment: SpeechSegment, count: int) -> Any:
        """The windows of the first `count` frames. AudioFeatures keeps the others for `_features_of`."""
        assert self.by_value is not None
        sent_s, segment.key = time.time(), uuid.uuid4().hex
        given = segment.lip_speech, self.settings.fps, segment.active, count, segment.key
        response = self.by_value[0].windows.remote(*given)
        try:
            async with self.answers.waiting(CHUNKS, self.settings.chunk_timeout_s):
                stamped = await response
        except BaseException:
            cancel_call(response)
            raise
        self._record(stamped.timings[-1], sent_s, time.time())
        return stamped

    def _features_of(self, segment: SpeechSegment) -> Any:
        """The un-awaited response with the segment's features: one call per segment, and one more after a failure."""
        if segment.features is None:
            sent_s, kept = time.time(), (None, segment.key) if segment.key else ()
            given = segment.lip_speech, self.settings.fps, segment.active, *kept
            segment.features = self.features.windows.remote(*given)
            segment.features_done = asyncio.create_task(self._features_done(segment.features, sent_s))
            segment.features_done.add_done_callback(_mark_retrieved)
        return segment.features

    async def _features_done(self, response: Any, sent_s: float) -> float:
        """Record the call of AudioFeatures. Its result goes to LipSync, which accounts for that transfer."""
        timing: StageTiming = (await response).timings[-1]
        self._record(timing, sent_s, timing.done_s)
        return timing.done_s

    def _record_chain(self, timings: tuple[StageTiming, ...], ready_s: float, arrived_s: float) -> None:
        """Split the wall time of a finished chunk among its stages."""
        for timing in timings:
            end_s = arrived_s if timing is timings[-1] else timing.done_s
            self._record(timing, ready_s, end_s)
            ready_s = end_s

    def _record(self, timing: StageTiming, ready_s: float, end_s: float) -> None:
        self.engines[timing.stage] = timing.engine
        self.calls.append(StageCall.between(timing, ready_s, end_s))


def _without_enhancement(stamped: Stamped[FaceCrops]) -> Stamped[FaceCrops]:
    """The crops at the size of enhanced ones."""
    images = np.stack([enlarged(image) for image in stamped.value.images])  # (n, 512, 512, 3)
    return replace(stamped, value=replace(stamped.value, images=images))


def _chunk_of(segment: SpeechSegment, start: int, crops: FaceCrops) -> Chunk:
    """A segment's first chunk carries its whole speech, because the audio encoder must not wait for later chunks."""
    ends_segment = start + len(crops) == segment.frames
    return Chunk(
        crops,
        segment.speech if start == 0 else None,
        segment.speech.last and ends_segment,
        segment.position + start,
        segment.following,
        ends_segment,
        segment.speech_active,
    )


async def _with_arrival_times(stream: Any) -> AsyncGenerator[tuple[Any, float], None]:
    """The items of a stream with the wall-clock times of their arrival, also if they are consumed later."""
    arrived: asyncio.Queue[tuple[Any, float] | Exception | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in stream:
                arrived.put_nowait((item, time.time()))
            arrived.put_nowait(None)
        except asyncio.CancelledError:
            arrived.put_nowait(RayServeException("The replica was lost."))  # if it was not this reader's own
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


async def _recorded(speech: Iterable[Speech]) -> AsyncGenerator[Speech, None]:
    segments = iter(speech)
    while (segment := await asyncio.to_thread(next, segments, None)) is not None:
        yield segment


async def _next_chunk(queue: asyncio.Queue[PendingChunk | None], feeder: asyncio.Task[None]) -> PendingChunk | None:
    """The queue's next item. Raises the feeder's error when everything before it has been taken."""
    if not queue.empty():
        return queue.get_nowait()
    getter = asyncio.create_task(queue.get())
    try:
        await asyncio.wait({getter, feeder}, return_when=asyncio.FIRST_COMPLETED)
        if feeder.done() and not getter.done():
            feeder.result()  # raises its error; without one, its last item is about to arrive
        return await getter
    except BaseException:
        if not getter.cancel() and not getter.cancelled() and (pending := getter.result()) is not None:
            pending.cancel()  # it arrived while the caller was leaving
        raise


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    """Mark a chunk's error as retrieved: it is raised where the chunk is taken, or dropped with the utterance."""
    if not task.cancelled():
        task.exception()
