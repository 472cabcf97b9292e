"""How well lips follow speech, and by how much they are off: LatentSync's SyncNet over a whole clip. Knows no files.

Windows of 16 frames at 25 fps (LatentSync's training) are compared with the speech under them and with the speech up to
15 frames earlier and later. Scores compare clips of one kind of crop with each other; they are not LSE-C or LSE-D.
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
FRAMES = 16  # in a window of pictures
MEL_BINS, MEL_FPS = 80, 80  # mel frames a second: 16 kHz / 200
MEL_FRAMES = math.ceil(FRAMES / 5 * 16)  # 52 mel frames under 16 video frames, 3.2 each
FFT_SAMPLES, HOP_SAMPLES = 800, 200  # 50 ms, 12.5 ms at 16 kHz
MEL_RANGE_HZ = (55.0, 7600.0)
PREEMPHASIS = 0.97
LEAST_DB, REFERENCE_DB, MEL_SPAN = -100.0, 20.0, 4.0  # decibels are mapped onto -4 … 4 and cut there
MAX_OFFSET = 15  # video frames to either side, as SyncNet is used since Chung and Zisserman 2016
STEP_FRAMES = 4  # between the starts of two windows
BATCH = 8  # windows a pass


@dataclass(frozen=True, slots=True)
class SyncScore:
    """offset_frames: by how many frames of 25 a second the matching sound comes late (below 0: early).

    confidence: how far the best mean similarity stands out over the median one, 0 … 2. similarity: cosine between
    pictures and the sound under them, as the clip is; best_similarity: at `offset_frames`. windows: how many were read.
    """

    offset_frames: int
    confidence: float
    similarity: float
    best_similarity: float
    windows: int

    @property
    def offset_ms(self) -> float:
        return 1000 * self.offset_frames / FPS


class SyncNet:
    """LatentSync's SyncNet with weights of `latentsync_syncnet.pt` or `stable_syncnet.pt`."""

    def __init__(self, net: Any, device: Any = "cpu", dtype: Any = None) -> None:
        self.net, self.device, self.dtype = net, device, dtype

    @classmethod
    def load(cls, path: str | Path, device: Any = "cpu", dtype: Any = None) -> SyncNet:
        """Read a checkpoint (1.5 GB), with or without attention. dtype: None is float32.

        Raises WeightsError for a missing, partial or ill-fitting file, naming the first keys that are wrong.
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
        """Compare face crops, RGB uint8 `(n, 256, 256, 3)`, with mono speech at 16 kHz that starts with the first.

        fps: of the crops; they are shown at 25. step: frames between two windows; larger is faster and coarser.
        Raises InputError for another shape, or a clip below 18 frames of 25 a second.
        """
        faces, samples = np.asarray(faces), np.asarray(samples_16khz, np.float32)
        if faces.ndim != 4 or faces.shape[1:] != (CROP_PX, CROP_PX, 3) or faces.dtype != np.uint8:
            raise InputError(
                f"Faces of shape {faces.shape} and type {faces.dtype} cannot be compared with speech.",
                f"Give RGB uint8 (n, {CROP_PX}, {CROP_PX}, 3).",
            )
        # 1. pictures at 25 fps, sound as mel frames, and how far they can be shifted against each other
        shown = frames_at_25(len(faces), fps)
        mel = log_mel(samples)  # (80, t)
        last = min(len(shown) - FRAMES, int((mel.shape[1] - MEL_FRAMES) * FPS / MEL_FPS))  # start of a window
        reach = min(MAX_OFFSET, last // 2)
        if reach < 1:
            raise InputError("The clip is too short to compare lips and speech.", "Use a second or more of both.")
        starts = np.arange(reach, last - reach + 1, step)
        # 2. a vector for each window of pictures, and for each stretch of sound that one is compared with
        pictures = self._embed_faces(faces, shown, starts)  # (w, d)
        sounds = self._embed_speech(mel, np.arange(last + 1))  # (last + 1, d)
        # 3. the mean similarity at each shift
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
        """Unit vectors `(w, d)` of the windows that start at `starts`: lower halves, frame after frame as channels."""
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
        """Unit vectors `(k, d)` of the 52 mel frames from each video frame in `starts` on."""
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
    """Which of `count` frames is on the screen in the middle of each frame of 25 a second."""
    middles = (np.arange(int(count / fps * FPS + 1e-6)) + 0.5) / FPS
    return np.minimum((middles * fps).astype(np.int64), count - 1)


def log_mel(samples: Float32) -> Float32:
    """Mono speech at 16 kHz `(n,)` → float32 `(80, n // 200 + 1)` in [-4, 4], Wav2Lip's arithmetic (its audio.py).

    Pre-emphasised; amplitudes of a centred, zero-padded short-time Fourier transform (librosa's since 0.10), Slaney's
    mel filters, decibels.
    """
    emphasised = samples.astype(np.float64)
    emphasised[1:] -= PREEMPHASIS * samples[:-1].astype(np.float64)
    padded = np.pad(emphasised, FFT_SAMPLES // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)  # periodic Hann
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[::HOP_SAMPLES]  # (t, 800)
    amplitude = np.abs(np.fft.rfft(frames * window, axis=1)) @ _mel_filters()  # (t, 80)
    decibels = 20 * np.log10(np.maximum(10 ** (LEAST_DB / 20), amplitude)) - REFERENCE_DB
    scaled = 2 * MEL_SPAN * (decibels - LEAST_DB) / -LEAST_DB - MEL_SPAN
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
