"""Hubs: all viewers see the same frames at the clock's pace; slow, lost and stuck viewers disturb nobody.

In virtual time: a frame is shown at exactly the time at which it is due.
"""

import asyncio
import contextvars
import gc
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from deployments.common.messages import LiveEvent
from deployments.ingress.live import hub
from deployments.ingress.live.hubs import STUCK_S, Hubs
from deployments.ingress.webrtc.tracks import Feed
from models.errors import BusyError, ClosedError, MovedError, SessionNotFound, StageError
from models.live.cues import Cue, cues_between
from models.live.timeline import LIVE_FRAMES, encode_idle, split_fragment
from models.media.emsg import read_events
from models.types import Word
from tests.support.live import (
    AVATAR,
    PLAYBACK,
    SPEC,
    FakeStitch,
    fragments,
    greys_at,
    levels,
    read_all,
    shown,
    watch,
)
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

FPS = SPEC.fps
LIVE_S = 4 / FPS  # a live fragment
NOT_FOUND = SessionNotFound("There is no such session.", "Open it.")


@pytest.fixture(scope="module")
def idle_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("idle") / "ann.mp4"
    path.write_bytes(encode_idle(AVATAR, SPEC))
    return path


@pytest.fixture
async def live(idle_path):
    """(stitch, hubs) with a session at position 100."""
    stitch = FakeStitch(idle_path, 100)
    hubs = Hubs(stitch.subscribe, lambda: 100)
    yield stitch, hubs
    await hubs.stop()


def first_position(seen: list[int]) -> int:
    """The position at which a viewer's idle motion begins."""
    return next(p for p in range(60, 400) if np.allclose(seen, greys_at(p, len(seen)), atol=2))


def next_position(stitch: FakeStitch, hubs: Hubs, in_s: float) -> int:
    """The first position after `in_s` seconds where speech can begin."""
    return hubs._running()[0]._loop.grid.ceil(stitch.clock.position(time.time() + in_s))


async def test_an_idle_session_plays_at_the_pace_of_its_clock(live):
    stitch, hubs = live
    data, times_s = await watch(await hubs.view("alice"), 10.0)
    times, seen = shown(data)
    np.testing.assert_allclose(times, np.arange(len(times)) / FPS, atol=1e-4)
    first = first_position(seen)
    assert 100 - 2 * 4 <= first < 100  # the buffer of two fragments comes first
    last_due_s = stitch.clock.time_of(first + len(seen) - 4)  # of the last fragment
    assert times_s[-1] == pytest.approx(last_due_s, abs=1e-3)
    assert stitch.subscriptions == [("alice", None)]  # idle motion needs nothing more from Stitch


async def test_viewers_of_a_session_see_the_same_frames_and_a_late_one_starts_at_the_live_edge(live):
    _, hubs = live
    early = asyncio.create_task(watch(await hubs.view("alice"), 3.0))
    await asyncio.sleep(1.5)
    late = await watch(await hubs.view("alice"), 1.5)
    (_, early_seen), (late_times, late_seen) = shown((await early)[0]), shown(late[0])
    assert late_times[0] == 0.0
    assert early_seen[-len(late_seen) :] == late_seen
    assert 1.5 * FPS <= len(late_seen) <= 1.5 * FPS + 3 * 4  # at most three fragments of the past
    assert len(hubs._hubs) == 1


async def test_speech_is_shown_at_its_position_without_repeated_or_missing_frames(live):
    stitch, hubs = live
    reading = asyncio.create_task(watch(await hubs.view("alice"), 2.0))
    await asyncio.sleep(0)
    at = next_position(stitch, hubs, 0.4)
    bright = np.stack([AVATAR[k] for k in PLAYBACK[at : at + 20]])
    for fragment in fragments(np.minimum(bright.astype(int) + 8, 255).astype(np.uint8)):
        start = at + fragment.video_start // SPEC.frame_ticks
        for part in split_fragment(fragment, start, 1, fragment.video_start == 0):
            stitch.send(part)
    data, _ = await reading
    times, seen = shown(data)
    np.testing.assert_allclose(np.diff(times), 1 / FPS, atol=1e-4)
    first = min(range(88, 101), key=lambda p: np.abs(np.subtract(seen, greys_at(p, len(seen)))).sum())
    expected = [g + 8 * (at <= p < at + 20) for p, g in enumerate(greys_at(first, len(seen)), first)]
    np.testing.assert_allclose(seen, expected, atol=2)


