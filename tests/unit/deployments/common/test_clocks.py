"""The time at another host: told from calls alone, to half of the quickest; and a hub that plays by it."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from deployments.common import clocks as module
from deployments.common.clocks import HostClocks, own_host
from deployments.common.messages import LiveEvent, LiveStart
from deployments.ingress.live.hubs import Live
from models.live.timeline import LiveClock, LiveFragment, encode_idle, split_fragment
from tests.support.live import SIDE, SPEC, fragments, shown
from tests.unit.deployments.ingress.live.test_hubs import AVATAR, Stitch, greys, watch


class Remote:
    """A host whose clock is `skew_s` ahead, and whose calls take `there_s` and `back_s`, and what it notes besides."""

    def __init__(self, skew_s: float, ways: list[tuple[float, float]] | None = None) -> None:
        self.skew_s, self.ways, self.calls = skew_s, ways or [(0.0, 0.0)], 0
        self.took_s: list[float] = []

    async def ask(self, session_id: str) -> tuple[str, float]:
        began_s = time.monotonic()
        there_s, back_s = self.ways[min(self.calls, len(self.ways) - 1)]
        self.calls += 1
        await asyncio.sleep(there_s)
        told_s = time.time() + self.skew_s
        await asyncio.sleep(back_s)
        self.took_s.append(time.monotonic() - began_s)
        return "far", told_s


def off_s(clocks: HostClocks, remote: Remote) -> float:
    """By how much the clock that is told differs from the one that is there."""
    return clocks.now("far") - (time.time() + remote.skew_s)


@pytest.mark.parametrize("skew_s", [-2.0, 0.0, 2.0, 86_400.0])
async def test_a_hosts_time_is_known_to_half_of_the_quickest_call(skew_s):
    remote = Remote(skew_s, [(0.2, 0.0), (0.01, 0.03), (0.05, 0.0), (0.1, 0.1)])  # each way as long as it likes
    clocks = HostClocks(remote.ask)
    now = await clocks.clock_of("far", "alice")
    assert remote.calls == module.FIRST_CALLS
    error_s = clocks.best_sample("far").error_s
    assert error_s == pytest.approx(min(remote.took_s) / 2, abs=0.015)
    assert abs(off_s(clocks, remote)) <= error_s + 0.002
    assert abs(now() - clocks.now("far")) < 0.01


async def test_the_quickest_counts_and_not_the_latest():
    remote = Remote(2.0, [(0.0, 0.0)] * 4 + [(0.3, 0.0)])
    clocks = HostClocks(remote.ask)
    await clocks.clock_of("far", "alice")
    await clocks._sample("alice")
    assert abs(off_s(clocks, remote)) < 0.02  # the slow call alone would be 0.15 s off


async def test_a_clock_that_is_set_there_is_followed_at_the_next_call():
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    await clocks.clock_of("far", "alice")
    remote.skew_s = -1.0
    await clocks._sample("alice")
    assert abs(off_s(clocks, remote)) < 0.02


async def test_a_host_is_asked_again_after_a_while_and_not_before(monkeypatch):
    monkeypatch.setattr(module, "REFRESH_S", 0.2)
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    await clocks.clock_of("far", "alice")
    for _ in range(10):
        clocks.refresh("far", "alice")
    await asyncio.sleep(0.05)
    assert remote.calls == 4
    await asyncio.sleep(0.2)
    for _ in range(10):
        clocks.refresh("far", "alice")  # as a hub's keeper does, twice a second
    await asyncio.sleep(0.05)
    assert remote.calls == 5


async def test_a_known_host_is_not_asked_for_every_session():
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    for session_id in ("alice", "bob", "carol"):
        await clocks.clock_of("far", session_id)
    assert remote.calls == module.FIRST_CALLS


async def test_this_host_needs_no_call_and_one_that_cannot_be_asked_is_taken_to_be_in_step(caplog):
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    assert await clocks.clock_of(own_host(), "alice") is time.time and remote.calls == 0
    assert await HostClocks().clock_of("far", "alice") is time.time

    async def fails(session_id: str) -> tuple[str, float]:
        raise RuntimeError("no replica")

    now = await HostClocks(fails).clock_of("far", "alice")
    assert abs(now() - time.time()) < 0.01 and "is taken as equal" in caplog.text


async def test_the_local_clock_may_be_set_without_harm(monkeypatch):
    remote = Remote(2.0)
    clocks = HostClocks(remote.ask)
    now, before_s = await clocks.clock_of("far", "alice"), time.time()
    monkeypatch.setattr(time, "time", lambda: before_s + 3600)
    assert abs(now() - (before_s + 2.0)) < 0.5


# --- a hub beside a Stitch whose host's clock is off


class Skewed(Stitch):
    """Stitch on a host whose clock is `skew_s` ahead: its session's clock, and its answers, go by that."""

    def __init__(self, path, position: int, skew_s: float) -> None:
        super().__init__(path, position)
        self.skew_s = skew_s
        self.clock = LiveClock.starting(position, time.time() + skew_s, 25)

    def subscribe(self, session_id: str, position: int | None):
        stream = super().subscribe(session_id, position)
        stream.start = LiveEvent(self.clock, LiveStart(session_id, "ann", SPEC, str(self.path), "far"))
        return stream

    async def ask(self, session_id: str) -> tuple[str, float]:
        await asyncio.sleep(0.004)
        return "far", time.time() + self.skew_s


