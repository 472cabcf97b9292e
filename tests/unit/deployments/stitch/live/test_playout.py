"""The playout of one utterance: placed ahead of the clock, released when due, held in an underrun, stopped at once."""

import asyncio
import time
from contextlib import aclosing

import numpy as np
import pytest

from deployments.common.messages import LiveStart
from deployments.stitch.live.broadcast import Broadcast
from deployments.stitch.live.pacing import RELEASE_LEAD_S, PaceEstimate
from deployments.stitch.live.playout import DECIDE_LEAD_S, MIN_HOLD_FRAMES, Playout
from models.avatar.playback import sway
from models.live.timeline import LIVE_FRAMES, IdleGrid, LiveClock, LiveFragment
from models.media.encode import UtteranceEncoder
from tests.support.live import RATE, SPEC, levels
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

START = LiveStart("alice", "ann", SPEC, "/nowhere")
QUICK = {"first_s": 0.05, "deviation_s": 0.01, "frame_s": 0.001}


class Live:
    """A broadcast with a playout, the fragments that a listener received, and what was written.

    `async with` runs the playout and stops it at the end of the block.
    """

    def __init__(self, position: int = 0, pace: PaceEstimate | None = None, max_ahead_s: float = 4.0) -> None:
        self.broadcast = Broadcast(START, IdleGrid(100), LiveClock.starting(position, time.time(), 25))
        self.written: list[tuple[int, int]] = []  # position, frames
        self.rests: list[list[int]] = []  # positions of the head
        self.received: list[tuple[float, LiveFragment]] = []  # with the time
        self.pace = pace or PaceEstimate(**QUICK)
        self.playout = Playout(self.broadcast, self.pace, self.rest, self.write, 1, max_ahead_s)
        self.encoder = UtteranceEncoder(SPEC)

    async def rest(self, positions) -> tuple[bytes, ...]:
        self.rests.append(list(positions))
        return (b"rest",) * len(positions)

    def write(self, fragment, position: int) -> None:
        self.written.append((position, fragment.frames))

    async def listen(self) -> None:
        async with aclosing(self.broadcast.listen()) as events:
            async for event in events:
                if event.piece is not None:
                    self.received.append((time.time(), event.piece))

    def made(self, frames: int, last: bool = False) -> list:
        return self.encoder.push(levels(frames), np.zeros(frames * RATE // 25, np.float32), last)

    async def finish(self) -> None:
        """No more comes: wait until everything is shown."""
        self.playout.end()
        await self.task
        await asyncio.sleep(0.02)

    @property
    def speech(self) -> list[LiveFragment]:
        """Received fragments of speech, without holds."""
        return [part for _, part in self.received if part.utterance and part.next_position > part.position]

    def holds(self, place: int) -> list[int]:
        """Frames of the utterance before which speech was held, one per sequence of holds."""
        held = [part.position - place for _, part in self.received if part.position == part.next_position]
        return [frame for k, frame in enumerate(held) if k == 0 or held[k - 1] != frame]

    async def __aenter__(self) -> "Live":
        self.listener = asyncio.create_task(self.listen())
        await asyncio.sleep(0)
        self.task = asyncio.create_task(self.playout.run())
        return self

    async def __aexit__(self, *error) -> None:
        self.playout.stop()
        await self.task
        self.listener.cancel()


# --- place segments


@pytest.mark.parametrize("position", range(12))
def test_speech_starts_on_the_idle_grid_and_not_before_it_can_be_there(position):
    live = Live(position, PaceEstimate(first_s=0.3, deviation_s=0.05, frame_s=0.02))
    place = live.playout.place(0, 50)
    lead_s = live.broadcast.clock.time_of(place) - time.time()
    assert place % LIVE_FRAMES == 0 and 0.48 < lead_s < 0.48 + 5 / 25


def test_a_machine_slower_than_real_time_starts_later_so_that_speech_need_not_stop():
    fast = Live(0, PaceEstimate(0.3, 0.05, 0.03)).playout.place(0, 100)
    slow = Live(0, PaceEstimate(0.3, 0.05, 0.05)).playout.place(0, 100)  # 100 frames take 1 s longer than they last
    assert slow - fast == pytest.approx(25, abs=LIVE_FRAMES)


def test_utterances_that_share_a_machine_start_later():
    alone = Live(0, PaceEstimate(0.3, 0.05, 0.03)).playout.place(0, 100)
    shared = Live(0, PaceEstimate(0.3, 0.05, 0.03, speakers=2)).playout.place(0, 100)  # 60 ms per frame: 2 s too slow
    assert shared - alone == pytest.approx(50, abs=LIVE_FRAMES)


def test_segments_follow_one_another_if_they_can_be_there_in_time():
    live = Live()
    first = live.playout.place(0, 50)
    assert live.playout.place(50, 30) == first + 50
    assert live.playout.continues_at(50) and not live.playout.continues_at(80)


async def test_a_segment_is_placed_by_how_fast_this_utterance_is_made_and_not_by_a_guess():
    """Nothing is known of eight speakers that begin at once, which turn out to be made in time."""
    live = Live(0, PaceEstimate(speakers=8))
    first = live.playout.place(0, 136)
    await asyncio.sleep(0.2)
    for _ in range(6):
        await asyncio.sleep(12 * 0.03)
        await live.playout.push(live.made(12))
    assert live.playout.place(136, 100) == first + 136


def test_a_segment_is_at_most_four_seconds_later_than_the_one_before_however_slow_the_machine_is():
    live = Live(0, PaceEstimate(frame_s=0.1, speakers=6))
    first = live.playout.place(0, 50)
    assert 100 <= live.playout.place(50, 30) - (first + 50) < 100 + LIVE_FRAMES


@pytest.mark.parametrize(("slow_s", "frame_s", "held"), [(4.4, 0.024, False), (30.0, 0.05, True)])
async def test_a_segment_that_may_be_late_follows_directly_and_is_held_only_if_it_is_late(slow_s, frame_s, held):
    """A machine is slow while the segment is placed. Before that is due it is fast again, or stays slow."""
    made = 0
    async with Live(0, PaceEstimate(frame_s=0.003, speakers=8)) as live:
        first = live.playout.place(0, 136)
        slow_until_s = time.time() + slow_s
        while made < 272:
            frames = min(12, 136 - made % 136)
            await asyncio.sleep(frames * (0.06 if time.time() < slow_until_s else frame_s))
            made += frames
            close = made == 272 or (made == 136 and not live.playout.continues_at(136))
            await live.playout.push(live.made(frames, last=close))
            if close:
                live.encoder = UtteranceEncoder(SPEC, live.encoder.clock)
            if made == 72:
                assert live.playout.place(136, 136) == first + 136 and not live.playout.continues_at(136)
        await live.finish()
    assert (136 in live.holds(first)) is held
    assert [part.position for part in live.speech[1:]] == [part.next_position for part in live.speech[:-1]]


# --- release


async def test_fragments_are_released_when_they_are_due_and_a_rest_ends_on_the_grid():
    async with Live() as live:
        place = live.playout.place(0, 11)
        await live.playout.push(live.made(11, last=True))
        await live.finish()
    positions = [(part.position, part.next_position) for _, part in live.received]
    assert positions[:3] == [(place, place + 4), (place + 4, place + 8), (place + 8, place + 11)]
    assert positions[3:] == [(place + 11, place + 14), (place + 14, place + 16)] and (place + 16) % LIVE_FRAMES == 0
    assert live.rests == [[place + 11, place + 12, place + 13], [place + 14, place + 15]]
    for received_s, part in live.received[:3]:
        assert received_s == pytest.approx(live.broadcast.clock.time_of(part.position) - RELEASE_LEAD_S, abs=0.02)
    assert sum(frames for _, frames in live.written) == 11 and live.written[0][0] == place
    assert live.playout.holds == 0 and live.playout.released_frames == 11


async def test_a_pause_between_segments_is_a_rest_and_the_next_one_starts_on_the_grid():
    async with Live() as live:
        first = live.playout.place(0, 8)
        await live.playout.push(live.made(8, last=True))
        await asyncio.sleep(live.broadcast.clock.time_of(first + 8) - time.time() + 0.1)
        second = live.playout.place(8, 4)
        assert second % LIVE_FRAMES == 0 and second > first + 8
        live.encoder = UtteranceEncoder(SPEC, live.encoder.clock)
        await live.playout.push(live.made(4, last=True))
        await live.finish()
    assert live.playout.holds == 0 and live.rests[0][0] == first + 8
    assert [position for position, _ in live.written] == [first, first + 4, second]


# --- hold


async def test_the_head_sways_during_an_underrun_and_no_frame_is_lost():
    async with Live() as live:
        place = live.playout.place(0, 8)
        zero_s = live.broadcast.clock.zero_s
        await asyncio.sleep(live.broadcast.clock.time_of(place) - time.time() - DECIDE_LEAD_S + 0.1)
        await live.playout.push(live.made(8, last=True))
        await live.finish()
    held = MIN_HOLD_FRAMES
    assert [*live.rests[0], *live.rests[1]] == sway(place, held) and live.playout.holds == 1
    assert live.playout.held_frames == held
    assert live.broadcast.clock.zero_s - zero_s == pytest.approx(held / 25)
    *holds, first, second = (part for _, part in live.received[:4])
    assert {(hold.position, hold.next_position, hold.utterance) for hold in holds} == {(place, place, 0)}
    assert [first.position, second.position] == [place, place + 4]
    assert sum(frames for _, frames in live.written) == 8


@pytest.mark.parametrize("slower", [1.4, 2.0])
async def test_a_sentence_that_is_made_too_slowly_is_held_before_its_start_and_then_plays_without_a_stop(slower):
    burst_s = slower * 12 / 25
    async with Live(0, PaceEstimate(0.1, 0.05, 0.04)) as live:
        place = live.playout.place(0, 54)
        await live.playout.push(live.made(6))
        for k in range(4):
            await asyncio.sleep(burst_s)
            await live.playout.push(live.made(12, last=k == 3))
        await live.finish()
    assert live.holds(place) == [0]
    assert [part.position for part in live.speech[1:]] == [part.next_position for part in live.speech[:-1]]
    assert sum(part.frames for part in live.speech) == 54
    behind_s = 54 / 25 * (slower - 1)  # at the last frame
    assert behind_s - burst_s < live.playout.held_frames / 25 < 54 / 25 * slower * 1.3


# middles of pauses, and the starts of live fragments next to them: these start at 16, 20, 24 …, none has one frame
@pytest.mark.parametrize(("pauses", "starts"), [((20, 44), (20, 44)), ((19, 43), (20, 44)), ((17, 41), (16, 40))])
async def test_speech_that_becomes_slower_while_it_plays_is_held_at_a_pause_only(pauses, starts):
    async with Live(0, PaceEstimate(0.1, 0.05, 0.02)) as live:
        place = live.playout.place(0, 68)
        live.playout.add_pauses(list(pauses))
        for k, burst_s in enumerate([0.0, 0.16, 0.16, 0.16, 0.9, 0.9, 0.9, 0.9, 0.9]):
            await asyncio.sleep(burst_s)
            await live.playout.push(live.made(8 if k else 4, last=k == 8))
        await live.finish()
    assert starts[0] in live.holds(place) and set(live.holds(place)) <= {0, *starts}
    assert live.playout.released_frames == 68


async def test_speech_that_was_held_inside_a_word_goes_on_only_when_enough_of_it_is_made():
    async with Live(0, PaceEstimate(0.05, 0.01, 0.02)) as live:
        place = live.playout.place(0, 54)
        await live.playout.push(live.made(18))
        for k in range(3):
            await asyncio.sleep(1.2 if k == 0 else 0.6)
            await live.playout.push(live.made(12, last=k == 2))
        await live.finish()
    assert live.holds(place) == [12]  # once, though the next fragments are late, too
    assert live.playout.holds == 1 and live.playout.released_frames == 54


# --- backpressure


async def test_push_does_not_wait_for_a_segment_that_is_placed_far_ahead():
    async with Live(0, PaceEstimate(2.0, 0.1, 0.01), max_ahead_s=1.5) as live:
        place, start_s = live.playout.place(0, 30), time.time()
        for k in range(2):
            await live.playout.push(live.made(15, last=k == 1))
        live.playout.end()
        assert live.broadcast.clock.time_of(place) - start_s > 2.0 and time.time() == start_s
    assert live.playout.supply.made == 30


async def test_push_waits_while_too_much_is_made_and_not_shown():
    async with Live(0, max_ahead_s=0.8) as live:
        place, start_s = live.playout.place(0, 60), time.time()
        for k in range(5):
            await live.playout.push(live.made(12, last=k == 4))
        ahead_s = live.broadcast.clock.time_of(place + 60) - time.time()
        assert (60 - live.playout.released_frames) / 25 <= 0.8
    assert time.time() - start_s > 0.8 and ahead_s < 0.8 + 12 / 25


# --- stop


async def test_a_stop_shows_nothing_more_and_writes_exactly_what_was_shown():
    async with Live() as live:
        place = live.playout.place(0, 60)
        await live.playout.push(live.made(60, last=True))
        live.playout.end()
        await asyncio.sleep(live.broadcast.clock.time_of(place + 6) - time.time())
        stopped_s = time.time()
        live.playout.stop()
        await live.task
        await asyncio.sleep(0.02)
    end = live.speech[-1].next_position
    assert live.broadcast.clock.time_of(end) - stopped_s < 0.3  # of the stream
    assert all(received_s <= stopped_s for received_s, part in live.received if part.utterance)
    assert sum(frames for _, frames in live.written) == end - place == live.playout.released_frames
    assert live.rests[0][0] == end
    rest = sum(len(positions) for positions in live.rests)
    assert 2 <= rest <= 5 and (end + rest) % LIVE_FRAMES == 0


async def test_a_stop_ends_a_hold_and_the_head_goes_on_from_where_it_is():
    async with Live() as live:
        live.playout.place(0, 60)
        await asyncio.sleep(0.6)
        assert live.playout.held_frames > 0
        stopped_s = time.time()
        live.playout.stop()
        await live.task
        assert time.time() == stopped_s and live.written == []
        await asyncio.sleep(0.02)
    shown = [position for rest in live.rests for position in rest]
    assert np.abs(np.diff(shown)).max() <= 1
    clock, last = live.broadcast.clock, live.received[-1][1]
    assert last.next_position == shown[-1] + 1 and last.next_position % LIVE_FRAMES == 0
    received = sum(part.frames for _, part in live.received)
    first_due_s = live.received[0][0] + DECIDE_LEAD_S
    assert clock.time_of(last.next_position) == pytest.approx(first_due_s + received / 25, abs=0.06)


async def test_a_stop_before_the_first_frame_shows_and_writes_nothing():
    async with Live() as live:
        live.playout.place(0, 60)
        live.playout.stop()
        await live.task
    assert live.received == live.written == live.rests == []
    assert live.broadcast.reserved_until == 0
