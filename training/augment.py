"""Audio augmentation: other vocal tracts, rooms, microphones, noise and levels. No function shifts a sound in time.

Inputs and outputs are float32 mono at 16 kHz.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.types import WHISPER_HZ

Float32 = npt.NDArray[np.float32]
FFT, HOP = 512, 128  # Hann windows of 32 ms that overlap by three quarters
ENVELOPE_BINS = 26  # cepstral coefficients that are kept; finer structure is the pitch


def shift_formants(sound: Float32, factor: float) -> Float32:
    """Scale the spectral envelope along frequency without the pitch: a longer (< 1) or shorter (> 1) vocal tract."""
    window = np.hanning(FFT + 1)[:-1]
    padded = np.pad(sound, (FFT, FFT + HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP] * window  # (t, 512)
    spectrum = np.fft.rfft(frames)
    log_magnitude = np.log(np.abs(spectrum) + 1e-5)
    cepstrum = np.fft.irfft(log_magnitude)
    cepstrum[:, ENVELOPE_BINS : FFT - ENVELOPE_BINS + 1] = 0
    envelope = np.fft.rfft(cepstrum).real  # (t, 257), log magnitude
    bins = np.arange(FFT // 2 + 1)
    source = np.clip(bins / factor, 0, FFT // 2)
    low = np.minimum(source.astype(int), FFT // 2 - 1)
    part = source - low
    moved = envelope[:, low] * (1 - part) + envelope[:, low + 1] * part
    spectrum *= np.exp(np.clip(moved - envelope, -4, 4))
    return _overlap_add(np.fft.irfft(spectrum) * window, window, len(padded))[FFT : FFT + len(sound)]


def _overlap_add(frames: npt.NDArray[np.float64], window: npt.NDArray[np.float64], length: int) -> Float32:
    out, weight = np.zeros(length), np.full(length, 1e-3)
    for index, frame in enumerate(frames):
        out[index * HOP : index * HOP + FFT] += frame
        weight[index * HOP : index * HOP + FFT] += window**2
    return np.asarray(out / weight, np.float32)


def reverberate(sound: Float32, rt60_s: float, wet: float, random: np.random.Generator) -> Float32:
    """Reverberation of a small room: decaying noise after the direct sound."""
    length = int(rt60_s * WHISPER_HZ)
    tail = random.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)  # -60 dB at the end
    tail[: int(0.003 * WHISPER_HZ)] = 0  # the first reflection comes after about a metre
    response = np.concatenate([[1.0], wet * tail / np.sqrt((tail**2).sum())])
    return _convolve(sound, response)


def colour(sound: Float32, random: np.random.Generator) -> Float32:
    """The response of a microphone: a tilt of up to 6 dB and three resonances, as a zero-phase filter."""
    size = 1 << (len(sound) - 1).bit_length()
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / WHISPER_HZ), 50) / 1000)
    gain_db = random.uniform(-2, 2) * octaves
    for _ in range(3):
        gain_db += random.uniform(-5, 5) * np.exp(-(((octaves - random.uniform(-3, 3)) / random.uniform(0.3, 1)) ** 2))
    if random.random() < 0.2:  # a telephone, or a lossy codec
        gain_db -= 40 / (1 + np.exp(-8 * (octaves - np.log2(random.uniform(3.2, 6.0)))))
    filtered = np.fft.irfft(np.fft.rfft(sound, size) * 10 ** (gain_db / 20))
    return np.asarray(filtered[: len(sound)], np.float32)


def add_noise(sound: Float32, snr_db: float, random: np.random.Generator) -> Float32:
    """Add white, pink or brown noise, `snr_db` below the speech."""
    size = 1 << (len(sound) - 1).bit_length()
    slope = random.choice([0.0, 0.5, 1.0])
    spectrum = np.fft.rfft(random.standard_normal(size)) / np.maximum(np.arange(size // 2 + 1), 20) ** slope
    noise = np.fft.irfft(spectrum)[: len(sound)]
    level = np.sqrt((sound**2).mean() / (noise**2).mean() + 1e-12) * 10 ** (-snr_db / 20)
    return np.asarray(sound + level * noise, np.float32)


def disguise(sound: Float32, random: np.random.Generator, plain: float = 0.3) -> Float32:
    """A random selection of the above, then a random level; with probability `plain`, only the level."""
    if random.random() > plain:
        if random.random() < 0.5:
            sound = shift_formants(sound, random.uniform(0.83, 1.2))
        if random.random() < 0.3:
            sound = reverberate(sound, random.uniform(0.1, 0.5), random.uniform(0.1, 0.6), random)
        if random.random() < 0.4:
            sound = colour(sound, random)
        if random.random() < 0.4:
            sound = add_noise(sound, random.uniform(12, 45), random)
    peak = float(np.abs(sound).max()) + 1e-6
    return np.asarray(sound * (min(10 ** random.uniform(-0.7, 0), 0.99) / peak), np.float32)


def _convolve(sound: Float32, response: npt.NDArray[np.float64]) -> Float32:
    size = 1 << (len(sound) + len(response) - 2).bit_length()
    product = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(response, size))
    return np.asarray(product[: len(sound)], np.float32)
