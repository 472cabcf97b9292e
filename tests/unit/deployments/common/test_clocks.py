"""Clocks of other hosts: how they are measured, and a hub that follows the clock of its session's host."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from deployments.common import clocks as module
from deployments.common.clocks import HostClocks, own_host
from deployments.common.messages import LiveEvent, LiveStart
from deployments.ingress.live.hubs import Hubs
from models.avatar.playback import ping_pong
from models.live.timeline import LiveClock, LiveFragment, encode_idle, split_fragment
from tests.support.live import SIDE, SPEC, fragments, levels, shown
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

AVATAR = levels(40)
TIMELINE = ping_pong(0, 2000, len(AVATAR))


class Remote:
    """A host whose clock is `skew_s` ahead. ways: per call, the seconds of the way there and back; the last repeats."""

    def __init__(self, skew_s: float, ways: list[tuple[float, float]] | None = None) -> None:
        self.skew_s, self.ways, self.calls = skew_s, ways or [(0.0, 0.0)], 0

    async def ask(self, session_id: str) -> tuple[str, float]:
        there_s, back_s = self.ways[min(self.calls, len(self.ways) - 1)]
        self.calls += 1
        await asyncio.sleep(there_s)
        now_s = time.time() + self.skew_s
        await asyncio.sleep(back_s)
        return "far", now_s


def error_of(clocks: HostClocks, remote: Remote) -> float:
    """The measured clock minus the true one, in seconds."""
    return clocks.now("far") - (time.time() + remote.skew_s)


@pytest.mark.parametrize("skew_s", [-2.0, 0.0, 2.0, 86_400.0])
async def test_the_error_is_at_most_half_of_the_quickest_call(skew_s):
    remote = Remote(skew_s, [(0.2, 0.0), (0.01, 0.03), (0.05, 0.0), (0.1, 0.1)])
    clocks = HostClocks(remote.ask)
    now = await clocks.clock_of("far", "alice")
    assert remote.calls == module.FIRST_CALLS
    assert clocks.best_sample("far").error_s == pytest.approx(0.02)
    assert error_of(clocks, remote) == pytest.approx(-0.01, abs=1e-3)  # of the call with 10 ms there and 30 ms back
    assert now() == clocks.now("far")


async def test_the_quickest_sample_is_used_and_not_the_latest():
    remote = Remote(2.0, [(0.0, 0.0)] * 4 + [(0.3, 0.0)])
    clocks = HostClocks(remote.ask)
    await clocks.clock_of("far", "alice")
    await clocks._sample("alice")
    assert error_of(clocks, remote) == pytest.approx(0, abs=1e-3)  # the slow sample alone would be 0.15 s off


async def test_a_call_over_the_time_limit_is_not_used(caplog):
    remote = Remote(2.0, [(module.CALL_TIMEOUT_S, 0.1)])
    clocks = HostClocks(remote.ask)
    await clocks.clock_of("far", "alice")
    assert clocks.best_sample("far") is None and "could not be measured" in caplog.text


async def test_a_clock_that_is_set_is_followed_at_the_next_call():
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    await clocks.clock_of("far", "alice")
    remote.skew_s = -1.0
    await clocks._sample("alice")
    assert error_of(clocks, remote) == pytest.approx(0, abs=1e-3)


async def test_a_host_is_measured_again_after_the_refresh_interval():
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    await clocks.clock_of("far", "alice")
    for calls in (4, 5):
        for _ in range(10):
            clocks.refresh("far", "alice")
        await asyncio.sleep(0.1)
        assert remote.calls == calls
        await asyncio.sleep(module.REFRESH_S)


async def test_a_known_host_is_not_measured_again_for_every_session():
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    for session_id in ("alice", "bob", "carol"):
        await clocks.clock_of("far", session_id)
    assert remote.calls == module.FIRST_CALLS


async def test_own_host_needs_no_call_and_an_unreachable_host_counts_as_equal(caplog):
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    assert await clocks.clock_of(own_host(), "alice") is time.time and remote.calls == 0
    assert await HostClocks().clock_of("far", "alice") is time.time

    async def fails(session_id: str) -> tuple[str, float]:
        raise RuntimeError("no replica")

    now = await HostClocks(fails).clock_of("far", "alice")
    assert now() == pytest.approx(time.time(), abs=1e-3) and "is taken as equal" in caplog.text


async def test_a_lost_replica_is_a_failed_measurement_and_does_not_cancel_the_viewer(caplog):
    """Ray raises CancelledError from a call whose replica was lost."""

    async def lost(session_id: str) -> tuple[str, float]:
        raise asyncio.CancelledError

    now = await HostClocks(lost).clock_of("far", "alice")
    assert now() == pytest.approx(time.time(), abs=1e-3) and "is taken as equal" in caplog.text


async def test_a_cancelled_measurement_is_cancelled():
    remote = Remote(2.0, [(1.0, 0.0)])
    measuring = asyncio.create_task(HostClocks(remote.ask).clock_of("far", "alice"))
    await asyncio.sleep(0.5)
    measuring.cancel()
    await asyncio.wait({measuring})
    assert measuring.cancelled() and remote.calls == 1


async def test_setting_the_local_wall_clock_does_not_change_a_measured_clock(monkeypatch):
    clocks = HostClocks(Remote(2.0).ask)
    now, before_s = await clocks.clock_of("far", "alice"), time.time()
    monkeypatch.setattr(time, "time", lambda: before_s + 3600)
    assert now() == pytest.approx(before_s + 2.0, abs=1e-3)


# --- a hub whose session is on a host with another clock


class SkewedStitch:
    """Stitch on a host whose clock is `skew_s` ahead, with a session at `position`."""

    def __init__(self, idle_path, position: int, skew_s: float) -> None:
        self.skew_s = skew_s
        self.clock = LiveClock.starting(position, time.time() + skew_s, 25)
        self.events: asyncio.Queue[LiveEvent] = asyncio.Queue()
        self.send(start=LiveStart("alice", "ann", SPEC, str(idle_path), "far"))

    def send(self, **what) -> None:
        self.events.put_nowait(LiveEvent(self.clock, **what))

    def subscribe(self, session_id: str, position: int | None) -> SkewedStitch:
        return self

    def __aiter__(self):
        return self

    async def __anext__(self) -> LiveEvent:
        return await self.events.get()

    def cancel(self) -> None:
        pass

    async def ask(self, session_id: str) -> tuple[str, float]:
        await asyncio.sleep(0.004)
        return "far", time.time() + self.skew_s


@pytest.fixture(scope="module")
def idle_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("idle") / "ann.mp4"
    path.write_bytes(encode_idle(AVATAR, SPEC))
    return path


async def watch(viewer, seconds: float) -> list[float]:
    """The grey level of each frame that a viewer gets."""
    data = b""

    async def read() -> None:
        nonlocal data
        async for part in viewer:
            data += part

    task = asyncio.create_task(read())
    await asyncio.sleep(seconds)
    task.cancel()
    return shown(data)[1]


def greys(first: int, count: int) -> list[int]:
    """The grey levels of idle motion from a position on."""
    return [20 + 4 * int(TIMELINE[position]) for position in range(first, first + count)]


def is_idle_from(positions: range, seen: list[float]) -> bool:
    return any(np.allclose(seen, greys(position, len(seen)), atol=2) for position in positions)


def white(count: int, position: int) -> list[LiveFragment]:
    """Speech of white frames."""
    made = fragments(np.full((count, SIDE, SIDE, 3), 250, np.uint8))
    starts = [(fragment, position + fragment.video_start // SPEC.frame_ticks) for fragment in made]
    return [
        piece for fragment, start in starts for piece in split_fragment(fragment, start, 1, not fragment.video_start)
    ]


@pytest.mark.parametrize("skew_s", [-2.0, 0.0, 2.0])
async def test_idle_motion_follows_the_clock_of_the_sessions_host(idle_path, skew_s):
    stitch = SkewedStitch(idle_path, 100, skew_s)
    hubs = Hubs(stitch.subscribe, lambda: 100, stitch.ask)
    assert is_idle_from(range(88, 104), await watch(await hubs.view("alice"), 1.0))
    await hubs.stop()


@pytest.mark.parametrize("skew_s", [-2.0, 2.0])
async def test_speech_is_shown_when_it_is_due_by_the_clock_of_the_sessions_host(idle_path, skew_s):
    stitch = SkewedStitch(idle_path, 100, skew_s)
    hubs = Hubs(stitch.subscribe, lambda: 100, stitch.ask)
    viewer = await hubs.view("alice")
    position = viewer.hub._loop.grid.ceil(120)
    for fragment in white(8, position):
        due_s = stitch.clock.time_of(fragment.position) - (time.time() + skew_s)
        asyncio.get_running_loop().call_later(due_s - 0.08, lambda fragment=fragment: stitch.send(piece=fragment))
    seen = await watch(viewer, 2.2)
    spoken = [k for k, level in enumerate(seen) if level > 240]
    assert spoken == list(range(spoken[0], spoken[0] + 8))
    assert np.allclose(seen[: spoken[0]], greys(position - spoken[0], spoken[0]), atol=2)  # and at its position
    await hubs.stop()


async def test_without_measuring_the_picture_would_be_off_by_the_skew(idle_path):
    stitch = SkewedStitch(idle_path, 100, 2.0)
    hubs = Hubs(stitch.subscribe, lambda: 100)
    assert not is_idle_from(range(88, 104), await watch(await hubs.view("alice"), 0.6))
    await hubs.stop()
