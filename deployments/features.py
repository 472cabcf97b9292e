"""The AudioFeatures stage: speech in, one Whisper feature window a video frame out. Knows no other stage."""

from __future__ import annotations

import time

import numpy as np

from configs.schema import AudioFeaturesConfig
from deployments.paths import input_path
from deployments.stage import Stage, Stamped
from models.audio import resample
from models.types import WHISPER_HZ, FeatureWindows, Speech

ROUNDING_FRAMES = 0.01  # a whole number of frames is one even where frames are not whole samples


class AudioFeatures(Stage[AudioFeaturesConfig]):
    stage = "AudioFeatures"

    def apply(self, config: AudioFeaturesConfig, changed: set[str] | None) -> None:
        import torch

        from models.features import WhisperFeatures

        torch.set_num_threads(config.threads)
        if changed is None or changed & {"weights", "device", "dtype"}:
            self.model = WhisperFeatures.load(
                input_path(config.weights), device=config.device, dtype=getattr(torch, config.dtype)
            )
            self._windows(config, Speech(np.zeros(WHISPER_HZ, np.float32), WHISPER_HZ), 25)  # warm up

    async def windows(self, speech: Speech, fps: int) -> Stamped[FeatureWindows]:
        """Feature windows `(n, 50, 384)` float16 of one segment, n = floor(seconds × fps). Raises AudioError."""
        received_s = time.time()
        await self.ready()
        done = await self.worker.run(self._windows, self.config, speech, fps)
        timing = self.meter.stamp(len(done.value), received_s, done.queue_s, done.compute_s)
        return Stamped(done.value, (timing,))

    def _windows(self, config: AudioFeaturesConfig, speech: Speech, fps: int) -> FeatureWindows:
        count = int(speech.duration_s * fps + ROUNDING_FRAMES)
        samples = resample(speech.samples, speech.sample_rate_hz, WHISPER_HZ)
        samples = np.pad(samples, (0, WHISPER_HZ // fps // 2))  # so that rounding to 16 kHz cannot cost a frame
        if config.context_s is None:
            windows = self.model.windows(samples, fps)
        else:
            windows = self.model.windows_in_context(samples, fps, config.context_s, config.margin_s)
        return FeatureWindows(windows[:count].cpu().numpy().astype(np.float16), fps)
