"""The TTS stage: text in, a Speech a sentence out, as a stream. Knows no other stage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from configs.schema import TTSConfig
from deployments.common.stage import Stage, Stamped, Worker
from models.errors import TextError
from models.runtime.registry import find_engine
from models.speech.audio import AudioEncoder
from models.tts import ENGINES
from models.tts.base import TTSEngine
from models.types import Speech

# Of POST /v1/audio/speech: `default`, and OpenAI's voices (its API reference, "Create speech")
OPENAI_VOICES = (
    "alloy",
    "ash",
    "ballad",
    "cedar",
    "coral",
    "echo",
    "fable",
    "marin",
    "nova",
    "onyx",
    "sage",
    "shimmer",
)
USUAL_VOICES = frozenset(("default", *OPENAI_VOICES, "verse"))
WAITING_THREADS = 32  # more than the sentences that a replica is given at a time (max_ongoing_requests)


class TTS(Stage[TTSConfig]):
    stage = "TTS"
    engine: TTSEngine

    def __init__(self) -> None:
        super().__init__()
        self._waiting = Worker("TTS-waiting", WAITING_THREADS)
        self._fetching = asyncio.Lock()

    def apply(self, config: TTSConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"engine", "options"}:
            self.engine = find_engine(config.engine, ENGINES).load(**config.options)

    async def speak(
        self, text: str, voice: str | None = None, speed: float | None = None
    ) -> AsyncGenerator[Stamped[Speech], None]:
        """Yield one stamped Speech a sentence or a piece of it. Raises TextError for text that cannot be spoken."""
        await self.ready()
        if len(text) > self.config.max_chars:
            raise TextError(
                f"The text has {len(text)} characters; the limit is {self.config.max_chars}.",
                "Send it in parts, or raise max_chars of the TTS stage.",
            )
        engine, chosen, pace = self.engine, voice or self.config.voice, speed or self.config.speed
        await self._fetch(engine, chosen)
        worker = self._waiting if getattr(engine, "io_bound", False) else self.worker
        received_s = time.time()
        begun = await worker.run(engine.speak, text, chosen, pace)  # it may load a voice
        speech, queue_s, compute_s = iter(begun.value), begun.queue_s, begun.compute_s
        while True:
            done = await worker.run(next, speech, None)
            if done.value is None:
                return
            queue_s, compute_s = queue_s + done.queue_s, compute_s + done.compute_s
            yield Stamped(done.value, (self.meter.record_call(0, received_s, queue_s, compute_s),))
            received_s, queue_s, compute_s = time.time(), 0.0, 0.0

    async def _fetch(self, engine: Any, voice: str | None) -> None:
        """Have a voice that is not here fetched, once, while others speak. Raises WeightsError."""
        if voice is None or not hasattr(engine, "missing_voices"):
            return
        if voice in await asyncio.to_thread(engine.missing_voices):
            async with self._fetching:
                await asyncio.to_thread(engine.fetch_voice, voice)

    async def encoded(
        self, text: str, voice: str | None, speed: float | None, sound_format: str
    ) -> AsyncGenerator[bytes, None]:
        """Yield the speech as the bytes of one sound file, each sentence's as soon as it is spoken.

        voice: one of the engine's, or `default`; of OpenAI's names, which its clients must send, those that the engine
        has not mean the default, too. sound_format: a key of models.speech.audio.SOUND_FORMATS. Raises what `speak`
        raises, and AudioError.
        """
        await self.ready()
        known = getattr(self.engine, "any_voice", False) or voice in self.engine.voices()
        if voice == "default" or (voice in USUAL_VOICES and not known):
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
                    yield data

    async def voices(self) -> list[dict[str, Any]]:
        """Of each voice its name, whether it can speak at once, and else how much is fetched at its first use, MB."""
        await self.ready()
        missing = await asyncio.to_thread(self.engine.missing_voices) if hasattr(self.engine, "missing_voices") else {}
        return [
            {"name": name, "ready": name not in missing, "fetch_mb": round(missing.get(name, 0) / 1e6, 1)}
            for name in self.engine.voices()
        ]
