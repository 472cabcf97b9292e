"""The TTS stage: text in, a stream of speech out, one Speech per sentence."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

from configs.schema import TTSConfig
from deployments.common.messages import SoundPart
from deployments.common.requests import stage_call
from deployments.common.stage import Stage, Stamped
from deployments.common.worker import Worker
from models.errors import TextError
from models.runtime.registry import find_engine
from models.speech.audio import AudioEncoder
from models.speech.readable import group_skipped, readable_text, skip_warnings
from models.tts import ENGINES
from models.tts.base import ENGINE_MAX_CHARS, TTSEngine
from models.types import Speech

# These names select the default voice, unless the engine has a voice of that name: OpenAI's clients must send one of
# OpenAI's voices (its API reference, "Create speech").
DEFAULT_VOICE_NAMES = frozenset(
    (
        *("default", "alloy", "ash", "ballad", "cedar", "coral", "echo"),
        *("fable", "marin", "nova", "onyx", "sage", "shimmer", "verse"),
    )
)
IO_THREADS = 64  # for engines that wait for a server; more than max_ongoing_requests


class Turns:
    """Lets one caller at a time use the compute thread: of those that wait, the one that is least ahead.

    So the first sentence of a new text does not wait behind the later sentences of long ones. Not thread-safe: use it
    from one event loop.
    """

    def __init__(self) -> None:
        self._taken, self._numbers = False, itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, end_s: float) -> AsyncIterator[None]:
        """end_s: when the speech that the caller has will have been played, by `time.perf_counter`."""
        if self._taken:
            mine = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (end_s, next(self._numbers), mine))
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():  # the turn came at the same moment
                    self._pass_on()
                raise
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, waiting = heapq.heappop(self._waiting)
            if not waiting.done():  # else its caller has left
                waiting.set_result(None)
                return
        self._taken = False


class TTS(Stage[TTSConfig]):
    stage = "TTS"
    engine: TTSEngine

    def __init__(self) -> None:
        super().__init__()
        self._turns = Turns()
        self._io_worker = Worker("TTS-io", IO_THREADS)
        self._fetch_lock = asyncio.Lock()

    def workers(self) -> tuple[Worker, ...]:
        return self.worker, self._io_worker

    def apply(self, config: TTSConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"engine", "options"}:
            self.engine = find_engine(config.engine, ENGINES).load(**config.options)

    @stage_call
    async def speak(
        self, text: str, voice: str | None = None, speed: float | None = None
    ) -> AsyncGenerator[Stamped[Speech], None]:
        """Yield one stamped Speech per sentence, or several for a sentence that the engine streams.

        What the engine cannot read of a text that is readable otherwise is left out: see Speech.skipped.
        voice, speed: None means the config's. Raises TextError for text that is too long or cannot be spoken.
        """
        await self.ready()
        if len(text) > self.config.max_chars:
            raise TextError(
                f"The text has {len(text)} characters; the limit is {self.config.max_chars}.",
                "Send it in parts, or raise max_chars of the TTS stage.",
            )
        engine, voice, speed = self.engine, voice or self.config.voice, speed or self.config.speed
        readable, skipped = await asyncio.to_thread(
            readable_text, text, ENGINE_MAX_CHARS, getattr(engine, "language", "")
        )
        text = readable if skipped else text  # each engine normalises a text in its own way
        await self._fetch(engine, voice)
        io_bound = getattr(engine, "io_bound", False)
        worker = self._io_worker if io_bound else self.worker
        received_s, began_s, given_s, speech = time.time(), time.perf_counter(), 0.0, None
        while True:
            asked_s = time.perf_counter()
            async with nullcontext() if io_bound else self._turns.turn(began_s + given_s):
                started_s, compute_s = time.perf_counter(), 0.0
                if speech is None:
                    begun = await worker.run(engine.speak, text, voice, speed)  # may load a voice
                    speech, compute_s = iter(begun.value), begun.compute_s
                done = await worker.run(next, speech, None)
            if done.value is None:
                return
            queue_s, compute_s = started_s - asked_s + done.queue_s, compute_s + done.compute_s
            given_s += done.value.duration_s
            spoken = replace(done.value, skipped=group_skipped((*skipped, *done.value.skipped)))
            skipped = ()
            yield Stamped(spoken, (self.meter.record_call(0, received_s, queue_s, compute_s),))
            received_s = time.time()

    async def _fetch(self, engine: Any, voice: str | None) -> None:
        """Download a voice that is missing, once, while other calls go on. Raises WeightsError."""
        if voice is None or not hasattr(engine, "missing_voices"):
            return
        if voice in await asyncio.to_thread(engine.missing_voices):
            async with self._fetch_lock:
                await asyncio.to_thread(engine.fetch_voice, voice)

    async def encoded(
        self, text: str, voice: str | None, speed: float | None, sound_format: str
    ) -> AsyncGenerator[SoundPart, None]:
        """Yield the speech as the bytes of one sound file, sentence by sentence, with warnings of what was left out.

        voice: a voice of the engine, or `default`. A name of OpenAI's voices, which OpenAI's clients must send, selects
        the default voice if the engine has no voice of that name. sound_format: a key of
        models.speech.audio.SOUND_FORMATS. Raises what `speak` raises, and AudioError.
        """
        await self.ready()
        known = getattr(self.engine, "any_voice", False) or voice in self.engine.voices()
        if voice == "default" or (voice in DEFAULT_VOICE_NAMES and not known):
            voice = None
        encoder: AudioEncoder | None = None
        async with aclosing(self.speak(text, voice, speed)) as spoken:
            async for stamped in spoken:
                speech = stamped.value
                encoder = encoder or AudioEncoder(sound_format, speech.sample_rate_hz)
                data = (await self.worker.run(encoder.push, speech.samples)).value
                if speech.last:
                    data += (await self.worker.run(encoder.finish)).value
                if data:
                    yield SoundPart(data, tuple(skip_warnings(speech.skipped)))

    async def voices(self) -> list[dict[str, Any]]:
        """Per voice: its name, whether it is installed, and if not, how many MB its first use downloads."""
        await self.ready()
        missing = await asyncio.to_thread(self.engine.missing_voices) if hasattr(self.engine, "missing_voices") else {}
        return [
            {"name": name, "ready": name not in missing, "fetch_mb": round(missing.get(name, 0) / 1e6, 1)}
            for name in self.engine.voices()
        ]
