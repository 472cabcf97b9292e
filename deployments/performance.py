"""One utterance on air: from made fragments to what is shown when, and what is shown where they are late.

Belongs to Stitch; knows no stage, no file and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from deployments.broadcast import Broadcast
from models.stitch.live import LIVE_FRAMES, Piece, joined, split
from models.types import Fragment

RELEASE_S = 0.08  # a piece leaves Stitch this long before it is due: the way to the ingress, and no more


DECIDE_S = 0.14  # so long before a position is due, what is not there counts as late: a frame must still be coded


REST_FRAMES = 2  # the mouth's way back to rest takes at least these, and ends on the idle grid


LONGEST_WAIT_S = 4.0  # of a segment for its speech to be so far made that it can be played without a stop


Rest = Callable[[int, int, bool], Awaitable[tuple[bytes, ...]]]


Write = Callable[[Fragment, int], None]


@dataclass(slots=True)
class Pace:
    """How long segments take, learned from those before: mean and deviation as TCP's timer (RFC 6298) keeps them."""

    first_s: float = 0.35  # from a segment's place being chosen to its first fragment
    deviation_s: float = 0.1
    frame_s: float = 0.02  # to make a frame, once it runs and nobody else speaks
    speaking: int = 1  # who share the machine now

    def took(self, first_s: float) -> None:
        self.deviation_s += 0.25 * (abs(first_s - self.first_s) - self.deviation_s)
        self.first_s += 0.25 * (first_s - self.first_s)

    def made(self, frames: int, seconds: float) -> None:
        self.frame_s += 0.2 * (seconds / frames / max(self.speaking, 1) - self.frame_s)

    @property
    def own_frame_s(self) -> float:
        """To make a frame among all who speak."""
        return self.frame_s * max(self.speaking, 1)

    def lead_s(self, frames: int, fps: int) -> float:
        """How far ahead a segment must be placed so that it is there in time, and is not overtaken by its playing."""
        slower = max(0.0, self.own_frame_s - 1 / fps) * frames
        return self.first_s + 2 * self.deviation_s + RELEASE_S + min(slower, LONGEST_WAIT_S)


@dataclass(slots=True)
class _Place:
    """Where a segment of the utterance stands on the line."""

    first_frame: int  # of the utterance
    position: int
    frames: int
    placed_s: float
    came: bool = False  # whether its first fragment is there

    @property
    def end(self) -> int:
        return self.position + self.frames


@dataclass(slots=True, eq=False)
class _Made:
    """A fragment of the file with the pieces it was cut into, and how many of them have been released."""

    fragment: Fragment
    pieces: list[Piece]
    released: int = 0


