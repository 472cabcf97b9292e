"""The AudioFeatures stage: speech in, one Whisper feature window per video frame out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import TTLCache

from configs.schema import AudioFeaturesConfig
from deployments.common.paths import input_path
from deployments.common.requests import stage_call
from deployments.common.stage import Stage, Stamped
from deployments.common.worker import WorkResult
from models.speech.activity import ActivityDetector, Spans
from models.speech.audio import resample
from models.speech.feature_windows import blend_rest, plosive_shifts, rest_window
from models.types import WHISPER_HZ, FeatureWindows, Float16, Float32, Speech

if TYPE_CHECKING:
    from models.features import WhisperFeatures

KEPT_SEGMENTS = 32  # whose windows wait for a second call; 1 MB per second of speech
KEPT_S = 30.0  # then they are dropped: the second call may have reached another replica
ROUNDING_FRAMES = 0.01  # tolerance for speech of a whole number of frames whose frames are not whole samples


class AudioFeatures(Stage[AudioFeaturesConfig]):
    stage = "AudioFeatures"

    def __init__(self) -> None:
        super().__init__()
        self._kept: TTLCache[str, asyncio.Task[WorkResult[FeatureWindows]]] = TTLCache(KEPT_SEGMENTS, KEPT_S)  # by key

    def apply(self, config: AudioFeaturesConfig, changed: set[str] | None) -> None:
        import torch

        from models.features import WhisperFeatures

        torch.set_num_threads(config.threads)
        if changed is None or changed & {"weights", "device", "dtype"}:
            self.model = WhisperFeatures.load(
                input_path(config.weights), device=config.device, dtype=getattr(torch, config.dtype)
            )
            self.model.record()
        if changed is None or changed & {
            "weights",
            "device",
            "dtype",
            "context_s",
            "margin_s",
        }:  # also warms up the model
            self._rest = resting_window(self.model, config)

    @stage_call
    async def windows(
        self, speech: Speech, fps: int, active: Spans | None = None, count: int | None = None, key: str = ""
    ) -> Stamped[FeatureWindows]:
        """Feature windows `(n, 50, 384)` float16 of one segment, n = floor(seconds × fps).

        active: when there is speech in the segment, detected with the context of the whole utterance; None: detect it
        in the segment alone. count: return only the first ones, and keep the others for the call with the same key.
        Raises AudioError.
        """
        received_s, began_s = time.time(), time.perf_counter()
        await self.ready()
        kept = self._kept.pop(key, None) if key and count is None else None
        made = kept or asyncio.create_task(self.worker.run(self._windows, self.config, speech, fps, active))
        if key and count is not None:
            self._kept[key] = made
        done = await asyncio.shield(made)
        windows = replace(done.value, windows=done.value.windows[:count])
        compute_s = 0.0 if kept else done.compute_s
        queue_s = time.perf_counter() - began_s - compute_s
        timing = self.meter.record_call(len(windows), received_s, max(0.0, queue_s), compute_s)
        return Stamped(windows, (timing,))

    def _windows(
        self, config: AudioFeaturesConfig, speech: Speech, fps: int, active: Spans | None = None
    ) -> FeatureWindows:
        return FeatureWindows(segment_windows(self.model, self._rest, config, speech, fps, active), fps, self._rest)


def segment_windows(
    model: WhisperFeatures,
    rest: Float16,
    config: AudioFeaturesConfig,
    speech: Speech,
    fps: int,
    active: Spans | None = None,
) -> Float16:
    """The windows `(n, 50, 384)` of one segment, with resting windows in its silences.

    rest: the window of a mouth at rest. active: when there is speech; None: detect it in the segment alone. Raises
    AudioError.
    """
    count = int(speech.duration_s * fps + ROUNDING_FRAMES)
    samples = resample(speech.samples, speech.sample_rate_hz, WHISPER_HZ)
    samples = np.pad(samples, (0, WHISPER_HZ // fps // 2))  # rounding to 16 kHz must not lose a frame
    lead_s = config.plosive_lead_ms / 1e3
    ahead_s = plosive_shifts(speech.phonemes, count, fps, lead_s) if lead_s else None
    windows = _encoded(model, config, samples, fps, ahead_s)[:count]
    if not config.rest_in_silence:
        return windows
    return blend_rest(windows, rest, ActivityDetector()(speech) if active is None else active, fps, speech.last)


def resting_window(model: WhisperFeatures, config: AudioFeaturesConfig) -> Float16:
    """The window `(50, 384)` of a mouth at rest, as this encoder produces it with the config's context."""
    return rest_window(lambda samples: _encoded(model, config, samples, 25, None))


def _encoded(model: WhisperFeatures, config: AudioFeaturesConfig, samples: Float32, fps: int, ahead_s: Any) -> Float16:
    """Windows `(n, 50, 384)` of samples at 16 kHz."""
    if config.context_s is None:
        windows = model.windows(samples, fps, ahead_s)
    else:
        windows = model.windows_in_context(samples, fps, config.context_s, config.margin_s, ahead_s)
    encoded: Float16 = windows.cpu().numpy().astype(np.float16)
    return encoded
