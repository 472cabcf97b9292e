"""The live timeline: idle motion and speech join without gaps, times start at 0, and skipped fragments do no harm."""

import numpy as np
import pytest

from models.avatar.playback import period, ping_pong
from models.live.timeline import (
    LIVE_FRAMES,
    IdleGrid,
    IdleLoop,
    LiveClock,
    LiveFragment,
    ViewerTimeline,
    encode_closed_gop,
    encode_idle,
    fade_out_weights,
    join_live_fragments,
    split_fragment,
)
from models.media.encode import AAC_FRAME, Clock, UtteranceEncoder, init_segment, silent_packet
from tests.support.live import RATE, SPEC, fragments, heard, levels, shown

AVATAR = levels(40)  # frames of an avatar
TIMELINE = ping_pong(0, 400, len(AVATAR))


@pytest.fixture(scope="module")
def loop() -> IdleLoop:
    return IdleLoop(encode_idle(AVATAR, SPEC))


def greys(positions) -> list[int]:
    return [20 + 4 * int(TIMELINE[p]) for p in positions]


# --- the clock and the grid


def test_the_live_clock_counts_frames_and_can_be_delayed():
    clock = LiveClock.starting(100, now_s=50.0, fps=25)
    assert [clock.position(50.0 + s) for s in (0.0001, 0.0399, 0.0401, 1.0001)] == [100, 100, 101, 125]
    assert clock.time_of(125) == pytest.approx(51.0)
    assert clock.delayed(4).time_of(125) == pytest.approx(51.16)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 40, 150])
def test_the_grid_covers_the_loop_without_gaps_or_single_frames(frames):
    grid = IdleGrid.of(frames, 25)
    assert grid.loop >= 25 and grid.loop % period(frames) == 0
    position, starts = 0, []
    while position < 3 * grid.loop:
        starts.append(position)
        assert 2 <= grid.frames_at(position) <= LIVE_FRAMES or grid.loop == 1
        position += grid.frames_at(position)
    assert position == 3 * grid.loop  # every loop starts with a fragment
    for p in range(2 * grid.loop):
        assert grid.floor(p) == max(s for s in starts if s <= p)
        assert grid.ceil(p) == min(s for s in starts if s >= p)


# --- idle motion


def test_idle_motion_plays_the_avatar_endlessly(loop):
    viewer, position, data = ViewerTimeline(SPEC), 0, b""
    while position < 2 * loop.grid.loop + 8:
        part = loop.fragment_at(position)
        data += viewer.put(part)
        position = part.next_position
    times, seen = shown(viewer.init + data)
    np.testing.assert_allclose(times, np.arange(position) / 25, atol=1e-4)
    np.testing.assert_allclose(seen, greys(range(position)), atol=2)
    sound_times, samples = heard(viewer.init + data)
    np.testing.assert_allclose(np.diff(sound_times), AAC_FRAME / RATE, atol=1e-4)
    assert np.abs(samples).max() == 0.0
    assert len(samples) / RATE == pytest.approx(position / 25, abs=AAC_FRAME / RATE)


def test_a_viewer_can_join_at_any_idle_fragment(loop):
    for start in (0, 4, loop.grid.loop - loop.grid.frames_at(loop.grid.floor(loop.grid.loop - 1))):
        viewer = ViewerTimeline(SPEC)
        times, seen = shown(viewer.init + viewer.put(loop.fragment_at(start)))
        np.testing.assert_allclose(seen, greys(range(start, start + len(seen))), atol=2)
        assert times[0] == 0.0


def test_an_invalid_idle_loop_is_refused():
    whole = encode_idle(AVATAR, SPEC)
    with pytest.raises(ValueError, match="no fragment"):
        IdleLoop(init_segment(SPEC))
    with pytest.raises(ValueError, match="do not match"):
        IdleLoop(init_segment(SPEC) + b"".join(f.data for f in fragments(AVATAR)))
    assert IdleLoop(whole).init == init_segment(SPEC)  # it plays with a session's own init segment


def test_a_still_image_has_an_idle_loop():
    still = IdleLoop(encode_idle(AVATAR[:1], SPEC))
    viewer = ViewerTimeline(SPEC)
    _, seen = shown(viewer.init + b"".join(viewer.put(still.fragment_at(still.grid.floor(p))) for p in (0, 4, 8)))
    np.testing.assert_allclose(seen, [20] * 12, atol=2)


# --- speech


