"""models.speech.audio: decoding, encoding, resampling and padding of speech."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import AudioError
from models.speech import audio
from models.speech.audio import (
    SOUND_FORMATS,
    AudioEncoder,
    decode_audio,
    encode_audio,
    frame_start,
    frames_covering,
    pad_to_frames,
    resample,
)
from models.types import SUPPORTED_FPS, Float32, Phoneme, Speech

#        container, codec, sample format, layout, rate, tolerance of the level
FORMATS = {
    "wav_u8": ("wav", "pcm_u8", "u8", "mono", 8_000, 0.01),
    "wav_s16": ("wav", "pcm_s16le", "s16", "stereo", 44_100, 1e-4),
    "wav_s24_5.1": ("wav", "pcm_s24le", "s32", "5.1", 48_000, 1e-4),
    "wav_f32": ("wav", "pcm_f32le", "flt", "mono", 96_000, 1e-4),
    "wav_f64": ("wav", "pcm_f64le", "dbl", "mono", 22_050, 1e-4),
    "flac": ("flac", "flac", "s32", "stereo", 44_100, 1e-4),
    "mp3": ("mp3", "libmp3lame", "fltp", "mono", 24_000, 0.05),
    "ogg_opus": ("ogg", "libopus", "flt", "stereo", 48_000, 0.05),
    "ogg_vorbis": ("ogg", "vorbis", "fltp", "stereo", 44_100, 0.05),
    "m4a_aac": ("ipod", "aac", "fltp", "stereo", 44_100, 0.05),
    "m4a_alac": ("ipod", "alac", "s16p", "stereo", 44_100, 1e-4),
    "webm_opus": ("webm", "libopus", "flt", "mono", 16_000, 0.05),
}


def tone(rate_hz: int, seconds: float = 1.0, hz: float = 440.0, level: float = 0.5) -> Float32:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def encode(samples: Float32, name: str) -> bytes:
    """A file in one of FORMATS with the same samples in every channel."""
    container, codec, sample_format, layout, rate_hz, _ = FORMATS[name]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate_hz, layout=layout, options={"strict": "experimental"})
        stream.codec_context.format = sample_format
        channels = stream.codec_context.layout.nb_channels
        frame = av.AudioFrame.from_ndarray(np.repeat(samples[None], channels, 0), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate_hz, 0
        size = stream.codec_context.frame_size or 1024
        fit = av.AudioResampler(format=sample_format, layout=layout, rate=rate_hz, frame_size=size)
        for piece in [*fit.resample(frame), *fit.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def wav_bytes(samples: Float32, rate_hz: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def strongest_hz(samples: Float32, rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate_hz / len(samples))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_pitch_level_and_length(name: str) -> None:
    rate_hz, error = FORMATS[name][4:]
    samples, decoded_hz = decode_audio(encode(tone(rate_hz), name))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert decoded_hz == (48_000 if "opus" in name else rate_hz)
    assert 0.99 < len(samples) / decoded_hz < 1.06  # a lossy codec may pad its last packet
    assert strongest_hz(samples, decoded_hz) == pytest.approx(440, abs=2)
    middle = samples[decoded_hz // 4 : decoded_hz // 2]
    assert np.sqrt(2) * middle.std() == pytest.approx(0.5, abs=error), "channels must be averaged, not summed"


def test_a_lossless_file_keeps_every_sample(tmp_path: Path) -> None:
    samples = np.round(np.random.default_rng(0).uniform(-1, 1, 8_000) * 32767).astype(np.float32) / 32767
    path = tmp_path / "noise.wav"
    path.write_bytes(wav_bytes(samples))
    decoded, rate_hz = decode_audio(path)
    assert rate_hz == 16_000
    np.testing.assert_allclose(decoded * 32768, samples * 32767, atol=0.6)


def test_the_audio_of_a_video_is_decoded() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        for _ in range(25):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        out.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(48_000, hz=1_000)[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    samples, rate_hz = decode_audio(buffer.getvalue())
    assert strongest_hz(samples, rate_hz) == pytest.approx(1_000, abs=2)


def test_a_video_without_sound_is_refused() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
        out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        out.mux(video.encode(None))
    with pytest.raises(AudioError, match="no audio stream"):
        decode_audio(buffer.getvalue())


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "is empty"),
        (b"RIFF", "not audio"),
        (b"this is a letter, not a sound. " * 50, "not audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not audio"),
        (wav_bytes(np.zeros(0, np.float32)), "too short or damaged: 0 ms"),
        (wav_bytes(tone(16_000, 0.02)), "too short or damaged: 20 ms"),
        (wav_bytes(tone(16_000))[:44], "too short or damaged: 0 ms"),
        (encode(tone(44_100), "m4a_aac")[:3_000], "damaged"),
        (Path("nowhere/voice.wav"), "no audio file 'voice.wav'"),
    ],
)
def test_unusable_data_is_refused_with_cause_and_remedy(data: bytes | Path, cause: str) -> None:
    with pytest.raises(AudioError, match=cause) as caught:
        decode_audio(data)
    assert caught.value.remedy and "/" not in caught.value.message


def test_a_truncated_file_gives_its_content() -> None:
    samples, rate_hz = decode_audio(wav_bytes(tone(16_000, 2.0))[: 44 + 32_000])
    assert len(samples) == rate_hz == 16_000
    whole = encode(tone(24_000, 2.0), "mp3")
    samples, rate_hz = decode_audio(whole[: len(whole) // 2])
    assert 0.9 < len(samples) / rate_hz < 1.1 and strongest_hz(samples, rate_hz) == pytest.approx(440, abs=3)


def test_a_damaged_packet_does_not_lose_the_rest() -> None:
    data = bytearray(encode(tone(24_000, 4.0), "mp3"))
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    samples, rate_hz = decode_audio(bytes(data))
    assert len(samples) / rate_hz > 3.5


def test_a_playlist_cannot_open_another_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav_bytes(tone(16_000)))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n".encode()
    script = f"ffconcat version 1.0\nfile {secret}\n".encode()
    for data in (playlist, script):
        with pytest.raises(AudioError, match="not audio"):
            decode_audio(data)


def test_a_too_long_file_is_refused_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(decode_audio(wav_bytes(tone(16_000)), max_seconds=1.0)[0]) == 16_000
    monkeypatch.setattr(audio, "_frames", lambda container: pytest.fail("the file was decoded"))
    with pytest.raises(AudioError, match="longer than 1 s"):
        decode_audio(wav_bytes(tone(16_000, 3.0)), max_seconds=1.0)


def test_a_too_long_file_without_length_is_refused_while_decoding() -> None:
    data = bytearray(encode(tone(44_100, 3.0), "flac"))
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # STREAMINFO's 36 bits of total samples: 0 is "unknown"
    with pytest.raises(AudioError, match="longer than 1 s"):
        decode_audio(bytes(data), max_seconds=1.0)


def test_nan_and_infinity_become_zero_and_overshoot_is_scaled_down() -> None:
    samples = tone(96_000, level=2.0)
    samples[1_000], samples[2_000], samples[3_000] = np.nan, np.inf, -np.inf
    decoded, _ = decode_audio(encode(samples, "wav_f32"))
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() == pytest.approx(1.0)
    assert decoded[[1_000, 2_000, 3_000]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(decoded[4_000:], tone(96_000, level=1.0)[4_000:], atol=1e-3)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(24_000, 16_000), (8_000, 48_000), (44_100, 16_000), (16_000, 16_000)])
def test_resampling_keeps_pitch_level_and_length(from_hz: int, to_hz: int) -> None:
    out = resample(tone(from_hz, 1.3), from_hz, to_hz)
    assert out.dtype == np.float32 and len(out) == round(1.3 * to_hz)
    np.testing.assert_allclose(out[to_hz // 2 : to_hz], tone(to_hz, 1.3)[to_hz // 2 : to_hz], atol=2e-4)


def test_resampling_removes_aliases() -> None:
    assert np.abs(resample(tone(24_000, hz=11_000), 24_000, 16_000)[1_000:-1_000]).max() < 1e-3


@given(st.integers(1, 200_000), st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000]))
def test_frames_cover_the_samples_exactly(samples: int, rate_hz: int) -> None:
    for fps in SUPPORTED_FPS:
        frames = frames_covering(samples, rate_hz, fps)
        assert frame_start(frames - 1, rate_hz, fps) < samples <= frame_start(frames, rate_hz, fps)
        assert frame_start(frames, rate_hz, fps) == round(frames * rate_hz / fps)


@given(st.integers(0, 5_000), st.sampled_from(SUPPORTED_FPS), st.sampled_from([16_000, 22_050, 24_000]))
def test_padding_fills_a_whole_frame_and_keeps_the_speech(n: int, fps: int, rate_hz: int) -> None:
    speech = Speech(np.ones(n, np.float32), rate_hz, text="one", last=True)
    padded = pad_to_frames(speech, fps)
    assert padded.samples[:n].all() and not padded.samples[n:].any()
    assert 0 <= len(padded.samples) - n <= -(-rate_hz // fps)
    assert len(padded.samples) == round(round(padded.duration_s * fps) * rate_hz / fps)
    assert (padded.text, padded.last) == ("one", True)
    assert pad_to_frames(padded, fps).samples is padded.samples


@given(
    st.lists(st.integers(3_000, 60_000), min_size=1, max_size=20),
    st.sampled_from(SUPPORTED_FPS),
    st.sampled_from([16_000, 22_050, 24_000]),
)
def test_padding_of_an_utterance_is_at_most_one_frame(sizes: list[int], fps: int, rate_hz: int) -> None:
    added_s = 0.0
    for size in sizes:
        sound = np.concatenate([np.ones(size, np.float32), np.zeros(rate_hz // 10, np.float32)])
        sentence = Speech(sound, rate_hz, phonemes=(Phoneme("a", 0.0, size / rate_hz), Phoneme("_", size / rate_hz, 9)))
        padded = pad_to_frames(sentence, fps, added_s)
        assert padded.samples[:size].all() and not padded.samples[size:].any()
        assert abs(padded.duration_s * fps - round(padded.duration_s * fps)) < 0.01
        assert len(padded.samples) >= len(sound) or padded.phonemes[-1].end_s == padded.duration_s
        added_s += padded.duration_s - sentence.duration_s
        assert -1 / rate_hz <= added_s <= 1 / fps + 1 / rate_hz


def test_sound_is_never_cut() -> None:
    loud = Speech(np.ones(1_000, np.float32), 24_000)
    assert len(pad_to_frames(loud, 25, added_s=0.04).samples) == 1_920


# --- writing


def streamed(samples: Float32, name: str, rate_hz: int, block: int = 5_000) -> list[bytes]:
    encoder = AudioEncoder(name, rate_hz)
    return [*(encoder.push(samples[k : k + block]) for k in range(0, len(samples), block)), encoder.finish()]


def read_pcm(data: bytes) -> tuple[Float32, int]:
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768, 24_000


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("name", SOUND_FORMATS)
def test_encoded_audio_keeps_pitch_level_and_length(name: str, rate_hz: int) -> None:
    samples = tone(rate_hz, 2.0)
    for data in (encode_audio(samples, rate_hz, name), b"".join(streamed(samples, name, rate_hz))):
        read, read_hz = read_pcm(data) if name == "pcm" else decode_audio(data)
        assert read_hz == {"pcm": 24_000, "opus": 48_000}.get(name, rate_hz)
        codec_delay_s = {"mp3": 0.15, "aac": 0.15, "opus": 0.03}.get(name, 1e-3)
        assert len(read) / read_hz == pytest.approx(2.0, abs=codec_delay_s)
        middle = read[read_hz // 4 : read_hz // 4 + read_hz]
        assert strongest_hz(middle, read_hz) == pytest.approx(440, abs=1)
        assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.06 if name == "mp3" else 0.02)


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_lossless_formats_keep_every_sample(name: str) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 24_001).astype(np.float32)
    for data in (encode_audio(samples, 24_000, name), b"".join(streamed(samples, name, 24_000))):
        read, _ = decode_audio(data)
        assert len(read) == 24_001
        np.testing.assert_allclose(read, samples, atol=1.01 / 32768)


def test_pcm_is_16_bit_little_endian_at_24_khz() -> None:
    assert (
        b"".join(streamed(np.array([0, 0.5, -0.5, 1, -1], np.float32), "pcm", 24_000))
        == np.array([0, 16384, -16384, 32767, -32768], "<i2").tobytes()
    )


def test_a_wav_header_has_the_length_and_no_encoder_name() -> None:
    data = encode_audio(tone(24_000, 0.5), 24_000, "wav")
    with wave.open(io.BytesIO(data)) as read:
        assert (read.getnframes(), read.getframerate(), read.getnchannels(), read.getsampwidth()) == (
            12_000,
            24_000,
            1,
            2,
        )
    assert len(data) == 44 + 24_000 and b"Lavf" not in data


@pytest.mark.parametrize("name", SOUND_FORMATS)
def test_the_encoder_gives_bytes_for_each_push(name: str) -> None:
    parts = streamed(tone(24_000, 2.0), name, 24_000, block=12_000)
    assert all(len(part) > 500 for part in parts[:4])  # half a second each


def test_overshoot_is_clipped_and_does_not_wrap() -> None:
    read, _ = decode_audio(encode_audio(tone(24_000, 0.2, level=3.0), 24_000, "wav"))
    assert strongest_hz(read, 24_000) == pytest.approx(440, abs=5)
    assert np.abs(np.diff(read)).max() < 0.5


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AudioError, match="no audio format 'midi'") as caught:
        encode_audio(tone(24_000), 24_000, "midi")
    assert "mp3, opus, aac, flac, wav, pcm" in caught.value.remedy


def pcm_wav(sample_rate_hz: int, channels: int, seconds: float = 0.2) -> bytes:
    """Silence, 16 bits per sample."""
    body = bytes(round(sample_rate_hz * seconds) * channels * 2)
    numbers = (16, 1, channels, sample_rate_hz, sample_rate_hz * channels * 2, channels * 2, 16)
    return struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 36 + len(body), b"WAVEfmt ", *numbers, b"data", len(body)) + body


@pytest.mark.parametrize("rate_hz", [1, 3_999, 768_001])
def test_absurd_sample_rates_are_refused(rate_hz: int) -> None:
    with pytest.raises(AudioError, match=f"sample rate is {rate_hz} Hz, not between 4000 and 768000 Hz"):
        decode_audio(pcm_wav(rate_hz, 1, seconds=100 if rate_hz == 1 else 0.2))


@pytest.mark.parametrize("rate_hz", [192_000, 768_000])
def test_high_sample_rates_are_reduced_while_decoding(rate_hz: int) -> None:
    samples, decoded_hz = decode_audio(wav_bytes(tone(rate_hz), rate_hz))
    assert decoded_hz == 96_000
    assert abs(len(samples) - len(tone(96_000))) <= 1


def test_more_channels_than_ffmpeg_can_downmix_are_refused() -> None:
    assert len(decode_audio(pcm_wav(16_000, 24))[0]) == 3_200
    with pytest.raises(AudioError, match="Audio with 32 channels cannot be downmixed"):
        decode_audio(pcm_wav(16_000, 32))
