"""Reads and writes audio of any usual kind, resamples, and cuts given speech into segments of whole video frames.

Knows nothing of voices, faces, sessions or HTTP.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
import soxr

from models.errors import AudioError
from models.types import Float32, Speech

MAX_AUDIO_S = 600.0
MIN_AUDIO_S = 0.04  # one video frame at 25 fps
# Demuxers for what people send. Playlists and concatenation scripts are left out: they make FFmpeg open other files.
FORMATS = "wav,w64,aiff,au,flac,mp3,ogg,mov,mp4,m4a,3gp,matroska,webm,aac,caf,amr,asf,avi,mpegts"
MIX = {"rematrix_maxval": "1.0"}  # mixing down keeps full scale at full scale, as an average does

FIRST_SEGMENT_S = (0.8, 3.0)  # a first segment this long lets the picture start early
MIN_LAST_SEGMENT_S = 0.5  # a shorter rest is not worth a call of every stage
PAUSE_WINDOW_S = 0.08  # what is heard around a cut: shorter than a word's gap, longer than a stop consonant's closure
PAUSE_BELOW_SPEECH_DB = 20.0  # a place is a pause when it is this far below the loudest tenth of the speech
SAME_LEVEL_DB = 3.0  # places this close in loudness count as one stretch, which is cut in its middle
SILENCE_DB = -60.0  # below full scale; quieter than this, one place is as good as another

REMEDY = "Send speech as WAV, FLAC, MP3, OGG or M4A."
PAGES = (("page_duration", "200000"),)  # microseconds: Ogg's default of a second would be waited for


class SoundFormat(NamedTuple):
    """How FFmpeg names a format's parts; `rates_hz` is empty where any rate will do, `bit_rate` 0 where it has none."""

    container: str
    codec: str
    sample_format: str
    rates_hz: tuple[int, ...] = ()
    bit_rate: int = 0
    options: tuple[tuple[str, str], ...] = ()  # of the muxer, where the file is written as a stream


_MPEG_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
SOUND_FORMATS = {  # those of OpenAI's POST /v1/audio/speech
    "mp3": SoundFormat("mp3", "libmp3lame", "fltp", _MPEG_RATES_HZ, 96_000, (("write_xing", "0"),)),
    "opus": SoundFormat("ogg", "libopus", "flt", (8_000, 12_000, 16_000, 24_000, 48_000), 48_000, PAGES),
    "aac": SoundFormat("adts", "aac", "fltp", _MPEG_RATES_HZ, 96_000),
    "flac": SoundFormat("flac", "flac", "s16"),
    "wav": SoundFormat("wav", "pcm_s16le", "s16"),
    "pcm": SoundFormat("s16le", "pcm_s16le", "s16", (24_000,)),  # OpenAI's clients take 24 kHz for granted
}


