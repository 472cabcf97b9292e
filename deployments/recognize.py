"""The Recognize stage: recorded speech in, text out. It is optional."""

from __future__ import annotations

import time
from typing import Any

from configs.schema import RecognizeConfig
from deployments.common.paths import input_path, uploaded_file
from deployments.common.requests import stage_call
from deployments.common.stage import Stage, Stamped
from deployments.common.worker import Worker
from models.recognition import ENGINES
from models.recognition.base import Recognizer, Task, Transcript
from models.runtime.registry import find_engine
from models.speech.audio import decode_audio, resample
from models.types import WHISPER_HZ, Float32

DEFAULT_WEIGHTS = "weights/whisper-tiny.en"
LEAST_SIZE_S = 10.0  # shorter recordings do not take less time in proportion
IO_THREADS = 16  # for engines that wait for a server; more than max_ongoing_requests


def load_recognizer(name: str, options: dict[str, Any]) -> Recognizer:
    """Load the engine with its options from the config. Relative `weights` are resolved by `input_path`.

    Raises ConfigError, WeightsError.
    """
    options = dict(options)
    if name == "whisper":
        options.setdefault("weights", DEFAULT_WEIGHTS)
    if isinstance(options.get("weights"), str):
        options["weights"] = input_path(options["weights"])
    engine: Recognizer = find_engine(name, ENGINES).load(**options)
    return engine


class Recognize(Stage[RecognizeConfig]):
    stage = "Recognize"
    engine: Recognizer

    def __init__(self) -> None:
        super().__init__()
        self._io_worker = Worker("Recognize-io", IO_THREADS)

    def workers(self) -> tuple[Worker, ...]:
        return self.worker, self._io_worker

    def apply(self, config: RecognizeConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"engine", "options"}:
            self.engine = load_recognizer(config.engine, config.options)

    @stage_call
    async def transcribe(
        self, audio_path: str, language: str | None = None, task: Task = "transcribe"
    ) -> Stamped[Transcript]:
        """The text of an uploaded sound file in any common format.

        language: ISO 639-1; None means the config's. Raises AudioError for data that is not sound or is longer than
        max_audio_s, InputError for an unknown language.
        """
        received_s = time.time()
        await self.ready()
        worker = self._io_worker if getattr(self.engine, "io_bound", False) else self.worker
        read = await worker.run(_samples, audio_path, self.config.max_audio_s)
        size = max(len(read.value) / WHISPER_HZ, LEAST_SIZE_S)
        language = language or self.config.language
        done = await worker.run_sized(size, self.engine.transcribe, read.value, language, task)
        times_s = (read.queue_s + done.queue_s, read.compute_s + done.compute_s)
        return Stamped(done.value, (self.meter.record_call(0, received_s, *times_s),))


def _samples(audio_path: str, max_seconds: float) -> Float32:
    """An uploaded sound file at WHISPER_HZ. Raises InputError, AudioError."""
    samples, rate_hz = decode_audio(uploaded_file(audio_path), max_seconds)
    return resample(samples, rate_hz, WHISPER_HZ)