@pytest.fixture(scope="module")
def idle_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("idle") / "ann.mp4"
    path.write_bytes(encode_idle(AVATAR, SPEC))
    return path


@pytest.mark.parametrize("skew_s", [-2.0, 2.0])
async def test_a_session_of_a_host_whose_clock_is_off_is_shown_in_time(idle_path, skew_s):
    stitch = Skewed(idle_path, 100, skew_s)
    on_air = Live(stitch.subscribe, lambda: 100, stitch.ask)
    viewer = await on_air.view("alice")
    _, seen = shown((await watch(viewer, 1.0))[0])
    assert any(np.allclose(seen, greys(p, len(seen)), atol=2) for p in range(88, 104))  # where Stitch's clock is
    await on_air.stop()


def white(count: int, position: int) -> list[LiveFragment]:
    """Speech that shows as white frames."""
    made = fragments(np.full((count, SIDE, SIDE, 3), 250, np.uint8))
    starts = [(fragment, position + fragment.video_start // SPEC.frame_ticks) for fragment in made]
    return [
        piece for fragment, start in starts for piece in split_fragment(fragment, start, 1, fragment.video_start == 0)
    ]


@pytest.mark.parametrize("skew_s", [-2.0, 2.0])
async def test_its_speech_is_neither_late_nor_early(idle_path, skew_s):
    stitch = Skewed(idle_path, 100, skew_s)
    on_air = Live(stitch.subscribe, lambda: 100, stitch.ask)
    viewer = await on_air.view("alice")
    hub = viewer.hub
    at = hub._loop.grid.ceil(stitch.clock.position(time.time() + skew_s) + 20)
    for piece in white(8, at):
        due_s = stitch.clock.time_of(piece.position) - 0.08 - (time.time() + skew_s)
        asyncio.get_running_loop().call_later(max(0.0, due_s), stitch.send, piece)
    data, _ = await watch(viewer, 2.2)
    _, seen = shown(data)
    spoken = [k for k, level in enumerate(seen) if level > 240]
    assert spoken == list(range(spoken[0], spoken[0] + 8)) and hub.late == 0
    assert np.allclose(seen[: spoken[0]], greys(at - spoken[0], spoken[0]), atol=2)  # and at their place
    await on_air.stop()


async def test_without_asking_the_same_session_would_be_two_seconds_off(idle_path):
    stitch = Skewed(idle_path, 100, 2.0)
    on_air = Live(stitch.subscribe, lambda: 100)
    viewer = await on_air.view("alice")
    _, seen = shown((await watch(viewer, 0.6))[0])
    assert not any(np.allclose(seen, greys(p, len(seen)), atol=2) for p in range(88, 104))
    await on_air.stop()