def decode_audio(data: bytes | Path, max_seconds: float = MAX_AUDIO_S) -> tuple[Float32, int]:
    """Decode a file's first audio stream → (float32 mono (n,) in [-1, 1], sample rate in Hz).

    data: the file's bytes, or its path. Any channels, rate and bit depth; a video's sound is taken. Channels are mixed
    by FFmpeg's matrix; what exceeds full scale is scaled down as a whole; NaN and infinity become silence. A file that
    breaks off gives what it holds. Raises AudioError; a file over `max_seconds` is refused without decoding the rest.
    """
    if isinstance(data, Path) and not data.is_file():
        raise AudioError(f"There is no audio file {data.name!r}.", "Check the path.")
    if (data.stat().st_size if isinstance(data, Path) else len(data)) == 0:
        raise AudioError("The audio is empty: it has no bytes.", REMEDY)
    source = str(data) if isinstance(data, Path) else io.BytesIO(data)
    try:
        container = av.open(source, options={"format_whitelist": FORMATS}, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioError("The data is not audio of a known format, or is broken.", REMEDY) from error
    with container:
        if not container.streams.audio:
            raise AudioError("The file has no sound in it.", REMEDY)
        if container.duration is not None and container.duration / av.time_base > max_seconds + 1:
            raise _too_long(max_seconds)
        samples, rate_hz = _collect(container, max_seconds)
    samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    peak = float(np.abs(samples).max())
    return (samples / np.float32(peak) if peak > 1.0 else samples), rate_hz


class AudioEncoder:
    """Encodes speech as it comes: `push` gives the bytes that are ready, `finish` the rest; joined they are one file.

    sound_format: a key of SOUND_FORMATS. `pcm` is 16-bit little-endian mono at 24 kHz without a header; the others keep
    the rate of the speech where they can, else take the next higher one that they have. A header that should tell the
    length says that it is unknown, unless `out` can seek. Raises AudioError for any other format.
    """

    def __init__(self, sound_format: str, sample_rate_hz: int, out: io.BytesIO | None = None) -> None:
        if sound_format not in SOUND_FORMATS:
            raise AudioError(f"There is no sound format {sound_format!r}.", f"Use one of {', '.join(SOUND_FORMATS)}.")
        spec = SOUND_FORMATS[sound_format]
        self.sample_rate_hz = _rate_from(spec.rates_hz, sample_rate_hz)
        self._given_hz = sample_rate_hz
        self._given = 0  # samples so far
        self._written = _Written()
        options = {"fflags": "+bitexact", **({} if out else dict(spec.options))}  # bitexact: no encoder's name inside
        self._container = av.open(out or self._written, "w", format=spec.container, options=options)
        self._stream = self._container.add_stream(spec.codec, rate=self.sample_rate_hz, layout="mono")
        self._stream.codec_context.format = spec.sample_format
        if spec.bit_rate:
            self._stream.bit_rate = spec.bit_rate
        self._stream.codec_context.open()
        frame_size = self._stream.codec_context.frame_size or None
        self._fit = av.AudioResampler(spec.sample_format, "mono", self.sample_rate_hz, frame_size)

    def push(self, samples: Float32) -> bytes:
        """Encode float32 mono (n,) in [-1, 1]; return the bytes that are complete."""
        if len(samples):
            frame = av.AudioFrame.from_ndarray(np.clip(samples, -1.0, 1.0)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = self._given_hz, self._given
            frame.time_base = Fraction(1, self._given_hz)
            self._given += len(samples)
            self._mux(self._fit.resample(frame))
        return self._written.take()

    def finish(self) -> bytes:
        """The bytes that end the file. Nothing may be pushed afterwards."""
        if self._given:
            self._mux([*self._fit.resample(None), None])
        self._container.close()
        return self._written.take()

    def _mux(self, frames: Iterable[av.AudioFrame | None]) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))


def encode_audio(samples: Float32, sample_rate_hz: int, sound_format: str) -> bytes:
    """Encode float32 mono (n,) in [-1, 1], n ≥ 1, as a file of one of SOUND_FORMATS. Raises AudioError for others."""
    assert len(samples), samples.shape
    out = io.BytesIO()
    encoder = AudioEncoder(sound_format, sample_rate_hz, out)
    encoder.push(samples)
    encoder.finish()
    return out.getvalue()


def wav_from_pcm(data: bytes, sample_rate_hz: int) -> bytes:
    """Raw 16-bit little-endian mono PCM as a WAV file; half a sample at the end is left out."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, sample_rate_hz, 0, "NONE", ""))
        file.writeframes(data[: len(data) // 2 * 2])
    return out.getvalue()


class _Written:
    """What a muxer writes, taken away while it goes on. It cannot seek, so what is written is final."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def _rate_from(rates_hz: tuple[int, ...], wanted_hz: int) -> int:
    """`wanted_hz` if `rates_hz` is empty or has it; else the next higher one, or the highest."""
    if not rates_hz or wanted_hz in rates_hz:
        return wanted_hz
    return min((rate for rate in rates_hz if rate > wanted_hz), default=max(rates_hz))


def resample(samples: Float32, from_hz: int, to_hz: int) -> Float32:
    """Resample float32 mono (n,) → (round(n · to / from),), by soxr at its high quality."""
    if from_hz == to_hz or not len(samples):
        return samples
    wanted = round(len(samples) * to_hz / from_hz)
    out = np.asarray(soxr.resample(samples, from_hz, to_hz), np.float32)[:wanted]
    return np.pad(out, (0, wanted - len(out)))


def frame_start(frame: int, sample_rate_hz: int, fps: int) -> int:
    """The first sample of a video frame. Sums of frames never drift: every cut is rounded from zero."""
    return round(frame * sample_rate_hz / fps)


def frames_covering(samples: int, sample_rate_hz: int, fps: int) -> int:
    """How many video frames cover this many samples: the smallest k with frame_start(k) ≥ samples."""
    frames = samples * fps // sample_rate_hz
    while frame_start(frames, sample_rate_hz, fps) < samples:
        frames += 1
    return frames


