"""A hub: all viewers see the same frames at the clock's pace, from 0 on; the slow and the lost harm nobody."""

import asyncio
import contextvars
import gc
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from deployments.common.messages import LiveEvent, LiveStart
from deployments.ingress.live import hub
from deployments.ingress.live import hubs as live
from deployments.ingress.live.hubs import Live
from deployments.ingress.webrtc.tracks import Feed
from models.avatar.playback import ping_pong
from models.errors import BusyError, ClosedError, SessionNotFound, StageError
from models.live.cues import Cue, cues_between
from models.live.timeline import LiveClock, encode_idle, split_fragment
from models.media.emsg import read_events
from models.types import Word
from tests.support.live import SPEC, fragments, levels, shown

AVATAR = levels(40)
LINE = ping_pong(0, 2000, len(AVATAR))


def greys(first: int, count: int) -> list[int]:
    return [20 + 4 * int(LINE[p]) for p in range(first, first + count)]


class Stitch:
    """What a hub subscribes to: sends what the test puts in, or raises."""

    def __init__(self, path, position: int = 0) -> None:
        self.clock = LiveClock.starting(position, time.time(), 25)
        self.path, self.asked, self.streams = path, [], []
        self.fails: list[Exception] = []

    def subscribe(self, session_id: str, position: int | None):
        self.asked.append((session_id, position))
        stream = Stream(self, LiveEvent(self.clock, LiveStart(session_id, "ann", SPEC, str(self.path))))
        if self.fails:
            stream.queue.put_nowait(self.fails.pop(0))
        self.streams.append(stream)
        return stream

    def send(self, piece) -> None:
        self.streams[-1].queue.put_nowait(LiveEvent(self.clock, piece=piece))


class Stream:
    def __init__(self, stitch: Stitch, start: LiveEvent) -> None:
        self.queue: asyncio.Queue = asyncio.Queue()
        self.start, self.begun, self.cancelled = start, False, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.begun and self.queue.empty():
            self.begun = True
            return self.start
        item = await self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture(scope="module")
def idle_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("idle") / "ann.mp4"
    path.write_bytes(encode_idle(AVATAR, SPEC))
    return path


@pytest.fixture
async def air(idle_path):
    """(stitch, live) with a session at position 100."""
    stitch = Stitch(idle_path, 100)
    on_air = Live(stitch.subscribe, lambda: 100)
    yield stitch, on_air
    await on_air.stop()


async def watch(viewer, seconds: float) -> tuple[bytes, list[float]]:
    """What a viewer receives in some seconds, and when each part came."""
    data, came, end_s = b"", [], time.time() + seconds

    async def read() -> None:
        nonlocal data
        async for part in viewer:
            data += part
            came.append(time.time())

    task = asyncio.create_task(read())
    await asyncio.sleep(end_s - time.time())
    task.cancel()
    return data, came


async def test_an_idle_session_plays_at_its_clocks_pace_from_zero(air):
    stitch, on_air = air
    viewer = await on_air.view("alice")
    data, came = await watch(viewer, 1.0)
    times, seen = shown(data)
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-4)
    passed = 25 * (came[-1] - came[0])  # frames' time; and there is the buffer that it was given at first
    assert passed > 25 * 0.7 and passed + 3 <= len(seen) <= passed + 4 * 5
    first = next(p for p in range(88, 101) if np.allclose(seen, greys(p, len(seen)), atol=2))
    edge_s = stitch.clock.time_of(first + len(seen)) - came[-1]
    assert -0.5 < edge_s < 0.2  # the live edge is now
    assert stitch.asked == [("alice", None)]  # nothing more was asked of Stitch


async def test_viewers_of_a_session_see_the_same_frame_and_a_late_one_starts_at_the_live_edge(air):
    _, on_air = air
    early = await on_air.view("alice")
    one = asyncio.create_task(watch(early, 1.2))
    await asyncio.sleep(0.6)
    joined_s = time.time()
    late = await on_air.view("alice")
    (data_one, _), (data_two, came_two) = await asyncio.gather(one, watch(late, 0.6))
    (_, seen_one), (times_two, seen_two) = shown(data_one), shown(data_two)
    assert times_two[0] == 0.0
    both = len(seen_two) - 8  # one of them may have been given a piece more
    assert any(seen_one[k : k + both] == seen_two[:both] for k in range(len(seen_one)))  # the same frames
    assert len(seen_two) <= (came_two[-1] - joined_s) * 25 + 3 * 4 + 1  # at most 480 ms of the past
    assert len(on_air._hubs) == 1


