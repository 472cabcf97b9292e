"""The WebRTC tracks of a viewer: pictures as they were encoded, or decoded; sound in 20 ms; each when it is due.

In virtual time.
"""

import asyncio
import contextlib
import json
import time
from types import SimpleNamespace

import av
import numpy as np
import pytest

from deployments.ingress.webrtc.tracks import (
    DELAY_S,
    MAX_PICTURES,
    MAX_SOUNDS,
    OPUS_HZ,
    PACE_FRAGMENTS,
    SOUND_SAMPLES,
    Feed,
    annex_b,
)
from models.live.timeline import ViewerTimeline, split_fragment
from models.media.encode import UtteranceEncoder
from models.media.mp4 import length_prefixed
from tests.support.live import RATE, SPEC, fragments, levels
from tests.support.virtual_time import event_loop_policy, virtual_time

pytest.importorskip("aiortc")
__all__ = ["event_loop_policy", "virtual_time"]
TONE = (0.5 * np.sin(np.arange(RATE) / 10)).astype(np.float32)
LIVE_S = 0.16  # a live fragment of four frames
MAX_OFFSET_S = 0.04  # between sound and picture: a frame


def live_fragments(frames: int, tone: bool = False) -> list:
    samples = TONE[: frames * RATE // 25] if tone else None
    made = fragments(levels(frames), samples, encoder=UtteranceEncoder(SPEC))
    return [p for f in made for p in split_fragment(f, f.video_start // SPEC.frame_ticks, 1, f.video_start == 0)]


def viewer(given: list, messages=list, ending=None) -> SimpleNamespace:
    """A viewer that gets fragments, each after a time: [(seconds, fragment), …]."""

    async def arriving():
        for wait_s, fragment in given:
            await asyncio.sleep(wait_s)
            yield fragment, False

    return SimpleNamespace(
        timeline=ViewerTimeline(SPEC),
        fragments=arriving,
        skip_to_edge=lambda: None,
        take_messages=messages,
        ending=ending,
    )


async def pictures(feed: Feed, count: int) -> tuple[list, list[float]]:
    """The first pictures of the track, and the times at which it returned them."""
    running, track = asyncio.create_task(feed.run()), feed.track("video")
    items, times_s = [], []
    for _ in range(count):
        items.append(await track.recv())
        times_s.append(time.monotonic())
    await running
    return items, times_s


async def test_pictures_are_sent_as_encoded_with_the_headers_before_each_keyframe():
    made = live_fragments(12)
    packets, _ = await pictures(Feed(viewer([(0, p) for p in made])), 12)
    assert [packet.pts for packet in packets] == [k * SPEC.frame_ticks for k in range(12)]
    encoded = [sample for fragment in made for sample in fragment.video]
    assert all(bytes(packet).endswith(annex_b(sample)) for packet, sample in zip(packets, encoded, strict=True))
    decoder = av.CodecContext.create("h264", "r")  # without extradata
    decoder.thread_count = 1
    greys = [frame.to_ndarray(format="rgb24").mean() for packet in packets for frame in decoder.decode(packet)]
    np.testing.assert_allclose(greys, levels(12).mean((1, 2, 3)), atol=2.5)


async def test_a_viewer_without_h264_gets_the_same_pictures_decoded():
    feed = Feed(viewer([(0, p) for p in live_fragments(12)]))
    feed.passthrough = False
    frames, _ = await pictures(feed, 12)
    assert [frame.pts for frame in frames] == [k * SPEC.frame_ticks for k in range(12)]
    greys = [frame.to_ndarray(format="rgb24").mean() for frame in frames]
    np.testing.assert_allclose(greys, levels(12).mean((1, 2, 3)), atol=2.5)


async def test_pictures_are_returned_one_by_one_a_fixed_delay_after_they_arrive():
    """Two fragments arrive at once, as a buffer, then one each 160 ms: the buffer does not add to the delay."""
    made = live_fragments(40)
    given = [(0 if k < 2 else LIVE_S, fragment) for k, fragment in enumerate(made)]
    began_s = time.monotonic()
    _, times_s = await pictures(Feed(viewer(given)), 40)
    settled = 4 * PACE_FRAGMENTS // 2
    np.testing.assert_allclose(np.diff(times_s[settled:]), 0.04, atol=1e-6)
    # fragment k arrives at (k - 1) * LIVE_S
    arrivals_s = [began_s + (k // 4 - 1) * LIVE_S + (k % 4) * 0.04 for k in range(settled, 40)]
    np.testing.assert_allclose(np.subtract(times_s[settled:], arrivals_s), DELAY_S, atol=1e-6)


async def test_the_clock_follows_the_earliest_of_the_latest_fragments():
    feed = Feed(viewer([]))
    zeros = []
    for zero_s in [10.0, 9.7, 9.68, 9.69, *[12.0] * PACE_FRAGMENTS]:
        feed._set_clock(zero_s)
        zeros.append(feed._zero_s)
    assert zeros[:5] == [10.0, 9.7, 9.68, 9.68, 9.68]
    assert zeros[-1] == 12.0  # the host's clock was changed


async def test_sound_is_returned_in_frames_of_20_ms_without_a_gap():
    feed = Feed(viewer([(0, p) for p in live_fragments(24, tone=True)]))
    await feed.run()
    sounds = [feed._sounds.get_nowait() for _ in range(feed._sounds.qsize())]
    assert len(sounds) == pytest.approx(48, abs=2)
    assert [frame.pts for _, frame in sounds] == [k * SOUND_SAMPLES for k in range(len(sounds))]
    assert [due_s for due_s, _ in sounds] == pytest.approx([k / 50 for k in range(len(sounds))])
    wave = np.concatenate([frame.to_ndarray()[0] for _, frame in sounds]) / 2**15
    expected = 0.5 * np.sin(np.arange(len(wave)) * RATE / OPUS_HZ / 10)
    lags = {lag: np.corrcoef(wave[9600:19200], expected[9600 + lag : 19200 + lag])[0, 1] for lag in range(-60, 61)}
    best = max(lags, key=lags.get)
    assert lags[best] > 0.99 and abs(best) / OPUS_HZ < 1.1e-3  # the shift of the resampler


async def received(track, seconds: float) -> list[tuple[float, object]]:
    """The items of a track in this time, and when it returned them."""
    items = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                item = await track.recv()
                items.append((time.monotonic(), item))
    return items


async def test_pictures_and_sound_of_the_same_time_are_in_sync():
    """Both their timestamps, by which players align the two tracks, and the times at which they are sent.

    The picture becomes bright when the tone begins, 0.48 s after the start. Each part arrives when a hub sends it.
    """
    frames, onset = 48, 12
    images = np.where(np.arange(frames) < onset, 20, 220).astype(np.uint8)[:, None, None, None] + np.zeros_like(
        levels(1)
    )
    samples = np.sin(np.arange(frames * RATE // 25) / 10).astype(np.float32)
    samples *= np.arange(len(samples)) >= onset * RATE // 25
    parts = [
        part
        for fragment in fragments(images, samples, encoder=UtteranceEncoder(SPEC))
        for part in split_fragment(fragment, fragment.video_start // SPEC.frame_ticks, 1, fragment.video_start == 0)
    ]
    feed = Feed(viewer([(0 if k < 2 else LIVE_S, part) for k, part in enumerate(parts)]))
    feed.passthrough = False
    running = asyncio.create_task(feed.run())
    pictures, sounds = await asyncio.gather(*(received(feed.track(kind), 4.0) for kind in ("video", "audio")))
    await running
    bright = next((s, p) for s, p in pictures if p.to_ndarray(format="gray").mean() > 128)
    loud = next((s, f) for s, f in sounds if np.abs(f.to_ndarray()).max() > 8000)
    first_loud_s = np.flatnonzero(np.abs(loud[1].to_ndarray()[0]) > 3000)[0] / OPUS_HZ
    assert abs(bright[1].time - (loud[1].time + first_loud_s)) < MAX_OFFSET_S
    assert abs(bright[0] - (loud[0] + first_loud_s)) < MAX_OFFSET_S
    # the sending times of all, relative to their timestamps, after the clock of the tracks has settled
    video_s, audio_s = ([s - item.time for s, item in items[len(items) // 2 :]] for items in (pictures, sounds))
    assert max(*video_s, *audio_s) - min(*video_s, *audio_s) < MAX_OFFSET_S


async def test_without_a_reader_the_queues_drop_the_oldest():
    feed = Feed(viewer([(0, p) for p in live_fragments(24) * 20]))
    await feed.run()
    assert feed._pictures.qsize() == MAX_PICTURES and feed._sounds.qsize() == MAX_SOUNDS
    assert feed._pictures.get_nowait()[1].pts == (480 - MAX_PICTURES) * SPEC.frame_ticks


async def test_messages_are_sent_on_the_data_channel_with_the_current_position():
    made = live_fragments(24)
    messages = [[], [("caption", {"id": 1, "start_s": 0.2})], [], [("making", {"frames": 4})], [], []]
    given = [(LIVE_S * bool(k), fragment) for k, fragment in enumerate(made)]
    feed = Feed(viewer(given, lambda: messages.pop(0), "closed"))
    sent = []
    feed.channel = SimpleNamespace(readyState="open", bufferedAmount=0, send=lambda text: sent.append(json.loads(text)))
    await feed.run()
    assert [(e["type"], e[e["type"]]) for e in sent] == [
        ("caption", {"id": 1, "start_s": 0.2}),
        ("making", {"frames": 4}),
        ("ended", {"reason": "closed"}),
    ]
    assert sent[0]["now_s"] == pytest.approx(LIVE_S - DELAY_S, abs=1e-3)  # when the second fragment arrives
    feed.channel.bufferedAmount = 2**20
    feed._send_message("caption", {})
    feed.channel = None
    feed._send_message("caption", {})
    assert len(sent) == 3


async def test_mp4_samples_become_annex_b():
    unit = bytes([0x65, 1, 2, 3])
    assert annex_b(length_prefixed(b"\0\0\0\1" + unit + b"\0\0\1" + unit)) == b"\0\0\0\1" + unit + b"\0\0\0\1" + unit
