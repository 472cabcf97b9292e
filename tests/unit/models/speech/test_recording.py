"""models.speech.recording: a sound file is spoken as its whole would be, with a few seconds of it in memory."""

from __future__ import annotations

import threading
import tracemalloc
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.errors import AudioError
from models.speech import recording as module
from models.speech.audio import decode_audio, encode_audio, resample, write_wav
from models.speech.recording import Recording
from models.speech.split import find_cuts, split_at
from models.types import Float32, Speech


def noise(rate_hz: int, seconds: float, level: float = 0.3) -> Float32:
    """Noise with a pause of 0.3 s every three seconds."""
    samples = np.random.default_rng(3).uniform(-level, level, round(rate_hz * seconds)).astype(np.float32)
    samples[np.arange(len(samples)) % (3 * rate_hz) > 2.7 * rate_hz] = 0
    return samples


def at_once(path: Path, rate_hz: int) -> list[Speech]:
    """The segments of the whole file in memory: the slow twin."""
    samples, from_hz = decode_audio(path)
    whole = resample(samples, from_hz, rate_hz)
    return list(split_at([whole], find_cuts([whole], rate_hz, 25), rate_hz))


@pytest.mark.parametrize(("name", "from_hz"), [("wav", 24_000), ("wav", 44_100), ("mp3", 16_000), ("opus", 48_000)])
def test_the_segments_are_those_of_the_whole_file(tmp_path: Path, name: str, from_hz: int) -> None:
    path = tmp_path / "sound"
    path.write_bytes(encode_audio(noise(from_hz, 20.3), from_hz, name))
    streamed, whole = list(Recording(path, 24_000, 25, 60.0)), at_once(path, 24_000)
    assert len(streamed) == len(whole) > 3
    for one, other in zip(streamed, whole, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert (one.sample_rate_hz, one.last) == (other.sample_rate_hz, other.last)


def test_a_recording_over_full_scale_is_scaled_as_a_whole(tmp_path: Path) -> None:
    samples = noise(24_000, 12.0, level=0.5)
    samples[-1000] = 4.0  # in the last segment
    with wave.open(str(tmp_path / "sound"), "wb") as file:
        file.setparams((1, 4, 24_000, 0, "NONE", ""))
        file.writeframes(samples.astype("<f4").tobytes())
    data = bytearray((tmp_path / "sound").read_bytes())
    data[20:22] = b"\3\0"  # WAVE_FORMAT_IEEE_FLOAT
    (tmp_path / "sound").write_bytes(data)
    streamed = list(Recording(tmp_path / "sound", 24_000, 25, 60.0))
    joined = np.concatenate([part.samples for part in streamed])
    assert np.abs(joined[: len(samples)] - samples / 4).max() < 1e-6
    assert [len(part.samples) for part in streamed] == [
        len(part.samples) for part in at_once(tmp_path / "sound", 24_000)
    ]


def test_the_file_may_be_deleted_once_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "sound"
    path.write_bytes(encode_audio(noise(24_000, 12.0), 24_000, "wav"))
    recording = Recording(path, 24_000, 25, 60.0)
    path.unlink()
    assert sum(part.duration_s for part in recording) == pytest.approx(12.0)


def test_a_long_recording_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "sound"
    path.write_bytes(encode_audio(noise(24_000, 300.0), 24_000, "wav"))  # 28.8 MB as float32
    tracemalloc.start()
    seconds = sum(part.duration_s for part in Recording(path, 24_000, 25, 600.0))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds == pytest.approx(300.0) and most < 4e6


@pytest.mark.parametrize("data", [b"", b"no sound", encode_audio(noise(8_000, 2.0), 8_000, "wav")])
def test_an_unusable_file_is_refused_before_anything_is_spoken_and_is_closed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "sound").write_bytes(data)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(AudioError):
        Recording(tmp_path / "sound", 24_000, 25, max_seconds=1.0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_closing_waits_for_the_segment_that_is_being_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, passes = tmp_path / "sound", []
    path.write_bytes(encode_audio(noise(24_000, 12.0), 24_000, "wav"))
    decoding, go_on, real = threading.Event(), threading.Event(), module.decoded_blocks

    def slow(*given: object) -> Iterator[tuple[Float32, int]]:
        passes.append(given)
        for block in real(*given):  # type: ignore[arg-type]
            if len(passes) == 2:
                decoding.set()
                go_on.wait(10)
            yield block

    monkeypatch.setattr(module, "decoded_blocks", slow)
    recording = Recording(path, 24_000, 25, 60.0)
    made: list[Speech] = []
    reader = threading.Thread(target=lambda: made.append(next(recording)))
    closer = threading.Thread(target=recording.close)
    reader.start()
    assert decoding.wait(10)
    closer.start()
    go_on.set()
    reader.join(10)
    closer.join(10)
    assert made[0].duration_s > 1 and next(recording, None) is None


def test_half_a_sample_of_raw_pcm_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "pcm").write_bytes(b"\1\2\3")
    write_wav(tmp_path / "pcm", 8000)
    with wave.open(str(tmp_path / "pcm")) as file:
        assert (file.getnframes(), file.getframerate(), file.readframes(9)) == (1, 8000, b"\1\2")
    assert [path.name for path in tmp_path.iterdir()] == ["pcm"]