async def test_speech_is_shown_at_its_place_and_nothing_is_repeated_or_left_out(air):
    stitch, on_air = air
    viewer = await on_air.view("alice")
    reading = asyncio.create_task(watch(viewer, 2.0))
    place = on_air._running()[0]._loop.grid.ceil(stitch.clock.position(time.time() + 0.4))
    bright = np.stack([AVATAR[k] for k in LINE[place : place + 20]])
    for fragment in fragments(np.minimum(bright.astype(int) + 8, 255).astype(np.uint8)):
        for piece in split_fragment(
            fragment, place + fragment.video_start // SPEC.frame_ticks, 1, fragment.video_start == 0
        ):
            stitch.send(piece)
    data, _ = await reading
    times, seen = shown(data)
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    first = min(range(88, 101), key=lambda p: np.abs(np.subtract(seen, greys(p, len(seen)))).sum())
    expected = [g + 8 * (place <= p < place + 20) for p, g in enumerate(greys(first, len(seen)), first)]
    np.testing.assert_allclose(seen, expected, atol=2)


async def test_a_viewer_that_does_not_read_keeps_little_and_goes_on_at_the_live_edge(air, monkeypatch):
    monkeypatch.setattr(hub, "VIEWER_PIECES", 3)
    _, on_air = air
    viewer = await on_air.view("alice")
    before, _ = await watch(viewer, 0.3)
    await asyncio.sleep(1.5)
    assert len(viewer._queue) <= 3 and viewer.dropped >= 4
    viewer._queue.clear()
    after, _ = await watch(viewer, 0.6)
    data = before + after[len(viewer.timeline.init) :]
    times, seen = shown(data)
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-4)  # no gap in its own time
    assert max(np.abs(np.diff(seen))) > 8  # but a leap in what it sees


async def test_a_connection_that_stays_congested_is_given_nothing_and_then_closed(air, monkeypatch):
    monkeypatch.setattr(live, "STUCK_S", 0.8)
    _, on_air = air
    stuck, well = await on_air.view("alice", ("192.0.2.1", 7)), await on_air.view("alice", ("192.0.2.2", 8))

    async def unsent(clients):
        return {client: 2**20 if client == stuck.client else 0 for client in clients}

    monkeypatch.setattr(on_air._queues, "unsent", unsent)
    reading = asyncio.create_task(_drain(well))
    parts = [part async for part in stuck]  # ends by itself
    assert len(parts) < 8 and stuck.dropped > 2
    reading.cancel()
    assert on_air.viewers() == 1 and well.dropped == 0


async def test_an_unknown_session_is_an_error_and_leaves_nothing(idle_path):
    stitch = Stitch(idle_path)
    stitch.fails = [SessionNotFound("There is none.", "Open it.")] * 2
    on_air = Live(stitch.subscribe, lambda: 100)
    for _ in range(2):
        with pytest.raises(SessionNotFound):
            await on_air.view("nobody")
    assert on_air._hubs == {} and all(stream.cancelled for stream in stitch.streams)
    await on_air.stop()


async def test_nothing_is_left_of_viewers_who_leave_before_their_session_is_refused(idle_path):
    stitch = Stitch(idle_path)
    on_air = Live(stitch.subscribe, lambda: 100)
    for k in range(20):
        stitch.fails = [asyncio.CancelledError() if k % 2 else SessionNotFound("There is none.", "Open it.")]
        viewing = asyncio.create_task(on_air.view(f"nobody-{k}"))
        await asyncio.sleep(0)
        viewing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await viewing
    await asyncio.sleep(0.01)
    assert on_air.stats() == {"hubs": 0, "viewers": 0, "dropped": 0}
    assert len(stitch.streams) == 20 and all(stream.cancelled for stream in stitch.streams)
    await asyncio.wait_for(on_air._keeper, 2)  # it has nobody to look after


async def test_a_replica_that_goes_while_it_is_asked_is_an_error_and_no_silence(idle_path):
    """Whoever asks was not cancelled, and its client waits for a status."""
    stitch = Stitch(idle_path)
    stitch.fails = [asyncio.CancelledError()]
    on_air = Live(stitch.subscribe, lambda: 100)
    with pytest.raises(StageError, match="lost its replica while"):
        await on_air.view("alice")
    await on_air.view("alice")
    await on_air.stop()


async def test_there_is_a_most_of_viewers(idle_path):
    on_air = Live(Stitch(idle_path).subscribe, lambda: 2)
    for _ in range(2):
        await on_air.view("alice")
    with pytest.raises(BusyError):
        await on_air.view("alice")
    await on_air.stop()