@pytest.mark.parametrize(("late_s", "waits"), [(0.2, True), (0.3, False)])
async def test_expected_speech_is_waited_for_up_to_the_grace_time(live, late_s, waits):
    """GRACE_S is 0.25 s. Speech that comes later is shown late, after idle motion."""
    stitch, hubs = live
    viewer = await hubs.view("alice")
    at = next_position(stitch, hubs, 1.0)
    stitch.put(LiveEvent(stitch.clock, expect=at))
    (part,) = split_fragment(fragments(np.full_like(levels(4), 250))[0], at, 1, True)
    due_s = stitch.clock.time_of(at) - time.time()
    asyncio.get_running_loop().call_later(due_s + late_s, stitch.send, part)
    _, seen = shown((await watch(viewer, 2.0))[0])
    first = first_position(seen[:10])
    assert (seen.index(250) == at - first) == waits and viewer.hub.late == (not waits)
    assert seen.count(250) == 4


@pytest.mark.parametrize("holds", [2, 4, 5, 6, 12])
async def test_holds_that_arrive_late_do_not_freeze_the_picture(live, holds):
    """Stitch is overloaded: speech is announced, and the holds before it arrive after the hub went on without them."""
    stitch, hubs = live
    reading = asyncio.create_task(watch(await hubs.view("alice"), 5.0))
    await asyncio.sleep(0.3)
    at, clock = next_position(stitch, hubs, 0.4), stitch.clock
    stitch.put(LiveEvent(clock, expect=at))
    await asyncio.sleep(clock.time_of(at) - time.time() + 0.35)
    (video,) = fragments(levels(LIVE_FRAMES))
    (hold,) = split_fragment(video, at, 0, True)
    for _ in range(holds):
        clock = clock.delayed(LIVE_FRAMES)
        stitch.put(LiveEvent(clock, piece=replace(hold, next_position=at)))
    await asyncio.sleep(clock.time_of(at) - time.time() - 0.08)
    spoken = fragments(np.full_like(levels(8), 250), spec=replace(SPEC, first_fragment_frames=8))
    for part in split_fragment(spoken[0], at, 7, True):
        stitch.put(LiveEvent(clock, piece=part))
    data, times_s = await reading
    assert np.diff(times_s).max() < hub.GRACE_S + 2 * LIVE_S
    assert sum(grey > 240 for grey in shown(data)[1]) == 8


async def test_a_viewer_that_does_not_read_holds_few_fragments_and_continues_at_the_live_edge(live):
    _, hubs = live
    viewer = await hubs.view("alice")
    before, _ = await watch(viewer, 0.3)
    await asyncio.sleep(5.0)
    assert len(viewer._queue) <= hub.VIEWER_FRAGMENTS and viewer.dropped >= 4
    viewer._queue.clear()
    after, _ = await watch(viewer, 0.6)
    times, seen = shown(before + after[len(viewer.timeline.init) :])
    np.testing.assert_allclose(times, np.arange(len(times)) / FPS, atol=1e-4)  # no gap in its own timeline
    assert max(np.abs(np.diff(seen))) > 8  # but a jump in the picture


