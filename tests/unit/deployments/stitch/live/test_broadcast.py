"""A performance on air: placed ahead of the clock, released when due, held when late, cut at once."""

import asyncio
import time
from contextlib import aclosing

import numpy as np
import pytest

from deployments.common.messages import LiveStart
from deployments.stitch.live.broadcast import MAX_QUEUED_EVENTS, Broadcast
from deployments.stitch.live.pacing import PaceEstimate
from deployments.stitch.live.playout import DECIDE_LEAD_S, MIN_HOLD_FRAMES, Playout
from models.avatar.playback import sway
from models.live.timeline import LIVE_FRAMES, IdleGrid, LiveClock, LiveFragment
from models.media.encode import UtteranceEncoder
from tests.support.live import RATE, SPEC, levels
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]  # a busy machine is not what is tested here: everything is on time

START = LiveStart("alice", "ann", SPEC, "/nowhere")
QUICK = {"first_s": 0.05, "deviation_s": 0.01, "frame_s": 0.001}


class Stage:
    """A broadcast with a performance, a listener that notes when pieces come, and what was written."""

    def __init__(self, position: int = 0, pace: PaceEstimate | None = None, ahead_s: float = 4.0) -> None:
        self.broadcast = Broadcast(START, IdleGrid(100), LiveClock.starting(position, time.time(), 25))
        self.written: list[tuple[int, int]] = []  # position, frames
        self.rests: list[list[int]] = []  # positions of the head
        self.came: list[tuple[float, LiveFragment]] = []
        self.pace = pace or PaceEstimate(**QUICK)
        self.playout = Playout(self.broadcast, self.pace, self.rest, self.write, 1, ahead_s)
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
                    self.came.append((time.time(), event.piece))

    def made(self, frames: int, last: bool = False) -> list:
        return self.encoder.push(levels(frames), np.zeros(frames * RATE // 25, np.float32), last)

    async def __aenter__(self) -> "Stage":
        self.listener = asyncio.create_task(self.listen())
        await asyncio.sleep(0)
        self.task = asyncio.create_task(self.playout.run())
        return self

    async def __aexit__(self, *error) -> None:
        self.playout.stop()
        await self.task
        self.listener.cancel()


# --- where segments go


def test_speech_begins_on_the_grid_and_no_sooner_than_it_can_be_there():
    for position in range(0, 12):
        stage = Stage(position, PaceEstimate(first_s=0.3, deviation_s=0.05, frame_s=0.02))
        place = stage.playout.place(0, 50)
        lead_s = stage.broadcast.clock.time_of(place) - time.time()
        assert place % LIVE_FRAMES == 0 and 0.48 < lead_s < 0.48 + 5 / 25


def test_a_machine_slower_than_its_video_begins_later_so_that_it_need_not_stop():
    fast = Stage(0, PaceEstimate(0.3, 0.05, 0.03)).playout.place(0, 100)
    slow = Stage(0, PaceEstimate(0.3, 0.05, 0.05)).playout.place(0, 100)  # 100 frames take 1 s longer than they last
    assert slow - fast == pytest.approx(25, abs=LIVE_FRAMES)


def test_who_share_a_machine_begin_later_than_who_has_it_alone():
    alone = Stage(0, PaceEstimate(0.3, 0.05, 0.03)).playout.place(0, 100)
    shared = Stage(0, PaceEstimate(0.3, 0.05, 0.03, speakers=2)).playout.place(0, 100)  # 60 ms a frame: 2 s too slow
    assert shared - alone == pytest.approx(50, abs=LIVE_FRAMES)
    pace = PaceEstimate(frame_s=0.03, speakers=2)
    for _ in range(40):
        pace.add_frames(8, 8 * 0.08)
    assert pace.frame_s == pytest.approx(0.04, abs=0.001)


def test_segments_follow_on_each_other_where_there_is_time():
    stage = Stage(0)
    first = stage.playout.place(0, 50)
    assert stage.playout.place(50, 30) == first + 50
    assert stage.playout.continues_at(50) and not stage.playout.continues_at(80)


def test_the_pace_learns_from_what_was_seen():
    pace = PaceEstimate(0.35, 0.1, 0.025)
    for _ in range(30):
        pace.add_first_fragment(0.6)
        pace.add_frames(8, 0.4)
    assert pace.first_s == pytest.approx(0.6, abs=0.01) and pace.deviation_s < 0.02
    assert pace.frame_s == pytest.approx(0.05, abs=0.001)


# --- what is shown


async def test_pieces_leave_when_they_are_due_and_end_on_the_grid():
    async with Stage(0) as stage:
        place = stage.playout.place(0, 11)
        await stage.playout.push(stage.made(11, last=True))
        stage.playout.end()
        await stage.task
        await asyncio.sleep(0.02)
    positions = [(piece.position, piece.next_position) for _, piece in stage.came]
    assert positions[:3] == [(place, place + 4), (place + 4, place + 8), (place + 8, place + 11)]
    assert positions[3:] == [(place + 11, place + 14), (place + 14, place + 16)] and (place + 16) % LIVE_FRAMES == 0
    assert stage.rests == [[place + 11, place + 12, place + 13], [place + 14, place + 15]]
    for came_s, piece in stage.came[:3]:
        assert came_s == pytest.approx(stage.broadcast.clock.time_of(piece.position) - 0.08, abs=0.04)
    assert sum(frames for _, frames in stage.written) == 11 and stage.written[0][0] == place
    assert stage.playout.holds == 0 and stage.playout.released_frames == 11


async def test_the_head_sways_while_speech_is_late_and_no_frame_is_lost():
    async with Stage(0) as stage:
        place = stage.playout.place(0, 8)
        zero_s = stage.broadcast.clock.zero_s
        late_s = stage.broadcast.clock.time_of(place) - time.time() - DECIDE_LEAD_S + 0.1
        await asyncio.sleep(late_s)
        await stage.playout.push(stage.made(8, last=True))
        stage.playout.end()
        await stage.task
        await asyncio.sleep(0.02)
    held = MIN_HOLD_FRAMES
    assert [*stage.rests[0], *stage.rests[1]] == sway(place, held) and stage.playout.holds == 1
    assert stage.playout.held_frames == held
    assert stage.broadcast.clock.zero_s - zero_s == pytest.approx(held / 25)
    *holds, first, second = (piece for _, piece in stage.came[:4])
    assert {(hold.position, hold.next_position, hold.utterance) for hold in holds} == {(place, place, 0)}
    assert [first.position, second.position] == [place, place + 4]
    assert sum(frames for _, frames in stage.written) == 8


class Slow(Stage):
    """What is said comes a fragment of 12 frames each `burst_s`, and pauses before the frames in `breaks`."""

    async def say(self, fragments: int, burst_s: float, breaks: list[int]) -> int:
        place = self.playout.place(0, 6 + 12 * fragments)
        self.playout.add_pauses(breaks)
        await self.playout.push(self.made(6))
        for k in range(fragments):
            await asyncio.sleep(burst_s)
            await self.playout.push(self.made(12, last=k == fragments - 1))
        self.playout.end()
        await self.task
        await asyncio.sleep(0.02)
        return place

    def stops(self, place: int) -> list[int]:
        """Frames of the utterance before which speech was held, one for each hold in a row."""
        held = [piece.position - place for _, piece in self.came if piece.position == piece.next_position]
        return [frame for k, frame in enumerate(held) if k == 0 or held[k - 1] != frame]


@pytest.mark.parametrize("slower", [1.4, 2.0])
async def test_a_sentence_that_is_made_too_slowly_waits_before_it_begins_and_is_not_torn(slower):
    async with Slow(0, PaceEstimate(0.1, 0.05, 0.04)) as stage:
        place = await stage.say(4, slower * 12 / 25, [])
    assert stage.stops(place) == [0]
    spoken = [piece for _, piece in stage.came if piece.utterance and piece.next_position > piece.position]
    assert [p.position for p in spoken[1:]] == [p.next_position for p in spoken[:-1]]
    assert sum(piece.frames for piece in spoken) == 54
    least_s = 54 / 25 * (slower - 1) - 12 / 25 * slower
    assert least_s < stage.playout.held_frames / 25 < 54 / 25 * slower * 1.3


# pauses' middles, and where pieces meet next to them: they begin at 16, 20, 24 …, and none is of one frame
@pytest.mark.parametrize(("middles", "edges"), [((20, 44), (20, 44)), ((19, 43), (20, 44)), ((17, 41), (16, 40))])
async def test_speech_that_slows_down_while_it_is_shown_stops_at_a_pause_and_nowhere_else(middles, edges):
    async with Slow(0, PaceEstimate(0.1, 0.05, 0.02)) as stage:
        place = stage.playout.place(0, 68)
        stage.playout.add_pauses(list(middles))
        for k, burst_s in enumerate([0.0, 0.16, 0.16, 0.16, 0.9, 0.9, 0.9, 0.9, 0.9]):
            await asyncio.sleep(burst_s)
            await stage.playout.push(stage.made(8 if k else 4, last=k == 8))
        stage.playout.end()
        await stage.task
        await asyncio.sleep(0.02)
    assert edges[0] in stage.stops(place) and set(stage.stops(place)) <= {0, *edges}
    assert stage.playout.released_frames == 68


async def test_speech_that_stopped_in_a_word_goes_on_only_when_there_is_enough_of_it():
    async with Stage(0) as stage:
        place = stage.playout.place(0, 54)
        await stage.playout.push(stage.made(18))
        for k in range(3):
            await asyncio.sleep(1.2 if k == 0 else 0.6)
            await stage.playout.push(stage.made(12, last=k == 2))
        stage.playout.end()
        await stage.task
        await asyncio.sleep(0.02)
    held = [piece.position - place for _, piece in stage.came if piece.position == piece.next_position]
    assert set(held) == {12}  # once, though the next fragments came late, too
    assert stage.playout.holds == 1 and stage.playout.released_frames == 54


async def test_a_hold_ends_at_once_with_a_cut():
    async with Stage(0) as stage:
        stage.playout.place(0, 60)
        await asyncio.sleep(0.6)
        assert stage.playout.held_frames > 0
        cut_s = time.time()
        stage.playout.stop()
        await stage.task
        await asyncio.sleep(0.02)
    assert time.time() - cut_s < 0.15 and stage.written == []
    shown = [position for rest in stage.rests for position in rest]
    assert np.abs(np.diff(shown)).max() <= 1  # the head does not leap back
    clock, last = stage.broadcast.clock, stage.came[-1][1]
    assert last.next_position == shown[-1] + 1 and last.next_position % LIVE_FRAMES == 0
    received = sum(piece.frames for _, piece in stage.came)
    first_s = stage.came[0][0] + DECIDE_LEAD_S  # when the first was due
    assert clock.time_of(last.next_position) == pytest.approx(first_s + received / 25, abs=0.06)


async def test_a_pause_between_sentences_is_filled_with_rest_and_the_next_begins_anew():
    async with Stage(0) as stage:
        first = stage.playout.place(0, 8)
        await stage.playout.push(stage.made(8, last=True))
        await asyncio.sleep(stage.broadcast.clock.time_of(first + 8) - time.time() + 0.1)
        second = stage.playout.place(8, 4)
        assert second % LIVE_FRAMES == 0 and second > first + 8
        stage.encoder = UtteranceEncoder(SPEC, stage.encoder.clock)
        await stage.playout.push(stage.made(4, last=True))
        stage.playout.end()
        await stage.task
    assert stage.playout.holds == 0 and stage.rests[0][0] == first + 8
    assert [position for position, _ in stage.written] == [first, first + 4, second]


async def test_a_sentence_placed_far_ahead_is_made_meanwhile():
    async with Stage(0, PaceEstimate(2.0, 0.1, 0.01), ahead_s=1.5) as stage:
        place = stage.playout.place(0, 30)
        began_s = time.time()
        for k in range(2):
            await stage.playout.push(stage.made(15, last=k == 1))
        stage.playout.end()
        assert stage.broadcast.clock.time_of(place) - began_s > 2.0
        assert time.time() - began_s < 1.0
    assert stage.playout.supply.made == 30


async def test_what_is_made_waits_for_the_clock():
    async with Stage(0, ahead_s=0.8) as stage:
        place = stage.playout.place(0, 60)
        began_s = time.time()
        for k in range(5):
            await stage.playout.push(stage.made(12, last=k == 4))
        ahead_s = stage.broadcast.clock.time_of(place + 60) - time.time()
    assert time.time() - began_s > 0.8 and ahead_s < 0.8 + 12 / 25


# --- a cut


async def test_a_cut_shows_nothing_more_and_writes_what_was_shown():
    async with Stage(0) as stage:
        place = stage.playout.place(0, 60)
        await stage.playout.push(stage.made(60, last=True))
        stage.playout.end()
        await asyncio.sleep(stage.broadcast.clock.time_of(place + 6) - time.time())
        cut_s = time.time()
        stage.playout.stop()
        await stage.task
        await asyncio.sleep(0.02)
    spoken = [piece for _, piece in stage.came if piece.utterance]
    end = spoken[-1].next_position
    assert stage.broadcast.clock.time_of(end) - cut_s < 0.3  # of stream time
    assert all(came_s < cut_s + 0.02 for came_s, piece in stage.came if piece.utterance)
    assert sum(frames for _, frames in stage.written) == end - place == stage.playout.released_frames
    assert stage.rests[0][0] == end
    rest = sum(len(positions) for positions in stage.rests)
    assert 2 <= rest <= 5 and (end + rest) % LIVE_FRAMES == 0


async def test_a_cut_before_the_first_frame_shows_and_writes_nothing():
    async with Stage(0) as stage:
        stage.playout.place(0, 60)
        stage.playout.stop()
        await stage.task
    assert stage.came == stage.written == stage.rests == []
    assert stage.broadcast.reserved_until == 0


async def test_a_listener_that_takes_nothing_is_let_go():
    stage = Stage(0)
    events = stage.broadcast.listen()
    assert (await anext(events)).start == START
    for k in range(MAX_QUEUED_EVENTS + 2):
        stage.broadcast.send(LiveFragment(k, k + 1, (b"",)))
    assert not stage.broadcast.watched
    assert len([event async for event in events]) == MAX_QUEUED_EVENTS


@pytest.mark.parametrize("steps", range(4))
async def test_a_listener_that_leaves_in_the_moment_in_which_something_comes_is_gone(steps):
    stage = Stage(0)
    listener = asyncio.create_task(stage.listen())
    await asyncio.sleep(0.1)
    stage.broadcast.expect_speech(4)
    for _ in range(steps):
        await asyncio.sleep(0)
    listener.cancel()
    await asyncio.wait({listener}, timeout=1)
    assert listener.cancelled() and not stage.broadcast.watched