async def test_viewers_whose_session_is_still_being_opened_count_too(idle_path):
    stitch = Stitch(idle_path)
    on_air = Live(stitch.subscribe, lambda: 5)
    answers = await asyncio.gather(*(on_air.view(f"s{k}") for k in range(50)), return_exceptions=True)
    assert sum(isinstance(answer, BusyError) for answer in answers) == 45 and len(stitch.streams) == 5
    await on_air.stop()


async def test_a_viewer_that_had_gone_before_its_first_byte_is_forgotten(air, monkeypatch):
    """An answer whose client leaves before it begins is never iterated, and never told to close."""
    monkeypatch.setattr(live, "STUCK_S", 0.3)
    _, on_air = air
    watching = asyncio.create_task(_drain(await on_air.view("alice")))
    await on_air.view("alice")
    assert on_air.viewers() == 2
    await asyncio.sleep(1.2)
    assert on_air.viewers() == 1
    watching.cancel()


async def test_a_viewer_whose_connection_is_still_being_made_is_left_to_it(air, monkeypatch):
    monkeypatch.setattr(live, "STUCK_S", 0.3)
    _, on_air = air
    feed = Feed(await on_air.view("alice"))
    await asyncio.sleep(1.2)
    assert on_air.viewers() == 1 and feed.viewer.why is None


async def test_idle_motion_that_cannot_be_read_is_an_error_and_ends_the_stream(tmp_path):
    stitch = Stitch(tmp_path / "none.mp4")
    on_air = Live(stitch.subscribe, lambda: 100)
    with pytest.raises(StageError, match="cannot be read"):
        await on_air.view("alice")
    assert stitch.streams[0].cancelled and on_air._hubs == {}
    await on_air.stop()