async def test_viewers_that_never_read_do_not_delay_the_others(live):
    """Whether or not a stuck viewer has begun to read."""
    stitch, hubs = live
    lateness_s: list[list[float]] = []

    async def read() -> None:
        viewer, late_s = await hubs.view("alice"), []
        lateness_s.append(late_s)
        async for fragment, _ in viewer.fragments():
            late_s.append(time.time() - stitch.clock.time_of(fragment.position))

    reading = []
    for _ in range(4):
        await hubs.view("alice")
        await anext((await hubs.view("alice")).fragments())
        reading += [asyncio.create_task(read()), asyncio.create_task(read())]
    await asyncio.sleep(STUCK_S + 5)  # until after those that never began were dropped
    assert hubs.viewers() == 4 + len(reading)  # a viewer that has begun to read is dropped by its connection only
    for task, late_s in zip(reading, lateness_s, strict=True):
        task.cancel()
        assert len(late_s) * LIVE_S >= STUCK_S + 5
        np.testing.assert_allclose(late_s[hub.RECENT_FRAGMENTS :], 0, atol=1e-3)


async def test_after_dropped_fragments_a_viewer_continues_with_a_keyframe(live):
    """Without it, a decoder would show damaged pictures."""
    _, hubs = live
    viewer = await hubs.view("alice")
    keyframe, _ = await anext(viewer.fragments())
    viewer._queue.clear()
    other = replace(keyframe, key=False)
    for _ in range(hub.VIEWER_FRAGMENTS + 1):
        viewer.push(keyframe)
    assert not viewer._queue  # all were dropped
    viewer.push(other)
    viewer.push(keyframe)
    assert list(viewer._queue) == [keyframe]


async def test_a_viewer_whose_connection_stays_congested_is_disconnected(live, monkeypatch):
    _, hubs = live
    stuck, other = await hubs.view("alice", ("192.0.2.1", 7)), await hubs.view("alice", ("192.0.2.2", 8))

    async def unsent(clients):
        return {client: 2**20 if client == stuck.client else 0 for client in clients}

    monkeypatch.setattr(hubs._queues, "unsent", unsent)
    reading = asyncio.create_task(read_all(other))
    began_s = time.time()
    await asyncio.wait_for(read_all(stuck), STUCK_S + 2)  # ends by itself
    assert time.time() - began_s > STUCK_S
    assert stuck.ending == "slow" and stuck.dropped > 50
    reading.cancel()
    assert hubs.viewers() == 1 and other.dropped == 0


async def test_an_unknown_session_is_an_error_and_leaves_nothing(idle_path):
    stitch = FakeStitch(idle_path)
    stitch.errors = [NOT_FOUND] * 2
    hubs = Hubs(stitch.subscribe, lambda: 100)
    for _ in range(2):
        with pytest.raises(SessionNotFound):
            await hubs.view("nobody")
    assert hubs._hubs == {} and all(stream.cancelled for stream in stitch.streams)
    await hubs.stop()


async def test_viewers_who_leave_before_their_session_is_refused_leave_nothing(idle_path):
    stitch = FakeStitch(idle_path)
    hubs = Hubs(stitch.subscribe, lambda: 100)
    for k in range(20):
        stitch.errors = [asyncio.CancelledError() if k % 2 else NOT_FOUND]
        viewing = asyncio.create_task(hubs.view(f"nobody-{k}"))
        await asyncio.sleep(0)
        viewing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await viewing
    await asyncio.sleep(0.01)
    assert hubs.stats() == {"hubs": 0, "viewers": 0, "dropped": 0, "late": 0}
    assert len(stitch.streams) == 20 and all(stream.cancelled for stream in stitch.streams)
    await asyncio.wait_for(hubs._keeper, 2)  # it ends with the last hub


async def test_a_replica_that_goes_away_during_a_subscription_is_an_error_for_the_viewer(idle_path):
    """Ray cancels what waits for the replica, but the viewer was not cancelled, and its client waits for a status."""
    stitch = FakeStitch(idle_path)
    stitch.errors = [asyncio.CancelledError()]
    hubs = Hubs(stitch.subscribe, lambda: 100)
    with pytest.raises(StageError, match="lost its replica"):
        await hubs.view("alice")
    await hubs.view("alice")
    await hubs.stop()


