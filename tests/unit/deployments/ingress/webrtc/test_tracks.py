"""A viewer's pieces for WebRTC: pictures as they were coded, or decoded; sound in 20 ms; each when it is due."""

import asyncio
import json
import time
from types import SimpleNamespace

import av
import numpy as np
import pytest

from deployments.ingress.webrtc.tracks import AHEAD_S, AUDIO_FRAME, OPUS_HZ, PACED_PIECES, Feed, annex_b
from models.live.timeline import ViewerTimeline, split_fragment
from models.media.encode import UtteranceEncoder
from models.media.mp4 import length_prefixed
from tests.support.live import RATE, SPEC, fragments, levels

pytest.importorskip("aiortc")
TONE = (0.5 * np.sin(np.arange(RATE) / 10)).astype(np.float32)


def pieces(frames: int, tone: bool = False) -> list:
    samples = TONE[: frames * RATE // 25] if tone else None
    made = fragments(levels(frames), samples, encoder=UtteranceEncoder(SPEC))
    return [p for f in made for p in split_fragment(f, f.video_start // SPEC.frame_ticks, 1, f.video_start == 0)]


def viewer(given: list) -> SimpleNamespace:
    """Gives (seconds to wait, piece) one after the other."""

    async def taken():
        for wait_s, piece in given:
            await asyncio.sleep(wait_s)
            yield piece, False

    return SimpleNamespace(timeline=ViewerTimeline(SPEC), taken=taken, to_edge=lambda: None, news=list, why=None)


async def pictures(feed: Feed, count: int) -> tuple[list, list[float]]:
    """The first pictures, and when each was given."""
    running, track = asyncio.create_task(feed.run()), feed.track("video")
    items, came_s = [], []
    for _ in range(count):
        items.append(await track.recv())
        came_s.append(time.monotonic())
    await running
    return items, came_s


async def test_pictures_pass_as_they_were_coded_with_their_headers_before_each_key_frame():
    made = pieces(12)
    packets, _ = await pictures(Feed(viewer([(0, p) for p in made])), 12)
    assert [packet.pts for packet in packets] == [k * SPEC.frame_ticks for k in range(12)]
    coded = [sample for piece in made for sample in piece.video]
    assert all(bytes(packet).endswith(annex_b(sample)) for packet, sample in zip(packets, coded, strict=True))
    decoder = av.CodecContext.create("h264", "r")  # told nothing else
    decoder.thread_count = 1
    greys = [frame.to_ndarray(format="rgb24").mean() for packet in packets for frame in decoder.decode(packet)]
    np.testing.assert_allclose(greys, levels(12).mean((1, 2, 3)), atol=2.5)


async def test_a_viewer_without_h264_gets_the_same_pictures_decoded():
    feed = Feed(viewer([(0, p) for p in pieces(12)]))
    feed.passing = False
    frames, _ = await pictures(feed, 12)
    assert [frame.pts for frame in frames] == [k * SPEC.frame_ticks for k in range(12)]
    np.testing.assert_allclose(
        [f.to_ndarray(format="rgb24").mean() for f in frames], levels(12).mean((1, 2, 3)), atol=2.5
    )


async def test_the_buffer_that_comes_at_once_is_not_played_out():
    """Two pieces at once, then one each 160 ms: what comes is given AHEAD_S later, whatever came before it."""
    made = pieces(24)
    came_s: list[float] = []

    async def taken():
        for k, piece in enumerate(made):
            if k > 1:
                await asyncio.sleep(0.16)
            came_s.append(time.monotonic())
            yield piece, False

    feed = Feed(SimpleNamespace(timeline=ViewerTimeline(SPEC), taken=taken, to_edge=lambda: None, news=list, why=None))
    _, given_s = await pictures(feed, 24)
    zero_s = min(came - 0.16 * k for k, came in enumerate(came_s))
    late_s = [given_s[4 * k] - 0.16 * k - zero_s for k in range(3, 6)]
    assert min(late_s) == pytest.approx(AHEAD_S, abs=0.03)  # a busy machine may add to some


def test_the_clock_follows_the_earliest_of_the_latest_pieces():
    feed = Feed(viewer([]))
    zeros = []
    for zero_s in [10.0, 9.7, 9.68, 9.69, *[12.0] * PACED_PIECES]:
        feed._keep_pace(zero_s)
        zeros.append(feed._zero_s)
    assert zeros[:5] == [10.0, 9.7, 9.68, 9.68, 9.68]
    assert zeros[-1] == 12.0  # a clock that was set anew


async def test_sound_comes_in_twenty_milliseconds_without_a_gap():
    feed = Feed(viewer([(0, p) for p in pieces(24, tone=True)]))
    await feed.run()
    sounds = [feed._sounds.get_nowait() for _ in range(feed._sounds.qsize())]
    assert len(sounds) == pytest.approx(48, abs=2)
    assert [frame.pts for _, frame in sounds] == [k * AUDIO_FRAME for k in range(len(sounds))]
    assert [due_s for due_s, _ in sounds] == pytest.approx([k / 50 for k in range(len(sounds))])
    wave = np.concatenate([frame.to_ndarray()[0] for _, frame in sounds]) / 2**15
    expected = 0.5 * np.sin(np.arange(len(wave)) * RATE / OPUS_HZ / 10)
    lags = {lag: np.corrcoef(wave[9600:19200], expected[9600 + lag : 19200 + lag])[0, 1] for lag in range(-60, 61)}
    best = max(lags, key=lags.get)
    assert lags[best] > 0.99 and abs(best) / OPUS_HZ < 1.1e-3  # resampling shifts it by no more


async def test_what_nobody_takes_does_not_grow():
    feed = Feed(viewer([(0, p) for p in pieces(24) * 20]))
    await feed.run()
    assert feed._pictures.qsize() == 64 and feed._sounds.qsize() == 256
    assert feed._pictures.get_nowait()[1].pts == (480 - 64) * SPEC.frame_ticks  # the oldest went


async def test_what_is_known_of_the_stream_is_told_with_where_it_is():
    made = pieces(24)
    told = [[], [("caption", {"id": 1, "start_s": 0.2})], [], [("making", {"frames": 4})], [], []]
    feed = Feed(viewer([(0.16 * bool(k), p) for k, p in enumerate(made)]))
    feed.viewer.news, feed.viewer.why = lambda: told.pop(0), "closed"
    sent = []
    feed.channel = SimpleNamespace(readyState="open", bufferedAmount=0, send=lambda text: sent.append(json.loads(text)))
    await feed.run()
    assert [(e["type"], e[e["type"]]) for e in sent] == [
        ("caption", {"id": 1, "start_s": 0.2}),
        ("making", {"frames": 4}),
        ("ended", {"reason": "closed"}),
    ]
    assert sent[0]["now_s"] == pytest.approx(0.16 - AHEAD_S, abs=0.1)  # the second piece begins at 0.16 s
    feed.channel.bufferedAmount = 2**20
    feed._tell("caption", {})
    feed.channel = None
    feed._tell("caption", {})
    assert len(sent) == 3


def test_samples_become_annex_b_again():
    unit = bytes([0x65, 1, 2, 3])
    assert annex_b(length_prefixed(b"\0\0\0\1" + unit + b"\0\0\1" + unit)) == b"\0\0\0\1" + unit + b"\0\0\0\1" + unit