async def test_a_hub_outlives_the_request_that_began_it(air):
    """Serve and Ray cancel what was called in a request's context together with the request."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    stitch, on_air = air
    begun_in = []
    plain = stitch.subscribe
    on_air._subscribe = lambda session_id, position: begun_in.append(request.get()) or plain(session_id, position)
    request.set("the first viewer's")
    await on_air.view("alice")
    assert begun_in == ["none"]


async def test_a_session_that_is_asked_for_anew_leaves_no_player_of_the_old_one(air, monkeypatch):
    monkeypatch.setattr(hub, "RETRY_S", 0.01)
    stitch, on_air = air
    tasks = len(asyncio.all_tasks())
    for _ in range(5):
        viewer = await on_air.view("alice")
        stitch.fails = [SessionNotFound("There is none.", "Open it.")]
        stitch.streams[-1].queue.put_nowait(RuntimeError("closed"))
        await asyncio.wait_for(_drain(viewer), 2)
        viewer.close()
    await on_air.view("alice")
    await asyncio.sleep(0.5)
    assert len(asyncio.all_tasks()) - tasks <= 3  # the keeper, and one hub's two


async def test_a_hub_that_breaks_ends_its_viewers_streams_and_the_next_one_is_whole(air, monkeypatch):
    _, on_air = air
    viewer = await on_air.view("alice")
    with monkeypatch.context() as broken:
        broken.setattr(on_air._running()[0]._loop, "piece", lambda start: 1 / 0)
        data = await asyncio.wait_for(_all_of(viewer), 2)
    assert read_events(data)[-1] == ("ended", {"reason": "stopped"})
    data, _ = await watch(await on_air.view("alice"), 0.5)
    assert len(shown(data)[1]) >= 8


@pytest.mark.parametrize("died", [RuntimeError("died"), asyncio.CancelledError()])
async def test_a_replica_that_dies_is_asked_anew_and_viewers_notice_nothing(air, monkeypatch, died):
    monkeypatch.setattr(hub, "RETRY_S", 0.1)
    stitch, on_air = air
    viewer = await on_air.view("alice")
    reading = asyncio.create_task(watch(viewer, 1.2))
    await asyncio.sleep(0.3)
    stitch.fails = [type(died)("still starting, or going, too")]
    stitch.streams[-1].queue.put_nowait(died)
    data, _ = await reading
    times, seen = shown(data)
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    first = next(p for p in range(88, 101) if np.allclose(seen, greys(p, len(seen)), atol=2))
    assert first and len(stitch.asked) == 3
    assert stitch.asked[-1][1] == pytest.approx(stitch.clock.position(time.time()), abs=40)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (SessionNotFound("There is none.", "Open it."), "removed"),
        (ClosedError("It is closed.", "Open another."), "closed"),
    ],
)
async def test_a_session_that_is_gone_ends_its_viewers_streams_and_says_why(air, monkeypatch, error, why):
    monkeypatch.setattr(hub, "RETRY_S", 0.05)
    stitch, on_air = air
    viewer = await on_air.view("alice")
    stitch.fails = [RayTaskError("live", "…", error)]
    stitch.streams[-1].queue.put_nowait(RuntimeError("closed"))
    data = await asyncio.wait_for(_all_of(viewer), 2)
    assert viewer.why == why and read_events(data)[-1] == ("ended", {"reason": why})


@pytest.mark.parametrize("why", ["closed", "removed", "expired", "reset", "replaced"])
async def test_viewers_are_told_at_once_why_the_session_ends(air, why):
    stitch, on_air = air
    one, other = await on_air.view("alice"), await on_air.view("alice")
    stitch.streams[-1].queue.put_nowait(LiveEvent(stitch.clock, ended=why))
    for viewer in (one, other):
        data = await asyncio.wait_for(_all_of(viewer), 1)
        assert read_events(data) == [("ended", {"reason": why})] and viewer.why == why
    assert len(stitch.asked) == 1  # nobody asks for it again
    again = await on_air.view("alice")
    assert again.hub is not one.hub and len(stitch.asked) == 2


async def test_a_viewer_that_leaves_by_itself_is_told_nothing(air):
    viewer = await air[1].view("alice")
    viewer.close()
    assert read_events(await asyncio.wait_for(_all_of(viewer), 1)) == [] and viewer.why is None


async def test_each_viewer_is_told_what_is_heard_on_its_own_clock_and_what_is_made(air):
    stitch, on_air = air
    early = await on_air.view("alice")
    await asyncio.sleep(0.5)
    late = await on_air.view("alice")
    place = on_air._running()[0]._loop.grid.ceil(stitch.clock.position(time.time()) + 8)
    cues = [Cue(1, "Hello.", 0.1, 0.6, (Word("Hello.", 0.1, 0.6),))]
    four, eight = fragments(levels(16))[:2]
    for k, piece in enumerate([*split_fragment(four, place, 7, True), *split_fragment(eight, place + 4, 7, False)]):
        stitch.send(replace(piece, cues=cues_between(cues, k * 0.16, (k + 1) * 0.16)))
    for frames in (8, 16):  # of two that come at once, the later is told
        stitch.streams[-1].queue.put_nowait(LiveEvent(stitch.clock, making={"frames": frames}))
    starts_s = []
    for data, _ in await asyncio.gather(watch(early, 1.5), watch(late, 1.5)):
        events = read_events(data)
        assert [message for kind, message in events if kind == "making"] == [{"frames": 16}]
        captions = [message for kind, message in events if kind == "caption"]
        assert [(c["text"], c["cut"]) for c in captions] == [("Hello.", False), ("Hello.", True)]
        starts_s.append(captions[0]["start_s"])
        times, seen = shown(data)
        first = next(t for t, level in zip(times, seen, strict=True) if level == pytest.approx(20, abs=2) and t > 0.3)
        assert captions[0]["start_s"] - first == pytest.approx(0.1, abs=0.021)
        assert captions[1]["end_s"] - captions[0]["start_s"] == pytest.approx(0.38, abs=0.021)
    assert starts_s[0] - starts_s[1] == pytest.approx(0.5, abs=0.17)


async def _all_of(viewer) -> bytes:
    return b"".join([part async for part in viewer])


async def _drain(viewer) -> None:
    async for _ in viewer:
        pass


async def test_nothing_is_left_of_hundreds_of_sessions_that_were_watched(air, monkeypatch):
    monkeypatch.setattr(hub, "LINGER_S", 0.3)
    stitch = air[0]
    on_air = Live(stitch.subscribe, lambda: 2000)
    tasks = len(asyncio.all_tasks())
    for k in range(10):
        (await on_air.view(f"warm-{k}")).close()
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    viewers = [await on_air.view(f"s{k}") for k in range(300)]
    assert on_air.viewers() == 300 and len(on_air._hubs) >= 300
    for viewer in viewers:
        viewer.close()
    del viewers, viewer
    await asyncio.wait_for(on_air._keeper, 10)
    stitch.asked.clear(), stitch.streams.clear()
    gc.collect()
    grown = sum(stat.size_diff for stat in tracemalloc.take_snapshot().compare_to(before, "filename"))
    tracemalloc.stop()
    assert on_air._hubs == {} and len(asyncio.all_tasks()) <= tasks
    assert grown < 2_000_000
