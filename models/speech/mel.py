"""Whisper's log-mel spectrogram in torch, for batches on any device."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from models.types import WHISPER_HZ

FFT_SAMPLES = 400  # 25 ms at 16 kHz
HOP_SAMPLES = 160  # 10 ms: 100 mel frames a second
LOG_FLOOR = 1e-10  # lower power is clamped before log10
LOG_RANGE = 8.0  # decades kept below the loudest bin of the spectrogram


@lru_cache(maxsize=8)
def _filters(mel_bins: int, device: torch.device) -> torch.Tensor:
    """Slaney's mel filters of equal area (Auditory Toolbox, 1998) from 0 to 8 kHz: float32 `(mel_bins, 201)`.

    The scale is linear, 3 mel per 200 Hz, up to 1 kHz, and logarithmic above, 27 mel per factor of 6.4.
    """
    top_hz, log_mel_width = WHISPER_HZ / 2, math.log(6.4) / 27
    mels = torch.linspace(0, 15 + math.log(top_hz / 1000) / log_mel_width, mel_bins + 2, dtype=torch.float64)
    edges_hz = torch.where(mels < 15, 200 * mels / 3, 1000 * torch.exp((mels - 15) * log_mel_width))[:, None]
    low, middle, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]  # of each triangle
    bins_hz = torch.linspace(0, top_hz, 1 + FFT_SAMPLES // 2, dtype=torch.float64)
    triangles = torch.minimum((bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)).clamp(min=0)
    return (triangles * 2 / (high - low)).to(device, torch.float32)


def log_mel(samples: torch.Tensor, mel_bins: int = 80) -> torch.Tensor:
    """Float32 speech `(b, n)` at 16 kHz → float32 `(b, mel_bins, n // 160)`.

    Same computation as Whisper's `log_mel_spectrogram` (Radford et al. 2022) and transformers' feature extractor. Each
    row is scaled by its own loudest bin: pad rows to the encoder's context *before* this call. Always float32: the
    power of quiet speech underflows in float16.
    """
    assert samples.ndim == 2 and samples.dtype == torch.float32, (samples.shape, samples.dtype)
    window = torch.hann_window(FFT_SAMPLES, device=samples.device)
    spectrum = torch.stft(
        samples, FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True
    )  # (b, 201, n // 160 + 1)
    power = spectrum[..., :-1].abs().square().contiguous()  # (b, 201, n // 160)
    log_spec = (_filters(mel_bins, samples.device) @ power).clamp(min=LOG_FLOOR).log10()  # (b, mel_bins, n // 160)
    log_spec = torch.maximum(log_spec, log_spec.amax(dim=(1, 2), keepdim=True) - LOG_RANGE)
    return (log_spec + 4.0) / 4.0