async def test_the_number_of_viewers_is_limited_also_while_their_sessions_start(idle_path):
    stitch = FakeStitch(idle_path)
    hubs = Hubs(stitch.subscribe, lambda: 5)
    answers = await asyncio.gather(*(hubs.view(f"s{k}") for k in range(50)), return_exceptions=True)
    assert sum(isinstance(answer, BusyError) for answer in answers) == 45 and len(stitch.streams) == 5
    with pytest.raises(BusyError):
        await hubs.view("s0")
    next(answer for answer in answers if not isinstance(answer, BusyError)).close()
    await hubs.view("s0")
    await hubs.stop()


async def test_a_viewer_that_never_reads_is_removed(live):
    """A response whose client leaves before it begins is never iterated, and never closed."""
    _, hubs = live
    watching = asyncio.create_task(read_all(await hubs.view("alice")))
    await hubs.view("alice")
    assert hubs.viewers() == 2
    await asyncio.sleep(STUCK_S + 1)
    assert hubs.viewers() == 1
    watching.cancel()


async def test_a_webrtc_viewer_that_is_still_connecting_is_not_removed(live):
    _, hubs = live
    feed = Feed(await hubs.view("alice"))
    await asyncio.sleep(STUCK_S + 1)
    assert hubs.viewers() == 1 and feed.viewer.ending is None


async def test_idle_motion_that_cannot_be_read_is_an_error_and_cancels_the_stream(tmp_path):
    stitch = FakeStitch(tmp_path / "none.mp4")
    hubs = Hubs(stitch.subscribe, lambda: 100)
    with pytest.raises(StageError, match="cannot be read"):
        await hubs.view("alice")
    assert stitch.streams[0].cancelled and hubs._hubs == {}
    await hubs.stop()