def pad_to_frames(speech: Speech, fps: int, added_s: float = 0.0) -> Speech:
    """The speech with silence behind it, so that it lasts a whole number of video frames (rounded up).

    added_s: how much silence the segments before it were given. Where that and its own would come to more than a frame,
    and the speech ends in silence, that is cut to whole frames instead: so an utterance of many segments is never more
    than a frame longer than its speech.
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


def split_audio(samples: Float32, sample_rate_hz: int, fps: int, max_s: float = 8.0) -> list[Speech]:
    """Cut given speech at quiet places into segments of whole video frames, each at most `max_s`; the last is marked.

    Joined, the segments are the input bit for bit, with silence at the end up to a whole frame: segment i begins at
    sample frame_start(k_i). The first ends at a pause within 3 s where there is one, so that the picture starts early.
    samples: float32 mono (n,), n ≥ 1. max_s: at least 1.
    """
    assert max_s >= 1.0 and len(samples), (max_s, len(samples))
    total = frames_covering(len(samples), sample_rate_hz, fps)
    padded = np.pad(samples, (0, frame_start(total, sample_rate_hz, fps) - len(samples)))
    cuts = [0, *_cuts(_levels_db(padded, sample_rate_hz, fps, total), fps, max_s), total]
    edges = [frame_start(k, sample_rate_hz, fps) for k in cuts]
    return [
        Speech(padded[begin:end], sample_rate_hz, last=end == edges[-1]) for begin, end in itertools.pairwise(edges)
    ]


def _cuts(levels_db: Float32, fps: int, max_s: float) -> Iterator[int]:
    """Frames to cut before, in order, without the two ends. levels_db: loudness around the start of frame 0 … total."""
    total, start = len(levels_db) - 1, 0
    most, rest = int(max_s * fps), round(MIN_LAST_SEGMENT_S * fps)
    pause_db = float(np.percentile(levels_db, 90)) - PAUSE_BELOW_SPEECH_DB
    early = _quietest(
        levels_db, round(FIRST_SEGMENT_S[0] * fps), min(int(FIRST_SEGMENT_S[1] * fps), most, total - rest)
    )
    if early is not None and levels_db[early] <= pause_db:
        yield early
        start = early
    while total - start > most:
        cut = _quietest(levels_db, start + most // 2, min(start + most, total - rest))
        start = start + most if cut is None else cut
        yield start


def _quietest(levels_db: Float32, first: int, last: int) -> int | None:
    """The middle of the longest of the quietest stretches of frames in first … last; None where that range is empty."""
    if last < first:
        return None
    levels = levels_db[first : last + 1]
    quiet = np.concatenate([[0], levels <= levels.min() + SAME_LEVEL_DB, [0]])
    edges = np.flatnonzero(np.diff(quiet))  # where stretches begin and, one past, end, in turn
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    return first + int(begins[longest] + ends[longest] - 1) // 2


def _levels_db(samples: Float32, sample_rate_hz: int, fps: int, frames: int) -> Float32:
    """Loudness in dB of the PAUSE_WINDOW_S around the start of each frame, and of the end: (frames + 1,)."""
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    at = np.array([frame_start(k, sample_rate_hz, fps) for k in range(frames + 1)])
    half = max(round(PAUSE_WINDOW_S / 2 * sample_rate_hz), 1)
    begin, end = np.maximum(at - half, 0), np.minimum(at + half, len(samples))
    power: npt.NDArray[np.float64] = (energy[end] - energy[begin]) / (end - begin)
    levels_db: Float32 = np.maximum(10 * np.log10(np.maximum(power, 1e-12)), SILENCE_DB).astype(np.float32)
    return levels_db


def _collect(container: av.container.InputContainer, max_seconds: float) -> tuple[Float32, int]:
    """All samples of the first audio stream, mixed to mono at the rate of its first frame."""
    resampler: av.AudioResampler | None = None
    pieces: list[Float32] = []
    count = rate_hz = 0
    for frame in _frames(container):
        if resampler is None:
            rate_hz = frame.sample_rate  # the frame's, not the header's: HE-AAC doubles it while decoding
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate_hz, options=MIX)
        for out in resampler.resample(frame):
            pieces.append(out.to_ndarray()[0])
            count += out.samples
        if count > max_seconds * rate_hz:
            raise _too_long(max_seconds)
    if resampler is not None:
        pieces += [out.to_ndarray()[0] for out in resampler.resample(None)]
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if len(samples) < MIN_AUDIO_S * rate_hz or not len(samples):
        raise AudioError(
            f"The audio is too short or broken: {1000 * len(samples) / (rate_hz or 1):.0f} ms could be read.",
            "Send at least one spoken word, in a complete file.",
        )
    return samples.astype(np.float32), rate_hz


def _frames(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    """Decoded frames, up to where a broken file can no longer be read; single bad packets are passed over."""
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
