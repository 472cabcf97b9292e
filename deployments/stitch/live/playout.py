"""Playout of one utterance in a live session: releases fragments when they are due, and handles underruns.

Live fragments go to the broadcast. Fragments of the session file are written when they have been shown.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from deployments.common.clocks import stable_time_s
from deployments.common.metrics import increment
from deployments.stitch.live.broadcast import Broadcast
from deployments.stitch.live.pacing import MAX_DELAY_S, RELEASE_LEAD_S, PaceEstimate, SupplyEstimate
from models.avatar.playback import sway
from models.live.cues import Cue, cues_between
from models.live.timeline import LIVE_FRAMES, LiveClock, LiveFragment, join_live_fragments, rest_steps, split_fragment
from models.types import Fragment

DECIDE_LEAD_S = 0.14  # speech that is missing this long before it is due is an underrun: a hold must still be encoded
MIN_HOLD_FRAMES, MAX_HOLD_FRAMES = 8, 24  # of one hold; then the playout decides again, by what has arrived meanwhile
MIN_PHRASE_S = 0.8  # speech that cannot play to its sentence's end must at least play this long without a stop
LEAD_ERROR = 3.0  # a segment may be there this many times sooner than estimated, as when a replica has just started
REST_FRAMES = 2  # the return to rest takes at least these frames, and ends on the idle grid

Rest = Callable[[Sequence[int]], Awaitable[tuple[bytes, ...]]]
Write = Callable[[Fragment, int], None]


@dataclass(slots=True)
class _Placed:
    """A segment of the utterance on the session's timeline."""

    first_frame: int  # of the utterance
    position: int
    frames: int
    placed_s: float
    sure: bool = True  # it is expected in time

    @property
    def end(self) -> int:
        return self.position + self.frames


@dataclass(slots=True, eq=False)
class _Queued:
    """A fragment of the file, the live fragments it was split into, and how many of these are released."""

    fragment: Fragment
    parts: list[LiveFragment]
    released: int = 0


