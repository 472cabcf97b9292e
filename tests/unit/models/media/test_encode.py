"""Encoded utterances decode to the same frames and speech, at the right times."""

from __future__ import annotations

import io
from itertools import pairwise

import av
import numpy as np
import pytest

from models.errors import ConfigError
from models.media.encode import (
    AAC_FRAME,
    VIDEO_TIMESCALE,
    Clock,
    MediaSpec,
    UtteranceEncoder,
    _AudioTrack,
    codecs,
    init_segment,
    live_zero,
    rebase,
)
from models.media.mp4 import children
from models.types import Fragment

SIDE = 64  # px: small pictures keep the tests quick, the timelines do not depend on it


def spec_of(fps: int = 25, rate: int = 24_000, **options: int) -> MediaSpec:
    return MediaSpec(SIDE, SIDE, fps, sample_rate_hz=rate, **options)


def grey(count: int, level: int = 60) -> np.ndarray:
    return np.full((count, SIDE, SIDE, 3), level, np.uint8)


def click_and_flash(spec: MediaSpec, count: int, at: int, lead: float = 0.0, tail: float = 0.0) -> tuple:
    """`count` frames of silent speech, with a click and a white frame at `at`. lead, tail: hum at the start and end."""
    frames, samples = grey(count), np.zeros(count * spec.sample_rate_hz // spec.fps, np.float32)
    frames[at] = 255
    samples[:4000] = lead
    samples[-4000:] = tail
    samples[at * spec.sample_rate_hz // spec.fps] = 0.9
    return frames, samples


def encode(encoder: UtteranceEncoder, frames: np.ndarray, samples: np.ndarray, chunk: int = 8) -> list[Fragment]:
    """Push frames and their speech in chunks, as the pipeline does."""
    step, out = encoder.spec.sample_rate_hz // encoder.spec.fps, []
    for k in range(0, len(frames), chunk):
        last = k + chunk >= len(frames)
        out += encoder.push(frames[k : k + chunk], samples[k * step : None if last else (k + chunk) * step], last)
    return out


def movie(fragments: list[Fragment]) -> bytes:
    return fragments[0].init + b"".join(fragment.data for fragment in fragments)


def decode_video(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Times in s `(n,)` and mean levels `(n,)`."""
    with av.open(io.BytesIO(data)) as file:
        seen = [(float(f.time), float(f.to_ndarray(format="gray").mean())) for f in file.decode(video=0)]
    return np.array([s[0] for s in seen]), np.array([s[1] for s in seen])


def decode_audio(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Start of each AAC frame in samples `(n,)` and all samples."""
    with av.open(io.BytesIO(data)) as file:
        frames = [(f.pts, f.to_ndarray()[0]) for f in file.decode(audio=0)]
    return np.array([f[0] for f in frames]), np.concatenate([f[1] for f in frames])


def clicks_s(samples: np.ndarray, rate: int) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.5)
    starts = loud[np.diff(loud, prepend=-rate) > rate // 10]
    return np.array([s + np.argmax(np.abs(samples[s : s + 40])) for s in starts]) / rate


@pytest.mark.parametrize("fps", [24, 25, 30])
@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_click_and_flash_coincide_at_any_frame_rate(fps: int, rate: int) -> None:
    spec = spec_of(fps, rate)
    data = movie(encode(UtteranceEncoder(spec), *click_and_flash(spec, 40, 21)))
    times, levels = decode_video(data)
    starts, samples = decode_audio(data)
    assert len(times) == 40 and np.allclose(np.diff(times), 1 / fps, atol=1e-4)
    assert set(np.diff(starts)) == {AAC_FRAME} and starts[0] == 0
    assert abs(clicks_s(samples, rate)[0] - times[levels.argmax()]) < 0.001


def test_an_utterance_lasts_as_long_as_its_frames() -> None:
    spec = spec_of()
    fragments = encode(UtteranceEncoder(spec), *click_and_flash(spec, 37, 20, tail=0.1))
    assert [f.frames for f in fragments] == [6, 12, 12, 7]  # the first is short, the last what is left
    end = fragments[-1]
    assert end.video_start + end.video_duration == 37 * VIDEO_TIMESCALE // 25
    assert 0 <= end.audio_start + end.audio_duration - 37 * 960 < AAC_FRAME
    with av.open(io.BytesIO(movie(fragments))) as file:
        assert file.duration / 1e6 == pytest.approx(37 / 25, abs=0.043)  # of a growing file, read from its boxes


def test_each_fragment_carries_the_aac_frames_that_start_inside_it() -> None:
    spec, clock = spec_of(30), Clock(7 * 3000, 6 * AAC_FRAME)
    fragments = encode(UtteranceEncoder(spec, clock), *click_and_flash(spec, 45, 9))
    assert fragments[0].video_start == clock.video_ticks and fragments[0].audio_start == clock.audio_samples
    for fragment, after in pairwise(fragments):
        assert after.video_start == fragment.video_start + fragment.video_duration
        assert after.audio_start == fragment.audio_start + fragment.audio_duration
        assert 0 <= after.audio_start - spec.samples_at(after.video_start) < AAC_FRAME


def test_only_the_first_frame_of_a_fragment_is_an_idr_frame() -> None:
    spec = spec_of()
    fragments = encode(UtteranceEncoder(spec), *click_and_flash(spec, 30, 9))
    with av.open(io.BytesIO(movie(fragments))) as file:
        keys = [packet.is_keyframe for packet in file.demux(video=0) if packet.size]
    opens = np.cumsum([0] + [f.frames for f in fragments[:-1]])
    assert np.flatnonzero(keys).tolist() == opens.tolist()
    data = fragments[0].init + fragments[2].data  # so one alone plays behind the init segment
    times, levels = decode_video(data)
    assert len(times) == fragments[2].frames and abs(levels.mean() - 60) < 3


def test_every_utterance_has_the_same_init_segment() -> None:
    spec = spec_of()
    inits = {UtteranceEncoder(spec, Clock(k * 3600, 0)).init_segment for k in range(3)} | {init_segment(spec)}
    assert len(inits) == 1
    assert [kind for kind, _, _ in children(inits.pop(), 0, len(init_segment(spec)))] == [b"ftyp", b"moov"]


def test_the_codec_string_names_profile_and_level() -> None:
    with av.open(io.BytesIO(init_segment(MediaSpec(512, 512, 25)))) as file:
        sps = file.streams.video[0].codec_context.extradata
    assert codecs(init_segment(MediaSpec(512, 512, 25))) == f"avc1.{sps[1:4].hex()}, mp4a.40.2"
    assert sps[1] == 66 and sps[3] == 30  # Constrained Baseline; level 3.0 is the lowest for 512 px at 25 fps


def test_equal_input_gives_equal_bytes() -> None:
    spec, given = spec_of(), click_and_flash(spec_of(), 20, 9)
    assert movie(encode(UtteranceEncoder(spec), *given)) == movie(encode(UtteranceEncoder(spec), *given))


def test_the_bytes_do_not_depend_on_how_they_are_pushed() -> None:
    spec, (frames, samples) = spec_of(), click_and_flash(spec_of(), 34, 9)
    ahead = UtteranceEncoder(spec)  # all speech first, as a voice gives it
    fragments = ahead.push(frames[:0], samples)
    for k in range(34):
        fragments += ahead.push(frames[k : k + 1], samples[:0])
    assert [f.frames for f in fragments] == [6, 12, 12]  # each left as soon as its last frame came
    fragments += ahead.push(frames[:0], samples[:0], last=True)
    assert movie(fragments) == movie(encode(UtteranceEncoder(spec), frames, samples, chunk=5))


def test_many_utterances_stay_in_sync() -> None:
    """Odd lengths at a frame rate that no AAC frame fits: neither drift nor gap, each click on its flash."""
    spec, clock, fragments, begins = spec_of(30), Clock(), [], []
    rng = np.random.default_rng(1)
    for _ in range(60):
        encoder = UtteranceEncoder(spec, clock)
        count = int(rng.integers(5, 12))
        fragments += encode(encoder, *click_and_flash(spec, count, 4), chunk=count)
        begins.append(clock.video_ticks / VIDEO_TIMESCALE)
        clock = encoder.clock
        assert abs(clock.audio_samples - spec.samples_at(clock.video_ticks)) < AAC_FRAME
    data = movie(fragments)
    times, levels = decode_video(data)
    starts, samples = decode_audio(data)
    assert set(np.diff(starts)) == {AAC_FRAME}  # the grid is unbroken
    assert len(times) == sum(f.frames for f in fragments)
    assert np.allclose(np.diff(times), 1 / 30, atol=1e-4)  # so are the frames, across every seam
    flashes, heard = times[levels > 200], clicks_s(samples, 24_000)
    assert len(flashes) == len(heard) == 60
    assert np.allclose(flashes, np.array(begins) + 4 / 30, atol=1e-4)
    assert np.abs(heard - flashes).max() < 0.001


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_speech_without_any_silence_at_the_seam_is_late_by_less_than_a_frame(fps: int) -> None:
    spec, clock, fragments, delays = spec_of(fps), Clock(), [], []
    for count in range(20, 30):
        encoder = UtteranceEncoder(spec, clock)
        fragments += encode(encoder, *click_and_flash(spec, count, 11, lead=0.1, tail=0.1))
        delays.append(encoder.audio_delay_s)
        clock = encoder.clock
    data = movie(fragments)
    times, levels = decode_video(data)
    starts, samples = decode_audio(data)
    late = clicks_s(samples, 24_000) - times[levels > 200]
    assert set(np.diff(starts)) == {AAC_FRAME}
    assert np.allclose(late, delays, atol=0.001)  # the encoder tells what it does
    assert 0 < max(delays) < 1 / fps and min(delays) == 0


def test_a_long_tone_has_no_error_where_fragments_join() -> None:
    """A sine with a microphone's noise, through 9 fragments, decodes as well at the joins as elsewhere, and as from one
    single push."""
    spec, count = spec_of(), 100
    tone = 0.5 * np.sin(2 * np.pi * 440 / 24_000 * np.arange(count * 960))
    tone[:2400] *= np.linspace(0, 1, 2400)
    tone = (tone + 1e-3 * np.random.default_rng(0).standard_normal(len(tone))).astype(np.float32)
    fragments = encode(UtteranceEncoder(spec), grey(count), tone)
    whole = spec_of(fragment_frames=200, first_fragment_frames=200)
    _, samples = decode_audio(movie(fragments))
    _, at_once = decode_audio(movie(UtteranceEncoder(whole).push(grey(count), tone, last=True)))
    assert np.array_equal(samples, at_once)
    error = np.abs(samples[: len(tone)] - tone)
    joins = [f.audio_start for f in fragments[1:]]
    near = np.concatenate([error[j - 256 : j + 256] for j in joins])
    assert np.sqrt(np.mean(near**2)) < 1.2 * np.sqrt(np.mean(error**2)) < 0.005


def test_speech_is_cut_or_filled_to_the_frames() -> None:
    spec = spec_of()
    for lack in (-900, 0, 2000):  # samples missing at the end
        samples = np.full(20 * 960 - lack, 0.2, np.float32)
        (fragment,) = UtteranceEncoder(spec_of(first_fragment_frames=50)).push(grey(20), samples, last=True)
        assert fragment.frames == 20 and fragment.video_duration == 20 * spec.frame_ticks
        assert abs(fragment.audio_duration - 20 * 960) < AAC_FRAME


def test_utterances_of_one_frame_and_of_none() -> None:
    spec = spec_of()
    (one,) = UtteranceEncoder(spec, Clock(3600, 1024)).push(grey(1), np.zeros(960, np.float32), last=True)
    assert (one.frames, one.video_start, one.audio_duration) == (1, 3600, 0)  # no AAC frame starts inside it
    assert len(decode_video(one.init + one.data)[0]) == 1
    assert UtteranceEncoder(spec).push(grey(0), np.zeros(0, np.float32), last=True) == []


def test_a_rebased_stream_starts_at_zero_and_keeps_its_sync() -> None:
    for clock in (Clock(90_000, 24 * AAC_FRAME), Clock(90_000, 23 * AAC_FRAME)):  # audio ahead of video, and behind
        spec = spec_of()
        fragments = encode(UtteranceEncoder(spec, clock), *click_and_flash(spec, 30, 12))
        zero = live_zero(fragments[0])
        live = [rebase(f, zero.video_ticks, zero.audio_samples) for f in fragments]
        assert [len(b) for b in live] == [len(f.data) for f in fragments]
        data = fragments[0].init + b"".join(live)
        times, levels = decode_video(data)
        starts, samples = decode_audio(data)
        assert min(times[0], starts[0] / 24_000) == 0 and max(times[0], starts[0] / 24_000) < AAC_FRAME / 24_000
        heard = clicks_s(samples, 24_000)[0] + starts[0] / 24_000
        assert abs(heard - times[levels.argmax()]) < 0.001


@pytest.mark.parametrize(
    "colour",
    [(200, 40, 40), (40, 180, 60), (30, 60, 200), (224, 172, 150), (90, 60, 45), (250, 250, 250), (16, 16, 16)],
)
def test_a_patch_of_colour_decodes_to_itself(colour: tuple[int, int, int]) -> None:
    frames = np.broadcast_to(np.array(colour, np.uint8), (3, SIDE, SIDE, 3))
    fragments = UtteranceEncoder(spec_of()).push(frames, np.zeros(0, np.float32), last=True)
    with av.open(io.BytesIO(movie(fragments))) as file:
        frame = next(file.decode(video=0))
        context = file.streams.video[0].codec_context
        nclx = fragments[0].init.index(b"colrnclx") + 8  # primaries, transfer, matrix: BT.709; then the full-range flag
        assert fragments[0].init[nclx : nclx + 7] == bytes([0, 1, 0, 1, 0, 1, 0])
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
    y, u, v = (
        plane.mean() for plane in np.split(frame.to_ndarray().astype(float).ravel(), [SIDE**2, SIDE**2 * 5 // 4])
    )
    luma, cb, cr = (
        (y - 16) / 219 * 255,
        (u - 128) / 224 * 255,
        (v - 128) / 224 * 255,
    )  # limited range, Rec. ITU-R BT.709
    rgb = (luma + 1.5748 * cr, luma - 0.1873 * cb - 0.4681 * cr, luma + 1.8556 * cb)
    assert np.abs(np.array(rgb) - colour).max() <= 3


def test_an_odd_source_is_cropped_to_even_sides() -> None:
    spec = MediaSpec.for_source(SIDE + 1, SIDE + 3, 25)
    assert (spec.width, spec.height) == (SIDE, SIDE + 2)
    frames = np.zeros((2, SIDE + 3, SIDE + 1, 3), np.uint8)
    (fragment,) = UtteranceEncoder(spec).push(frames, np.zeros(0, np.float32), last=True)
    with av.open(io.BytesIO(movie([fragment]))) as file:
        assert next(file.decode(video=0)).to_ndarray(format="rgb24").shape == (SIDE + 2, SIDE, 3)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"width": 65}, "even"),
        ({"fps": 29}, "24, 25, 30"),
        ({"sample_rate_hz": 12_345}, "24000"),
        ({"preset": "hasty"}, "preset"),
        ({"fragment_frames": 0}, "fragment_frames"),
    ],
)
def test_an_invalid_spec_names_the_valid_values(wrong: dict, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        init_segment(MediaSpec(**{"width": SIDE, "height": SIDE, "fps": 25, **wrong}))


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="32×32"):
        UtteranceEncoder(spec_of()).push(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(0, np.float32))


@pytest.mark.parametrize(
    ("first", "largest", "sizes"), [(2, 7, [2, 4, 6, 7, 7, 4]), (4, 4, [4] * 7 + [2]), (20, 8, [20, 10])]
)
def test_fragments_grow_from_the_first_to_the_largest(first, largest, sizes):
    encoder = UtteranceEncoder(spec_of(first_fragment_frames=first, fragment_frames=largest))
    fragments = encoder.push(grey(30), np.zeros(30 * 960, np.float32), last=True)
    assert [fragment.frames for fragment in fragments] == sizes


def test_the_first_fragment_waits_only_for_its_own_sound_of_a_long_sentence(monkeypatch):
    coded = []
    encode_frame = _AudioTrack._encode
    monkeypatch.setattr(_AudioTrack, "_encode", lambda track, samples: (coded.append(1), encode_frame(track, samples)))
    spec = spec_of(first_fragment_frames=4, fragment_frames=16)
    encoder = UtteranceEncoder(spec)
    speech = 0.3 * np.sin(np.arange(10 * 24_000) / 10, dtype=np.float32)  # 235 AAC frames
    (first,) = encoder.push(grey(4), speech)
    assert first.frames == 4 and len(coded) == 6  # 160 ms are 3.75 AAC frames, and AAC looks ahead by two
    fragments = [first, *encoder.push(grey(246), np.zeros(0, np.float32), last=True)]
    assert sum(f.audio_duration for f in fragments) == 235 * AAC_FRAME and len(coded) == 235
