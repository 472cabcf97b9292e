"""Measurements of the live benchmarks in a viewer's data: stops, lost packets, distance from the live edge."""

import numpy as np
import pytest

from benchmarks.live import said_until_s
from benchmarks.live_overload import heard, media_of
from benchmarks.viewers import behind_s
from models.live.timeline import LiveFragment, ViewerTimeline, encode_closed_gop, split_fragment
from models.media.encode import AAC_FRAME
from tests.support.live import RATE, SPEC, fragments, levels

TICK_S = AAC_FRAME / RATE


def speech(frames: int) -> np.ndarray:
    """Two noisy words with a pause between them, in the middle."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, frames * RATE // 25).astype(np.float32)
    samples[len(samples) // 2 - RATE // 10 : len(samples) // 2 + RATE // 10] = 0
    return samples


def viewed(parts: list[LiveFragment]) -> bytes:
    viewer = ViewerTimeline(SPEC)
    return viewer.init + b"".join(viewer.put(part) for part in parts)


@pytest.mark.parametrize(("before", "loud"), [(20, True), (24, False)])
def test_a_stop_is_found_and_classified_as_inside_a_word_or_not(before, loud):
    made = fragments(levels(48), speech(48))
    file = made[0].init + b"".join(fragment.data for fragment in made)
    parts, place = [], 0
    for fragment in made:
        parts += split_fragment(fragment, place, 1, place == 0)
        place += fragment.frames
    idle = LiveFragment(0, 4, encode_closed_gop(levels(4), SPEC))
    hold = [LiveFragment(before, before, idle.video, utterance=1)] * 3
    said, unsaid = [p for p in parts if p.position < before], [p for p in parts if p.position >= before]
    seen = [idle, idle, *said, *hold, *unsaid]
    found = heard(viewed([*seen, idle]), file, SPEC)
    assert found.begins_s == pytest.approx(8 / 25, abs=TICK_S) and found.mixed == 0 and found.lost <= 1
    (stop,) = found.stops
    assert stop.at_s == pytest.approx(before / 25, abs=2 * TICK_S)
    assert stop.seconds == pytest.approx(12 / 25, abs=2 * TICK_S)
    assert (stop.loud > 0.03) == loud
    assert found.inside([0.0]) == [stop] and found.inside([0.0, stop.at_s]) == []
    assert said_until_s(viewed([*seen, idle]), SPEC) == pytest.approx((8 + 48 + 12) / 25, abs=2 * TICK_S)


def test_packets_of_another_session_are_detected():
    one = fragments(levels(16), speech(16))
    other = fragments(levels(16), speech(16)[::-1].copy())
    file = one[0].init + b"".join(fragment.data for fragment in one)
    parts = [part for fragment in (*one, *other) for part in split_fragment(fragment, 0, 1, True)]
    assert heard(viewed(parts), file, SPEC).mixed > 5


def test_the_distance_from_the_live_edge_includes_the_initial_buffer_and_stalls():
    steady = [0.0] * 8 + [0.04 * (k + 1) for k in range(40)]  # 8 frames at once
    assert behind_s(steady)[10:] == pytest.approx(0.28, abs=1e-6)
    late = [
        *steady[:30],
        *(s + 1.0 for s in steady[30:]),
    ]  # a second without data: the player stalls
    assert behind_s(late)[30] == pytest.approx(0.0, abs=1e-6)
    caught_up = [*late[:35], *([late[34]] * 13)]  # the delayed frames arrive at once
    assert behind_s(caught_up)[-1] == pytest.approx(13 * 0.04, abs=1e-6)


def test_an_incomplete_stream_counts_up_to_its_last_complete_fragment():
    made = fragments(levels(20))
    data = made[0].init + b"".join(fragment.data for fragment in made)
    whole, pictures, packets = media_of(data)
    assert (whole, len(pictures)) == (data, 20) and all(pictures) and all(packets)
    last = len(data) - len(made[-1].data)
    for cut in (last, last + 10, last + 200, len(data) - 1):
        assert media_of(data[:cut])[0] == data[:last]
        assert media_of(data[:cut])[1] == pictures[: 20 - made[-1].frames]