def test_a_fragment_is_split_without_re_encoding():
    made = fragments(levels(20))
    parts = [part for f in made for part in split_fragment(f, 100 + f.video_start // SPEC.frame_ticks, 7, False)]
    assert [part.frames for part in parts] == [4, 4, 4, 4, 4]
    assert [part.position for part in parts] == [100, 104, 108, 112, 116]
    assert [part.next_position for part in parts] == [104, 108, 112, 116, 120]
    assert [part.key for part in parts] == [True, True, False, True, False]
    assert sum(len(part.audio) for part in parts) == sum(f.audio_duration for f in made) // AAC_FRAME
    viewer = ViewerTimeline(SPEC)
    _, seen = shown(viewer.init + b"".join(viewer.put(part) for part in parts))
    np.testing.assert_allclose(seen, [20 + 4 * k for k in range(20)], atol=2)


def test_joining_all_live_fragments_gives_the_fragment():
    made = fragments(levels(20))[1]
    parts = split_fragment(made, 4, 1, True)
    assert join_live_fragments(parts, made, SPEC).data == made.data
    half = join_live_fragments(parts[:1], made, SPEC)
    assert (half.frames, half.video_duration, half.audio_start) == (4, 4 * SPEC.frame_ticks, made.audio_start)
    assert half.audio_duration in (3 * AAC_FRAME, 4 * AAC_FRAME)


@pytest.mark.parametrize(
    ("breaks", "sizes"), [((107,), [3, 4, 1]), ((105,), [4, 4]), ((110,), [4, 2, 2]), ((111,), [4, 4])]
)
def test_a_live_fragment_starts_at_each_break_with_two_frames_on_each_side(breaks, sizes):
    made = fragments(levels(20))[1]  # of 8 frames
    parts = split_fragment(made, 104, 1, False, breaks)
    assert [part.frames for part in parts] == sizes
    assert join_live_fragments(parts, made, SPEC).data == made.data


def tone(seconds: float) -> np.ndarray:
    """Silence of 0.1 s, then a loud tone, as a voice starts."""
    samples = 0.5 * np.sin(np.arange(round(seconds * RATE)) * 2 * np.pi * 300 / RATE)
    samples[: RATE // 10] = 0
    return samples.astype(np.float32)


@pytest.mark.parametrize("idle_fragments", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("start", [Clock(), Clock(90_000 // 25 * 3, 2 * 1024), Clock(90_000 // 25 * 7, 7 * 1024)])
def test_speech_after_idle_motion_has_no_gap_and_is_in_sync(loop, idle_fragments, start):
    viewer, data, position = ViewerTimeline(SPEC), b"", 0
    for _ in range(idle_fragments):
        part = loop.fragment_at(position)
        data, position = data + viewer.put(part), part.next_position
    encoder = UtteranceEncoder(SPEC, start)
    made = fragments(np.stack([AVATAR[k] for k in TIMELINE[position : position + 20]]), tone(0.8), encoder=encoder)
    begins = position
    for f in made:
        for part in split_fragment(f, position, 1, f is made[0]):
            data, position = data + viewer.put(part), part.next_position
    for _ in range(3):
        part = loop.fragment_at(loop.grid.ceil(position))
        data, position = data + viewer.put(part), part.next_position
    times, seen = shown(viewer.init + data)
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-4)
    np.testing.assert_allclose(seen, greys(range(len(seen))), atol=2)  # no frame is repeated or dropped
    sound_times, samples = heard(viewer.init + data)
    np.testing.assert_allclose(np.diff(sound_times), AAC_FRAME / RATE, atol=1e-4)
    first_loud = np.flatnonzero(np.abs(samples) > 0.1)[0] / RATE
    assert first_loud - begins / 25 - 0.1 == pytest.approx(encoder.audio_delay_s, abs=AAC_FRAME / 2 / RATE + 0.003)


def test_skipped_fragments_do_not_increase_the_audio_offset(loop):
    rng = np.random.default_rng(1)
    viewer, position, skipped = ViewerTimeline(SPEC), 0, False
    for _ in range(400):
        part = loop.fragment_at(position)
        position = part.next_position
        skipped = bool(rng.random() < 0.3)
        if not skipped:
            viewer.put(part, begins=True)
    clock = viewer.clock
    assert 0 <= clock.audio_samples - SPEC.samples_at(clock.video_ticks) < AAC_FRAME


def test_a_closed_gop_can_follow_any_fragment():
    viewer = ViewerTimeline(SPEC)
    parts = [
        LiveFragment(0, 4, encode_closed_gop(levels(4), SPEC)),
        LiveFragment(9, 12, encode_closed_gop(levels(3), SPEC)),
    ]
    _, seen = shown(viewer.init + b"".join(viewer.put(part) for part in parts))
    np.testing.assert_allclose(seen, [20, 24, 28, 32, 20, 24, 28], atol=2)


def test_silence_is_a_few_bytes():
    assert len(silent_packet(SPEC)) < 16


def test_fade_out_weights_are_smooth_and_end_at_zero():
    weights = fade_out_weights(4)
    assert weights == sorted(weights, reverse=True) and weights[-1] == 0.0 and 0.8 < weights[0] < 1