@dataclass(slots=True, eq=False)
class Playout:
    """One utterance. `push` adds fragments, `run` releases them when they are due.

    Speech that would run out before its sentence ends is held: the mouth rests and the head sways. Where possible it is
    held before a sentence or at a pause, not inside a word.

    rest(positions) → H.264 samples of the mouth returning to rest, one frame per position of the head.
    write(fragment, position) → appends a fragment that has been shown to the session file.
    """

    broadcast: Broadcast
    pace: PaceEstimate
    rest: Rest
    write: Write
    utterance: int  # its number in live fragments
    max_ahead_s: float  # `push` waits while more than this is made and not shown
    holds: int = 0  # how often speech had to wait
    held_frames: int = 0
    released_frames: int = 0
    supply: SupplyEstimate = field(init=False)
    _placed: list[_Placed] = field(default_factory=list)
    _queue: deque[_Queued] = field(default_factory=deque)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _drained: asyncio.Event = field(default_factory=asyncio.Event)
    _cursor: int | None = None  # the position due next while it speaks; None at rest
    _started: int = 0  # segments of which a frame has been shown
    _ended: bool = False
    _stopped: bool = False
    _pauses: list[int] = field(default_factory=list)  # frames of the utterance that follow a pause of the voice
    _cleared: int = -1  # the latest frame before which the playout decided not to hold
    _waited_s: float = 0.0  # holds before the next frame so far
    _interrupted_hold: tuple[int, int] | None = None  # position due, and position at which the swaying head is

    def __post_init__(self) -> None:
        fps, spec = self.broadcast.clock.fps, self.broadcast.start.spec
        self.supply = SupplyEstimate(fps, self.pace.shared_frame_s, stable_time_s(), spec.fragment_frames)

    # --- place segments

    def place(self, first_frame: int, frames: int) -> int:
        """Choose the position of a segment: directly after the previous one if it can arrive in time, else later.

        Where that is not sure it follows directly, too, and is held when it is due: by then more is known. For the same
        reason it is at most MAX_DELAY_S later.
        """
        now_s, broadcast = stable_time_s(), self.broadcast
        if not self._placed:
            self.supply.burst_end_s = now_s
        pending = sum(segment.frames for segment in self._placed) - self.supply.made  # of earlier segments
        frame_s = self.supply.frame_s if self.supply.made else self.pace.shared_frame_s  # as measured in this utterance
        lead_s = self.pace.lead_s(frames, broadcast.clock.fps, frame_s) + pending * frame_s
        earliest = broadcast.clock.position(now_s + lead_s) + 1
        end = self._placed[-1].end if self._placed else -1
        resting = self._cursor is None and self._started == len(self._placed)
        sure = end >= earliest
        if resting:
            position = broadcast.grid.ceil(max(earliest, broadcast.reserved_until))
        elif sure or lead_s < LEAD_ERROR * (broadcast.clock.time_of(end) - now_s):
            position = end
        else:
            latest = end + round(MAX_DELAY_S * broadcast.clock.fps)
            position = broadcast.grid.ceil(max(min(earliest, latest), broadcast.reserved_until, end + REST_FRAMES))
        self._placed.append(_Placed(first_frame, position, frames, now_s, sure))
        broadcast.reserved_until = position + frames
        broadcast.expect_speech(position)
        self._changed.set()
        return position

    def continues_at(self, frame: int) -> bool:
        """Whether another segment surely follows, without a rest, the one that ends before `frame` of the utterance."""
        pairs = zip(self._placed, self._placed[1:], strict=False)
        return any(after.first_frame == frame and after.position == one.end and after.sure for one, after in pairs)

    # --- take fragments

    def add_pauses(self, frames: list[int]) -> None:
        """Add the frames that follow a pause of the voice, before the segment's first fragment is pushed."""
        self._pauses += frames

    async def push(self, fragments: list[Fragment], cues: Sequence[Cue] = ()) -> None:
        """Take fragments in order; wait while more than `max_ahead_s` is made and not shown.

        cues: the sentences known so far, in seconds from the utterance's first frame.
        """
        if fragments:
            self._enqueue(fragments, cues)
        self._changed.set()
        while self._queue and self._buffered_s() > self.max_ahead_s and not self._stopped:
            self.supply.blocked = True
            self._drained.clear()
            await self._drained.wait()
        if self.supply.blocked:
            self.supply.unblock(stable_time_s())

    def _enqueue(self, fragments: list[Fragment], cues: Sequence[Cue]) -> None:
        now_s, first = stable_time_s(), self.supply.made
        frames = sum(fragment.frames for fragment in fragments)
        begins = first == self._segment_of(first).first_frame
        took_s = self.supply.add_burst(frames, now_s, learn=not begins)
        if not first:
            self.pace.add_first_fragment(now_s - self._placed[0].placed_s)
        elif not begins:  # the first burst of a segment also waits for its speech
            self.pace.add_frames(frames, took_s)
        for fragment in fragments:
            segment = self._segment_of(first)
            offset = segment.position - segment.first_frame
            pauses = [offset + frame for frame in self._pauses]
            begins = first == segment.first_frame  # the encoder may be a new one only here
            parts = split_fragment(fragment, offset + first, self.utterance, begins, pauses)
            self._queue.append(_Queued(fragment, self._with_cues(parts, first, cues)))
            first += fragment.frames

    def _segment_of(self, frame: int) -> _Placed:
        """The segment that a frame of the utterance belongs to."""
        return next(segment for segment in reversed(self._placed) if segment.first_frame <= frame)

    def _with_cues(self, parts: list[LiveFragment], first_frame: int, cues: Sequence[Cue]) -> list[LiveFragment]:
        """The live fragments from a frame of the utterance on, each with the sentences that sound in it."""
        fps = self.broadcast.clock.fps
        starts = accumulate((part.frames for part in parts[:-1]), initial=first_frame)
        spans = [(start / fps, (start + part.frames) / fps) for start, part in zip(starts, parts, strict=True)]
        return [replace(part, cues=cues_between(cues, *span)) for part, span in zip(parts, spans, strict=True)]

    def _buffered_s(self) -> float:
        """Playing time that is made and not shown yet, wherever it is placed."""
        return (self.supply.made - self.released_frames) / self.supply.fps

    def end(self) -> None:
        """No more fragments come."""
        self._ended = True
        self._changed.set()

    def stop(self) -> None:
        """Show nothing more than what has been released."""
        self._stopped = True
        self._changed.set()
        self._drained.set()

    # --- play

    async def run(self) -> None:
        """Release fragments when they are due, until the utterance is at rest again. Raises what `write` raises."""
        try:
            await self._play()
        except BaseException:
            self._free_timeline()
            raise

    async def _play(self) -> None:
        while not self._stopped:
            self._changed.clear()
            wait_s: float | None
            if self._queue:
                wait_s = await self._play_next(self._queue[0])
            elif self._ended:
                break
            else:
                wait_s = await self._handle_underrun()
            if wait_s is None or wait_s > 0:
                await self._wait_for_change(wait_s)
        self._write_shown_part()
        self._free_timeline()
        await self._return_to_rest()

    async def _wait_for_change(self, timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def _free_timeline(self) -> None:
        """Give up the positions of segments that are not shown."""
        if self._started < len(self._placed):
            self.broadcast.expect_speech(-1)
        self.broadcast.reserved_until = 0

    async def _play_next(self, queued: _Queued) -> float:
        """Release the next live fragment or hold it; return the time to wait before the next decision."""
        part = queued.parts[queued.released]
        if self._cursor is not None and part.position != self._cursor:
            await self._return_to_rest()
            return 0.0
        early_s = self.broadcast.clock.time_of(part.position) - stable_time_s()
        frame = self.released_frames
        if frame > self._cleared and (self._waited_s or self._may_hold_before(frame)):
            if early_s > DECIDE_LEAD_S:
                return early_s - DECIDE_LEAD_S
            if (delay_s := self._delay_s(frame)) > 0:
                await self._hold(part.position, delay_s)
                return 0.0
            self._cleared = frame
        if early_s > RELEASE_LEAD_S:
            return early_s - RELEASE_LEAD_S
        self._release(part)
        return 0.0

    async def _handle_underrun(self) -> float | None:
        """No fragment is queued: hold or return to rest if speech is due; return the time until then, None: never."""
        if (due := self._due_position()) is None:
            return None
        early_s = self.broadcast.clock.time_of(due) - stable_time_s()
        if early_s > DECIDE_LEAD_S:
            return early_s - DECIDE_LEAD_S
        if self._speech_ends_at(due):
            await self._return_to_rest()
        else:
            await self._hold(due, self._delay_s(self.released_frames))
        return 0.0

    def _due_position(self) -> int | None:
        """The position for which speech is needed next."""
        if self._cursor is not None:
            return self._cursor
        return self._placed[self._started].position if self._started < len(self._placed) else None

    def _speech_ends_at(self, position: int) -> bool:
        """Whether a segment ends here and no other follows directly, so that nothing is late."""
        if self._cursor is None or not self._started or self._cursor != self._placed[self._started - 1].end:
            return False
        return self._started == len(self._placed) or self._placed[self._started].position != position

    def _may_hold_before(self, frame: int) -> bool:
        """Whether a hold before a frame interrupts no word: a segment starts there, or the voice pauses.

        The middle of a pause may lie one frame away from the start of a live fragment (`split_fragment`); pauses are
        longer than that.
        """
        return any(abs(frame - pause) <= 1 for pause in self._pauses) or any(
            segment.first_frame == frame for segment in self._placed
        )

    def _delay_s(self, frame: int) -> float:
        """How long speech must wait before a frame to play to its sentence's end, or else for a phrase."""
        now_s, segment = stable_time_s(), self._segment_of(frame)
        self.supply.shared = self.pace.speakers > 1
        end = segment.first_frame + segment.frames
        phrase_start = frame + MIN_PHRASE_S * self.supply.fps
        phrase_end = min((pause for pause in self._pauses if phrase_start <= pause < end), default=end)
        begun = segment.first_frame < self.supply.made
        phrase_s = self.supply.required_delay_s(frame, phrase_end, end, now_s, begun)
        if not phrase_s and frame != segment.first_frame and not self._waited_s:
            return 0.0  # inside a segment it stops only if it must
        to_end_s = self.supply.required_delay_s(frame, end, end, now_s, begun)
        return max(0.0, phrase_s, min(to_end_s, MAX_DELAY_S - self._waited_s))

    async def _hold(self, due: int, delay_s: float) -> None:
        """Delay speech before a position: the mouth rests, the head sways and returns to that position."""
        delay_s = max(delay_s, 1e-3)
        frames = self.supply.hold_frames(delay_s, LIVE_FRAMES, MIN_HOLD_FRAMES, MAX_HOLD_FRAMES)
        self.holds += not self._waited_s
        self._waited_s += frames / self.supply.fps
        path = sway(due, frames)
        utterance = self.utterance if self._cursor is not None else 0
        for start in range(0, frames, LIVE_FRAMES):
            await self._wait_until(self.broadcast.clock.time_of(due) - DECIDE_LEAD_S)
            if self._stopped:
                self._interrupted_hold = (due, path[start - 1] + 1) if start else None
                return
            video = await self.rest(path[start : start + LIVE_FRAMES])
            self.broadcast.clock = self.broadcast.clock.delayed(len(video))
            self.held_frames += len(video)
            increment("warmtalk_held_frames_total", len(video))
            self.broadcast.send(LiveFragment(due, due, video, utterance=utterance))

    async def _wait_until(self, time_s: float) -> None:
        """Wait for a time, or `stop`."""
        while not self._stopped and (wait_s := time_s - stable_time_s()) > 0:
            self._changed.clear()
            await self._wait_for_change(wait_s)

    def _release(self, part: LiveFragment) -> None:
        queued = self._queue[0]
        self.broadcast.send(part)
        queued.released += 1
        self.released_frames += part.frames
        self._waited_s = 0.0
        self._cursor = part.next_position
        while self._started < len(self._placed) and self._placed[self._started].position < self._cursor:
            self._started += 1
        if queued.released == len(queued.parts):
            self._queue.popleft()
            self.write(queued.fragment, queued.parts[0].position)
            self._drained.set()

    def _write_shown_part(self) -> None:
        """After a stop: write the part of a fragment that has been shown, and drop the rest."""
        if self._queue and (queued := self._queue[0]).released:
            shown, spec = queued.parts[: queued.released], self.broadcast.start.spec
            self.write(join_live_fragments(shown, queued.fragment, spec), shown[0].position)
        self._queue.clear()

    async def _return_to_rest(self) -> None:
        """Send the mouth's return to rest, up to where idle motion can continue.

        After an interrupted hold the head continues from its current position.
        """
        broadcast = self.broadcast
        if self._interrupted_hold is not None:
            due, start = self._interrupted_hold
            clock = broadcast.clock
            broadcast.clock = LiveClock(clock.time_of(due) - start / clock.fps, clock.fps)
        elif self._cursor is not None:
            due = start = self._cursor
        else:
            return
        self._cursor = self._interrupted_hold = None
        end = broadcast.grid.ceil(start + REST_FRAMES)
        broadcast.reserved_until = max(broadcast.reserved_until, end)
        for position, count in rest_steps(start, end):
            video = await self.rest(range(position, position + count))
            broadcast.send(LiveFragment(due, position + count, video))
            due = position + count
