"""Decodes and encodes audio files, resamples, and splits speech into segments of whole video frames."""

from __future__ import annotations

import dataclasses
import io
import itertools
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
import soxr

from models.errors import AudioError
from models.types import Float32, Speech

MAX_AUDIO_S = 600.0
MIN_AUDIO_S = 0.04  # one video frame at 25 fps
# Allowed demuxers. Playlists and concat scripts are excluded: they make FFmpeg open other files.
FORMATS = "wav,w64,aiff,au,flac,mp3,ogg,mov,mp4,m4a,3gp,matroska,webm,aac,caf,amr,asf,avi,mpegts"
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 768_000
MAX_KEPT_RATE_HZ = 96_000  # higher rates are reduced while decoding, which bounds the memory of MAX_AUDIO_S
MIX = {"rematrix_maxval": "1.0"}  # downmix by averaging, so that full scale stays full scale

SILENCE_DB = -60.0  # re full scale; lower levels are treated as equal

REMEDY = "Send speech as WAV, FLAC, MP3, OGG or M4A."
PCM_BLOCK_BYTES = 1 << 20
PAGES = (("page_duration", "200000"),)  # in µs, so that Ogg pages are written every 0.2 s instead of every second


class SoundFormat(NamedTuple):
    """FFmpeg's names for an output format. rates_hz: allowed rates, empty for any. bit_rate: 0 for lossless formats."""

    container: str
    codec: str
    sample_format: str
    rates_hz: tuple[int, ...] = ()
    bit_rate: int = 0
    options: tuple[tuple[str, str], ...] = ()  # of the muxer, when the file is written as a stream


_MPEG_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
SOUND_FORMATS = {  # the formats of OpenAI's POST /v1/audio/speech
    "mp3": SoundFormat("mp3", "libmp3lame", "fltp", _MPEG_RATES_HZ, 96_000, (("write_xing", "0"),)),
    "opus": SoundFormat("ogg", "libopus", "flt", (8_000, 12_000, 16_000, 24_000, 48_000), 48_000, PAGES),
    "aac": SoundFormat("adts", "aac", "fltp", _MPEG_RATES_HZ, 96_000),
    "flac": SoundFormat("flac", "flac", "s16"),
    "wav": SoundFormat("wav", "pcm_s16le", "s16"),
    "pcm": SoundFormat("s16le", "pcm_s16le", "s16", (24_000,)),  # OpenAI's clients assume 24 kHz
}


def decode_audio(data: bytes | Path, max_seconds: float = MAX_AUDIO_S) -> tuple[Float32, int]:
    """Decode the first audio stream of an audio or video file → (float32 mono (n,) in [-1, 1], sample rate in Hz).

    data: the file's bytes, or its path. Channels are downmixed by FFmpeg's matrix. Sample rates above MAX_KEPT_RATE_HZ
    are reduced to it. If the peak exceeds full scale, the whole signal is scaled down. NaN and infinity become 0. A
    truncated file gives the part that it contains.

    Raises AudioError: no file, no audio, unknown format, a sample rate or number of channels that is not supported,
    shorter than MIN_AUDIO_S, or longer than `max_seconds` (then the rest is not decoded).
    """
    if isinstance(data, Path) and not data.is_file():
        raise AudioError(f"There is no audio file {data.name!r}.", "Check the path.")
    with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file:
        blocks = list(decoded_blocks(file, max_seconds))
    samples: Float32 = np.concatenate([block for block, _ in blocks])
    peak = max(1.0, float(np.abs(samples).max()))
    return (samples if peak == 1.0 else samples / np.float32(peak)), blocks[0][1]


