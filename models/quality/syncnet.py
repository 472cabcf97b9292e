"""Measures lip sync and its offset over a whole clip with LatentSync's SyncNet.

Windows of 16 frames at 25 fps (as in LatentSync's training) are compared with the speech at the same time, and up to 15
frames earlier and later. Scores are comparable between clips with the same kind of crop; they are not LSE-C or LSE-D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.types import CROP_PX, WHISPER_HZ, Float32, UInt8
from models.weights.loading import build_module, load_state_dict

FPS = 25  # of the network's training
FRAMES = 16  # per window
MEL_BINS, MEL_FPS = 80, 80  # mel frames per second: 16 kHz / 200
MEL_FRAMES = math.ceil(FRAMES / 5 * 16)  # 52 mel frames under 16 video frames, 3.2 each
FFT_SAMPLES, HOP_SAMPLES = 800, 200  # 50 ms, 12.5 ms at 16 kHz
MEL_RANGE_HZ = (55.0, 7600.0)
PREEMPHASIS = 0.97
MIN_DB, REFERENCE_DB, MEL_SPAN = -100.0, 20.0, 4.0  # decibels are mapped to -4 … 4 and clipped
MAX_OFFSET = 15  # video frames to either side, as SyncNet is used since Chung and Zisserman 2016
STEP_FRAMES = 4  # between the starts of two windows
BATCH = 8  # windows per pass


@dataclass(frozen=True, slots=True)
class SyncScore:
    """The score of a clip.

    offset_frames: delay of the sound in frames of 1/25 s; negative: the sound is early. confidence: best mean
    similarity minus the median over all shifts, 0 … 2. similarity: mean cosine between pictures and sound without a
    shift. best_similarity: with the shift `offset_frames`. windows: number of windows compared.
    """

    offset_frames: int
    confidence: float
    similarity: float
    best_similarity: float
    windows: int


class SyncNet:
    """LatentSync's SyncNet with the weights of `latentsync_syncnet.pt` or `stable_syncnet.pt`."""

    def __init__(self, net: Any, device: Any = "cpu", dtype: Any = None) -> None:
        self.net, self.device, self.dtype = net, device, dtype

    @classmethod
    def load(cls, path: str | Path, device: Any = "cpu", dtype: Any = None) -> SyncNet:
        """Load a checkpoint (1.5 GB), with or without attention. dtype: None is float32.

        Raises WeightsError for a missing, partial or wrong file; the message names the first wrong keys.
        """
        import torch

        from models.quality.syncnet_net import AUDIO, VISUAL, StableSyncNet, layout_of

        dtype = dtype or torch.float32
        state = load_state_dict(path)
        layouts = layout_of(state, "visual_encoder", VISUAL), layout_of(state, "audio_encoder", AUDIO)
        return cls(build_module(lambda: StableSyncNet(*layouts), state, path, device, dtype), device, dtype)

    def offset_and_confidence(
        self, faces: UInt8, samples_16khz: npt.NDArray[np.floating], fps: float = FPS, step: int = STEP_FRAMES
    ) -> SyncScore:
        """Compare face crops, RGB uint8 `(n, 256, 256, 3)`, with mono speech at 16 kHz that starts with the first crop.

        fps: of the crops; they are resampled to 25. step: frames between two windows; larger is faster and less
        precise. Raises InputError for another shape, or a clip of fewer than 18 frames at 25 fps.
        """
        faces, samples = np.asarray(faces), np.asarray(samples_16khz, np.float32)
        if faces.ndim != 4 or faces.shape[1:] != (CROP_PX, CROP_PX, 3) or faces.dtype != np.uint8:
            raise InputError(
                f"Faces of shape {faces.shape} and type {faces.dtype} cannot be compared with speech.",
                f"Pass RGB uint8 (n, {CROP_PX}, {CROP_PX}, 3).",
            )
        # 1. pictures at 25 fps, sound as mel frames, and the largest shift between them
        shown = frames_at_25(len(faces), fps)
        mel = log_mel(samples)  # (80, t)
        last = min(len(shown) - FRAMES, int((mel.shape[1] - MEL_FRAMES) * FPS / MEL_FPS))  # start of a window
        reach = min(MAX_OFFSET, last // 2)
        if reach < 1:
            raise InputError(
                f"The clip is too short to compare lips and speech: {len(shown)} frames at 25 fps, "
                f"{len(samples) / WHISPER_HZ:.2f} s of sound.",
                "Use at least a second of both.",
            )
        starts = np.arange(reach, last - reach + 1, step)
        # 2. a vector per window of pictures, and per window of sound at every shift
        pictures = self._embed_faces(faces, shown, starts)  # (w, d)
        sounds = self._embed_speech(mel, np.arange(last + 1))  # (last + 1, d)
        # 3. the mean similarity per shift
        shifts = np.arange(-reach, reach + 1)
        curve = np.array([(pictures * sounds[starts + shift]).sum(1).mean() for shift in shifts])
        best = int(curve.argmax())
        return SyncScore(
            offset_frames=int(shifts[best]),
            confidence=float(curve[best] - np.median(curve)),
            similarity=float(curve[reach]),
            best_similarity=float(curve[best]),
            windows=len(starts),
        )

    def _embed_faces(self, faces: UInt8, shown: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> Float32:
        """Unit vectors `(w, d)` of the windows at `starts`: lower halves of the frames, stacked as channels."""
        windows = [shown[start : start + FRAMES] for start in starts]
        return self._embed(
            self.net.visual_encoder,
            windows,
            lambda window: (
                faces[window, CROP_PX // 2 :].transpose(0, 3, 1, 2).reshape(-1, CROP_PX // 2, CROP_PX)
                / np.float32(127.5)
                - 1
            ),
        )

    def _embed_speech(self, mel: Float32, starts: npt.NDArray[np.int64]) -> Float32:
        """Unit vectors `(k, d)` of the 52 mel frames that begin at each video frame of `starts`."""
        firsts = [int(MEL_FPS * (start / FPS)) for start in starts.tolist()]
        return self._embed(self.net.audio_encoder, firsts, lambda first: mel[None, :, first : first + MEL_FRAMES])

    def _embed(self, encoder: Any, items: list[Any], content: Any) -> Float32:
        import torch

        vectors = []
        with torch.inference_mode():
            for start in range(0, len(items), BATCH):
                batch = np.stack([content(item) for item in items[start : start + BATCH]]).astype(np.float32)
                vectors.append(encoder(torch.from_numpy(batch).to(self.device, self.dtype)).float().cpu().numpy())
        return np.concatenate(vectors)


def frames_at_25(count: int, fps: float) -> npt.NDArray[np.int64]:
    """Return, for each frame at 25 fps, the index of the one of `count` frames that is shown at its middle."""
    middles = (np.arange(int(count / fps * FPS + 1e-6)) + 0.5) / FPS
    return np.minimum((middles * fps).astype(np.int64), count - 1)


def log_mel(samples: Float32) -> Float32:
    """Convert mono speech at 16 kHz `(n,)` to mel frames `(80, n // 200 + 1)`, float32, as Wav2Lip's audio.py does.

    Values are in [-4, 4]. Pre-emphasis; amplitudes of a centred, zero-padded short-time Fourier transform (librosa's
    default since 0.10); Slaney's mel filters; decibels.
    """
    emphasised = samples.astype(np.float64)
    emphasised[1:] -= PREEMPHASIS * samples[:-1].astype(np.float64)
    padded = np.pad(emphasised, FFT_SAMPLES // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)  # periodic Hann
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[::HOP_SAMPLES]  # (t, 800)
    amplitude = np.abs(np.fft.rfft(frames * window, axis=1)) @ _mel_filters()  # (t, 80)
    decibels = 20 * np.log10(np.maximum(10 ** (MIN_DB / 20), amplitude)) - REFERENCE_DB
    scaled = 2 * MEL_SPAN * (decibels - MIN_DB) / -MIN_DB - MEL_SPAN
    return np.clip(scaled, -MEL_SPAN, MEL_SPAN).T.astype(np.float32)


@cache
def _mel_filters() -> npt.NDArray[np.float64]:
    """Slaney's mel filters, `(401, 80)`."""
    from transformers.audio_utils import mel_filter_bank

    filters: npt.NDArray[np.float64] = mel_filter_bank(
        num_frequency_bins=1 + FFT_SAMPLES // 2,
        num_mel_filters=MEL_BINS,
        min_frequency=MEL_RANGE_HZ[0],
        max_frequency=MEL_RANGE_HZ[1],
        sampling_rate=WHISPER_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return filters
