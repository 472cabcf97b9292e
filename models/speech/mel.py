"""Whisper's log-mel spectrogram in torch, for batches on any device."""

from __future__ import annotations

from functools import lru_cache

import torch
from transformers.audio_utils import mel_filter_bank

from models.types import WHISPER_HZ

FFT_SAMPLES = 400  # 25 ms at 16 kHz
HOP_SAMPLES = 160  # 10 ms: 100 mel frames a second
LOG_FLOOR = 1e-10  # lower power is clamped before log10
LOG_RANGE = 8.0  # decades kept below the loudest bin of the spectrogram


@lru_cache(maxsize=8)
def _filters(mel_bins: int, device: torch.device) -> torch.Tensor:
    """Slaney mel filters from 0 to 8 kHz: float32 `(mel_bins, 201)`."""
    bank = mel_filter_bank(
        num_frequency_bins=1 + FFT_SAMPLES // 2,
        num_mel_filters=mel_bins,
        min_frequency=0.0,
        max_frequency=WHISPER_HZ / 2,
        sampling_rate=WHISPER_HZ,
        norm="slaney",
        mel_scale="slaney",
    )  # (201, mel_bins) float64
    return torch.from_numpy(bank).to(device, torch.float32).T.contiguous()


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