async def test_a_hub_does_not_run_in_the_context_of_the_request_that_started_it(live):
    """Serve and Ray cancel the calls of a request's context together with the request."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    stitch, hubs = live
    contexts = []
    subscribe = stitch.subscribe
    hubs._subscribe = lambda session_id, position: contexts.append(request.get()) or subscribe(session_id, position)
    request.set("the first viewer's")
    await hubs.view("alice")
    assert contexts == ["none"]


async def test_a_session_that_is_opened_again_leaves_no_task_of_the_old_hub(live):
    stitch, hubs = live
    tasks = len(asyncio.all_tasks())
    for _ in range(5):
        viewer = await hubs.view("alice")
        stitch.errors = [NOT_FOUND]
        stitch.put(RuntimeError("closed"))
        await read_all(viewer)
        viewer.close()
    await hubs.view("alice")
    await asyncio.sleep(1.0)
    assert len(asyncio.all_tasks()) - tasks == 3  # the keeper, and the two of one hub


async def test_a_hub_that_fails_ends_its_viewers_streams_and_the_next_one_works(live, monkeypatch):
    _, hubs = live
    viewer = await hubs.view("alice")
    with monkeypatch.context() as broken:
        broken.setattr(hubs._running()[0]._loop, "fragment_at", lambda start: 1 / 0)
        data = await read_all(viewer)
    assert read_events(data)[-1] == ("ended", {"reason": "stopped"})
    data, _ = await watch(await hubs.view("alice"), 0.5)
    assert len(shown(data)[1]) >= 8


@pytest.mark.parametrize("died", [RuntimeError("died"), asyncio.CancelledError()])
async def test_after_a_replica_dies_the_hub_subscribes_again_and_viewers_notice_nothing(live, died):
    stitch, hubs = live
    reading = asyncio.create_task(watch(await hubs.view("alice"), 5.0))
    await asyncio.sleep(0.3)
    stitch.errors = [type(died)("the next replica fails, too")]
    stitch.put(died)
    data, _ = await reading
    times, seen = shown(data)
    np.testing.assert_allclose(np.diff(times), 1 / FPS, atol=1e-4)
    first_position(seen)  # idle motion without a gap
    assert len(stitch.subscriptions) == 3
    lost_at = 100 + FPS * (0.3 + 2 * hub.RETRY_S)
    assert stitch.subscriptions[-1][1].position == pytest.approx(lost_at, abs=8)


async def test_when_a_session_moves_the_speech_that_has_arrived_is_shown_and_nothing_is_lost(live):
    stitch, hubs = live
    reading = asyncio.create_task(watch(await hubs.view("alice"), 3.0))
    await asyncio.sleep(0.3)
    at = next_position(stitch, hubs, 0.4)
    (spoken,) = fragments(levels(LIVE_FRAMES), spec=SPEC)
    for part in split_fragment(spoken, at, 7, True):
        stitch.send(part)
    stitch.put(LiveEvent(stitch.clock, moved=True))
    await asyncio.sleep(0.1)
    (session_id, resume), clock = stitch.subscriptions[-1], stitch.clock
    assert len(stitch.subscriptions) == 2 and session_id == "alice"
    due_s = resume.wall_s + resume.due_in_s
    assert due_s == pytest.approx(clock.time_of(resume.position), abs=1e-3) and 0 <= resume.due_in_s <= 0.2
    data, _ = await reading
    times, seen = shown(data)
    np.testing.assert_allclose(np.diff(times), 1 / FPS, atol=1e-4)
    first = first_position(seen[:10])
    assert seen[at - first : at - first + LIVE_FRAMES] == pytest.approx([20, 24, 28, 32], abs=2)


async def test_a_subscription_that_is_refused_because_the_session_moves_is_tried_again(live, idle_path):
    moved = MovedError("The session moves.", "Send the request again.")
    stitch = FakeStitch(idle_path, position=100)
    stitch.errors = [moved, RayTaskError("live", "", moved)]
    hubs = Hubs(stitch.subscribe, lambda: 100)
    viewer = await hubs.view("alice")
    assert len(stitch.subscriptions) == 3
    stitch.errors = [moved, moved]
    stitch.put(LiveEvent(stitch.clock, moved=True))
    await asyncio.sleep(0.5)
    assert [resume.moves for _, resume in stitch.subscriptions[3:]] == [0, 1, 2] and viewer.ending is None
    await hubs.stop()


@pytest.mark.parametrize(("error", "ending"), [(NOT_FOUND, "removed"), (ClosedError("Closed.", "Open one."), "closed")])
async def test_a_session_that_is_gone_after_a_lost_stream_ends_its_viewers_streams(live, error, ending):
    stitch, hubs = live
    viewer = await hubs.view("alice")
    stitch.errors = [RayTaskError("live", "…", error)]
    stitch.put(RuntimeError("closed"))
    data = await read_all(viewer)
    assert viewer.ending == ending and read_events(data)[-1] == ("ended", {"reason": ending})


@pytest.mark.parametrize("ending", ["closed", "removed", "expired", "reset", "replaced"])
async def test_viewers_get_the_reason_for_the_end_of_a_session(live, ending):
    stitch, hubs = live
    one, other = await hubs.view("alice"), await hubs.view("alice")
    stitch.put(LiveEvent(stitch.clock, ended=ending))
    for viewer in (one, other):
        assert read_events(await read_all(viewer)) == [("ended", {"reason": ending})] and viewer.ending == ending
    assert len(stitch.subscriptions) == 1  # the hub does not subscribe again
    again = await hubs.view("alice")
    assert again.hub is not one.hub and len(stitch.subscriptions) == 2


async def test_a_replica_that_is_being_stopped_ends_a_stream_when_its_session_is_silent(live):
    stitch, hubs = live
    viewers = [await hubs.view("alice") for _ in range(2)]
    viewers[1].is_busy = lambda: busy
    busy = True
    reading = [asyncio.create_task(read_all(viewer)) for viewer in viewers]
    await asyncio.sleep(0.3)
    at = next_position(stitch, hubs, 0.4)
    (spoken,) = fragments(np.full_like(levels(8), 250), spec=replace(SPEC, first_fragment_frames=8))
    stitch.put(LiveEvent(stitch.clock, expect=at))
    await asyncio.sleep(0.3)
    for part in split_fragment(spoken, at, 7, True):
        stitch.send(part)
    hubs.draining.set()
    end_s = stitch.clock.time_of(at + 8)
    await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
    assert hub.SILENT_S - LIVE_S <= time.time() - end_s < hub.SILENT_S + 1.0 and viewers[0].ending == "stopped"
    assert sum(grey > 240 for grey in shown(reading[0].result())[1]) == 8  # the speech was shown to its end
    await asyncio.sleep(5.0)
    assert not reading[1].done()
    busy = False
    await asyncio.sleep(1.0)
    assert reading[1].done()


async def test_a_viewer_that_leaves_gets_no_reason(live):
    viewer = await live[1].view("alice")
    viewer.close()
    assert read_events(await read_all(viewer)) == [] and viewer.ending is None


async def test_captions_have_times_of_each_viewers_own_timeline_and_progress_is_the_latest(live):
    stitch, hubs = live
    early = asyncio.create_task(watch(await hubs.view("alice"), 2.5))
    await asyncio.sleep(0.48)
    late = asyncio.create_task(watch(await hubs.view("alice"), 2.0))
    await asyncio.sleep(0)
    at = next_position(stitch, hubs, 0.4)
    cues = [Cue(1, "Hello.", 0.1, 0.6, (Word("Hello.", 0.1, 0.6),))]
    four, eight = fragments(levels(16))[:2]
    for k, part in enumerate([*split_fragment(four, at, 7, True), *split_fragment(eight, at + 4, 7, False)]):
        stitch.send(replace(part, cues=cues_between(cues, k * LIVE_S, (k + 1) * LIVE_S)))
    for frames in (8, 16):
        stitch.put(LiveEvent(stitch.clock, making={"frames": frames}))
    starts_s = []
    for data, _ in await asyncio.gather(early, late):
        events = read_events(data)
        assert [message for kind, message in events if kind == "making"] == [{"frames": 16}]
        captions = [message for kind, message in events if kind == "caption"]
        assert [(c["text"], c["cut"]) for c in captions] == [("Hello.", False), ("Hello.", True)]
        starts_s.append(captions[0]["start_s"])
        times, seen = shown(data)
        first = next(k for k in range(9, len(seen)) if np.allclose(seen[k : k + 4], [20, 24, 28, 32], atol=2))
        assert captions[0]["start_s"] - times[first] == pytest.approx(0.1, abs=0.021)
        assert captions[1]["end_s"] - captions[0]["start_s"] == pytest.approx(0.38, abs=0.021)
    assert starts_s[0] - starts_s[1] == pytest.approx(0.48, abs=LIVE_S + 0.01)


async def test_watched_sessions_leave_nothing_after_their_last_viewer(live, monkeypatch):
    monkeypatch.setattr(hub, "LINGER_S", 0.3)
    stitch = live[0]
    hubs = Hubs(stitch.subscribe, lambda: 2000)
    tasks = len(asyncio.all_tasks())
    for k in range(10):
        (await hubs.view(f"warm-{k}")).close()
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    viewers = [await hubs.view(f"s{k}") for k in range(200)]
    used = growth_since(before)
    assert hubs.viewers() == 200 and len(hubs._hubs) >= 200
    for viewer in viewers:
        viewer.close()
    del viewers, viewer
    await hubs._keeper
    stitch.subscriptions.clear(), stitch.streams.clear()
    assert hubs._hubs == {} and len(asyncio.all_tasks()) <= tasks
    left = growth_since(before)
    tracemalloc.stop()
    assert left < used / 4


def growth_since(before: tracemalloc.Snapshot) -> int:
    """Bytes that were allocated since then and are still in use."""
    gc.collect()
    return sum(stat.size_diff for stat in tracemalloc.take_snapshot().compare_to(before, "filename"))