@dataclass(slots=True, eq=False)
class Performance:
    """One utterance on air. `run` releases what `push` brings when it is due, and fills what is late.

    rest(position, frames, hold) → H.264 samples of the mouth coming to rest from `position` on, or, where `hold`, with
    the head waiting where it was. write(fragment, position) → appends to the session what has been shown.
    """

    broadcast: Broadcast
    pace: Pace
    rest: Rest
    write: Write
    number: int
    ahead_s: float  # pieces made further ahead of the clock make `push` wait
    holds: int = 0  # how often the head had to wait
    released_frames: int = 0
    _places: list[_Place] = field(default_factory=list)
    _made: deque[_Made] = field(default_factory=deque)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _taken_one: asyncio.Event = field(default_factory=asyncio.Event)
    _cursor: int | None = None  # the position that is due next while it speaks; None at rest
    _started: int = 0  # places whose speech has begun to be shown
    _pushed: int = 0  # frames
    _ended: bool = False
    _cut: bool = False
    _idle_since_s: float | None = None  # when `push` last returned without having waited

    # --- where segments go

    def place(self, first_frame: int, frames: int) -> int:
        """Choose the position of a segment: behind the one before where there is time, else ahead of the clock."""
        now_s, line = time.time(), self.broadcast
        waiting = sum(place.frames for place in self._places) - self._pushed  # of earlier segments, still being made
        lead_s = self.pace.lead_s(frames, line.clock.fps) + waiting * self.pace.own_frame_s
        soonest = line.clock.position(now_s + lead_s) + 1
        end = self._places[-1].end if self._places else -1
        resting = self._cursor is None and self._started == len(self._places)
        if self._places and not resting and end >= soonest:
            position = end
        else:
            position = line.grid.ceil(max(soonest, line.taken, 0 if resting else end + REST_FRAMES))
        self._places.append(_Place(first_frame, position, frames, now_s))
        line.taken = position + frames
        line.expect(position)
        self._changed.set()
        return position

    def follows(self, end_frame: int) -> bool:
        """Whether the segment that ends at a frame of the utterance is followed by another without a rest between."""
        ends = next((k for k, p in enumerate(self._places) if p.first_frame + p.frames == end_frame), None)
        return (
            ends is not None
            and ends + 1 < len(self._places)
            and (self._places[ends + 1].position == self._places[ends].end)
        )

    # --- what is made

    async def push(self, fragments: list[Fragment]) -> None:
        """Take fragments in order; wait while what is made lies too far ahead."""
        now_s = time.time()
        for fragment in fragments:
            place = next(p for p in reversed(self._places) if p.first_frame <= self._pushed)
            if not self._pushed:
                self.pace.took(now_s - place.placed_s)
            elif place.came and self._idle_since_s is not None:  # not while a voice, or a text, was waited for
                self.pace.made(sum(f.frames for f in fragments), now_s - self._idle_since_s)
                self._idle_since_s = None
            place.came = True
            position = place.position + self._pushed - place.first_frame
            begins = self._pushed == place.first_frame  # at least there a new encoder may have been opened
            self._made.append(_Made(fragment, split(fragment, position, self.number, begins)))
            self._pushed += fragment.frames
        self._changed.set()
        self._idle_since_s = time.time()
        while self._made and self._ahead_s() > self.ahead_s and not self._cut:
            self._taken_one.clear()
            await self._taken_one.wait()
            self._idle_since_s = None  # what waits behind is made already, and says nothing about the pace

    def _ahead_s(self) -> float:
        return self.broadcast.clock.time_of(self._made[-1].pieces[-1].next_position) - time.time()

    def end(self) -> None:
        """Nothing comes after what was pushed."""
        self._ended = True
        self._changed.set()

    def cut(self) -> None:
        """Show nothing more than what has been released."""
        self._cut = True
        self._changed.set()
        self._taken_one.set()

    # --- what is shown

    async def run(self) -> None:
        """Release pieces when they are due, until the utterance is at rest again. Raises what `write` raises."""
        while not self._cut:
            self._changed.clear()
            now_s, wait_s = time.time(), None
            if self._made:
                piece = self._made[0].pieces[self._made[0].released]
                if self._cursor is not None and piece.position != self._cursor:
                    await self._come_to_rest()
                    continue
                wait_s = self.broadcast.clock.time_of(piece.position) - RELEASE_S - now_s
                if wait_s <= 0:
                    self._release(piece)
                    continue
            elif self._ended:
                break
            elif (due := self._due()) is not None:
                wait_s = self.broadcast.clock.time_of(due) - DECIDE_S - now_s
                if wait_s <= 0:
                    await self._bridge(due)
                    continue
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)
        self._keep_what_was_shown()
        if self._started < len(self._places):
            self.broadcast.expect(-1)
        self.broadcast.taken = 0  # what was placed and is not shown leaves its place to others
        await self._come_to_rest()

    def _due(self) -> int | None:
        """The position for which speech must be there next."""
        if self._cursor is not None:
            return self._cursor
        return self._places[self._started].position if self._started < len(self._places) else None

    async def _bridge(self, due: int) -> None:
        """Speech is late: between segments that do not follow on each other the mouth rests, else the head waits."""
        if self._cursor is not None and self._started and self._cursor == self._places[self._started - 1].end:
            following = self._places[self._started].position if self._started < len(self._places) else None
            if following != self._cursor:
                await self._come_to_rest()
                return
        self.holds += 1
        video = await self.rest(due, LIVE_FRAMES, True)
        self.broadcast.clock = self.broadcast.clock.held(len(video))
        number = self.number if self._cursor is not None else 0
        self.broadcast.send(Piece(due, due, video, utterance=number))

    def _release(self, piece: Piece) -> None:
        made = self._made[0]
        self.broadcast.send(piece)
        made.released += 1
        self.released_frames += piece.frames
        self._cursor = piece.next_position
        while self._started < len(self._places) and self._places[self._started].position < self._cursor:
            self._started += 1
        if made.released == len(made.pieces):
            self._made.popleft()
            self.write(made.fragment, made.pieces[0].position)
            self._taken_one.set()

    def _keep_what_was_shown(self) -> None:
        """After a cut: the part of a fragment that was released belongs to the session, the rest was never shown."""
        if self._made and (made := self._made[0]).released:
            spec = self.broadcast.start.spec
            self.write(joined(made.pieces[: made.released], made.fragment, spec), made.pieces[0].position)
        self._made.clear()

    async def _come_to_rest(self) -> None:
        """The mouth eases back, up to where idle motion can go on."""
        if self._cursor is None:
            return
        start, self._cursor = self._cursor, None
        end = self.broadcast.grid.ceil(start + REST_FRAMES)
        self.broadcast.taken = max(self.broadcast.taken, end)
        while start < end:
            count = end - start if end - start <= LIVE_FRAMES else LIVE_FRAMES - 1  # never a piece of one frame
            video = await self.rest(start, count, False)
            self.broadcast.send(Piece(start, start + len(video), video))
            start += len(video)