def decoded_blocks(file: BinaryIO, max_seconds: float) -> Iterator[tuple[Float32, int]]:
    """`decode_audio` block by block, not scaled: (float32 mono (n,), sample rate in Hz), the rate always the same.

    file: the sound file, read from its start. Raises AudioError as `decode_audio`, some of it only at the end.
    """
    if file.seek(0, io.SEEK_END) == 0:
        raise AudioError("The audio file is empty (0 bytes).", REMEDY)
    file.seek(0)
    try:
        container = av.open(file, options={"format_whitelist": FORMATS, "max_pixels": "1"}, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioError("The data is not audio in a known format, or is damaged.", REMEDY) from error
    with container:
        if not container.streams.audio:
            raise AudioError("The file has no audio stream.", REMEDY)
        if container.duration is not None and container.duration / av.time_base > max_seconds + 1:
            raise _too_long(max_seconds)
        yield from _mono_blocks(container, max_seconds)


class AudioEncoder:
    """Streaming encoder: `push` returns the bytes that are ready, `finish` the rest. Concatenated, they are one file.

    sound_format: a key of SOUND_FORMATS. `pcm` is 16-bit little-endian mono at 24 kHz without a header. The other
    formats keep the sample rate if they support it, else use the next higher supported one. out: write there instead;
    only then can the header state the length.

    Raises AudioError: unknown format.
    """

    def __init__(self, sound_format: str, sample_rate_hz: int, out: io.BytesIO | None = None) -> None:
        if sound_format not in SOUND_FORMATS:
            raise AudioError(f"There is no audio format {sound_format!r}.", f"Use one of {', '.join(SOUND_FORMATS)}.")
        spec = SOUND_FORMATS[sound_format]
        self.sample_rate_hz = _rate_from(spec.rates_hz, sample_rate_hz)
        self._input_hz = sample_rate_hz
        self._input_samples = 0
        self._written = _WriteBuffer()
        options = {"fflags": "+bitexact", **({} if out else dict(spec.options))}  # bitexact: no encoder's name
        self._container = av.open(out or self._written, "w", format=spec.container, options=options)
        self._stream = self._container.add_stream(spec.codec, rate=self.sample_rate_hz, layout="mono")
        self._stream.codec_context.format = spec.sample_format
        if spec.bit_rate:
            self._stream.bit_rate = spec.bit_rate
        self._stream.codec_context.open()
        frame_size = self._stream.codec_context.frame_size or None
        self._resampler = av.AudioResampler(spec.sample_format, "mono", self.sample_rate_hz, frame_size)

    def push(self, samples: Float32) -> bytes:
        """Encode float32 mono (n,), clipped to [-1, 1]; return the bytes that are ready."""
        if len(samples):
            frame = av.AudioFrame.from_ndarray(np.clip(samples, -1.0, 1.0)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = self._input_hz, self._input_samples
            frame.time_base = Fraction(1, self._input_hz)
            self._input_samples += len(samples)
            self._mux(self._resampler.resample(frame))
        return self._written.take()

    def finish(self) -> bytes:
        """Return the last bytes of the file. Do not call `push` afterwards."""
        if self._input_samples:
            self._mux([*self._resampler.resample(None), None])
        self._container.close()
        return self._written.take()

    def _mux(self, frames: Iterable[av.AudioFrame | None]) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))


def encode_audio(samples: Float32, sample_rate_hz: int, sound_format: str) -> bytes:
    """Encode float32 mono (n,) in [-1, 1], n ≥ 1, as a file. sound_format: a key of SOUND_FORMATS, else AudioError."""
    assert len(samples), samples.shape
    out = io.BytesIO()
    encoder = AudioEncoder(sound_format, sample_rate_hz, out)
    encoder.push(samples)
    encoder.finish()
    return out.getvalue()


def write_wav(pcm: Path, sample_rate_hz: int) -> None:
    """Turn a file of raw 16-bit little-endian mono PCM into a WAV file. An odd last byte is dropped. Raises OSError."""
    part = pcm.with_name(f".{pcm.name}.wav")
    with pcm.open("rb") as source, wave.open(str(part), "wb") as target:
        target.setparams((1, 2, sample_rate_hz, 0, "NONE", ""))
        while block := source.read(PCM_BLOCK_BYTES):
            target.writeframesraw(block[: len(block) // 2 * 2])
    part.replace(pcm)


class _WriteBuffer:
    """Collects what a muxer writes. It has no `seek`, so the muxer never changes bytes that were taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def _rate_from(rates_hz: tuple[int, ...], wanted_hz: int) -> int:
    """`wanted_hz` if `rates_hz` is empty or contains it; else the next higher rate, or the highest."""
    if not rates_hz or wanted_hz in rates_hz:
        return wanted_hz
    return min((rate for rate in rates_hz if rate > wanted_hz), default=max(rates_hz))


def resample(samples: Float32, from_hz: int, to_hz: int) -> Float32:
    """Resample float32 mono (n,) → (round(n · to / from),) with soxr at its default quality (HQ)."""
    if from_hz == to_hz or not len(samples):
        return samples
    wanted = round(len(samples) * to_hz / from_hz)
    out = np.asarray(soxr.resample(samples, from_hz, to_hz), np.float32)[:wanted]
    return np.pad(out, (0, wanted - len(out)))


def frame_start(frame: int, sample_rate_hz: int, fps: int) -> int:
    """Index of the first sample of a video frame. Rounded from frame 0, so that errors do not accumulate."""
    return round(frame * sample_rate_hz / fps)


def frames_covering(samples: int, sample_rate_hz: int, fps: int) -> int:
    """Number of video frames that cover `samples` samples: the smallest k with frame_start(k) ≥ samples."""
    frames = samples * fps // sample_rate_hz
    while frame_start(frames, sample_rate_hz, fps) < samples:
        frames += 1
    return frames


def pad_to_frames(speech: Speech, fps: int, added_s: float = 0.0) -> Speech:
    """Append silence so that the speech lasts a whole number of video frames.

    added_s: silence that was added to the utterance's earlier segments. If the sum would exceed one frame and the
    speech ends in silence, that silence is shortened to whole frames instead. An utterance thus never becomes more than
    one frame longer than its speech.
    """
    count, rate_hz = len(speech.samples), speech.sample_rate_hz
    frames = frames_covering(count, rate_hz, fps)
    missing = frame_start(frames, rate_hz, fps) - count
    shorter = frame_start(frames - 1, rate_hz, fps)
    if frames > 1 and added_s + missing / rate_hz > 1 / fps and _is_silent(speech.samples[shorter:]):
        ends_s = shorter / rate_hz
        kept = tuple(dataclasses.replace(p, end_s=min(p.end_s, ends_s)) for p in speech.phonemes if p.start_s < ends_s)
        return dataclasses.replace(speech, samples=speech.samples[:shorter], phonemes=kept)
    return dataclasses.replace(speech, samples=np.pad(speech.samples, (0, missing))) if missing else speech


def _is_silent(samples: Float32) -> bool:
    return bool(np.abs(samples).max(initial=0.0) < 10 ** (SILENCE_DB / 20))


def _mono_blocks(container: av.container.InputContainer, max_seconds: float) -> Iterator[tuple[Float32, int]]:
    """The samples of the first audio stream, downmixed to mono, at the sample rate of its first frame."""
    resampler: av.AudioResampler | None = None
    count = rate_hz = 0
    for frame in itertools.chain(_frames(container), [None]):
        if resampler is None and frame is not None:
            rate_hz = min(_check_rate(frame.sample_rate), MAX_KEPT_RATE_HZ)  # not the header's: HE-AAC has twice that
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate_hz, options=MIX)
        for out in _downmix(resampler, frame):
            count += out.samples
            yield np.nan_to_num(out.to_ndarray()[0], nan=0.0, posinf=0.0, neginf=0.0), rate_hz
        if count > max_seconds * rate_hz:
            raise _too_long(max_seconds)
    if count < MIN_AUDIO_S * rate_hz or not count:
        raise AudioError(
            f"The audio is too short or damaged: {1000 * count / (rate_hz or 1):.0f} ms could be decoded.",
            "Send a complete file with at least one spoken word.",
        )


def _downmix(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> list[av.AudioFrame]:
    try:
        return resampler.resample(frame) if resampler is not None else []
    except (av.error.FFmpegError, ValueError) as error:
        channels = frame.layout.nb_channels if frame is not None else 0
        raise AudioError(f"Audio with {channels} channels cannot be downmixed.", "Send mono or stereo.") from error


def _check_rate(rate_hz: int) -> int:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioError(f"The sample rate is {rate_hz} Hz, not between {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz.", REMEDY)
    return rate_hz


def _frames(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    """Decoded frames until the end, or until a damaged file can no longer be read. Skips single bad packets."""
    packets = container.demux(container.streams.audio[0])
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            continue


def _too_long(max_seconds: float) -> AudioError:
    return AudioError(
        f"The audio is longer than {max_seconds:g} s.", "Send it in several requests of the same session."
    )
