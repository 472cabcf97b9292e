"""One utterance on air: from made fragments to what is shown when, and what is shown where they are late.

Belongs to Stitch; knows no stage, no file and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from deployments.common.clocks import stable_time_s
from deployments.common.patience import within
from deployments.stitch.live.broadcast import Broadcast
from deployments.stitch.live.pacing import LONGEST_WAIT_S, RELEASE_S, Pace, Supply
from models.avatar.playback import sway
from models.live.cues import Cue, cues_between
from models.live.timeline import LIVE_FRAMES, LiveClock, LiveFragment, join_live_fragments, rest_steps, split_fragment
from models.types import Fragment

DECIDE_S = 0.14  # so long before a position is due, what is not there counts as late: a frame must still be coded
SHORTEST_HOLD, LONGEST_HOLD = 8, 48  # frames for which the head waits at a time; then it is looked at again
PHRASE_S = 0.8  # speech that is not held up for all of its sentence is at least not stopped for so long
REST_FRAMES = 2  # the mouth's way back to rest takes at least these, and ends on the idle grid

Rest = Callable[[Sequence[int]], Awaitable[tuple[bytes, ...]]]
Write = Callable[[Fragment, int], None]


@dataclass(slots=True)
class _Place:
    """Where a segment of the utterance stands on the line."""

    first_frame: int  # of the utterance
    position: int
    frames: int
    placed_s: float

    @property
    def end(self) -> int:
        return self.position + self.frames


@dataclass(slots=True, eq=False)
class _Made:
    """A fragment of the file with the pieces it was cut into, and how many of them have been released."""

    fragment: Fragment
    pieces: list[LiveFragment]
    released: int = 0


@dataclass(slots=True, eq=False)
class Performance:
    """One utterance on air. `run` releases what `push` brings when it is due, and fills what is late.

    Speech that cannot be played to its sentence's end without a stop waits, with the mouth at rest and the head
    swaying, rather than stop in a word: before a sentence, and else at its pauses.

    rest(positions) → H.264 samples of the mouth coming to rest while the head goes through `positions`.
    write(fragment, position) → appends to the session what has been shown.
    """

    broadcast: Broadcast
    pace: Pace
    rest: Rest
    write: Write
    number: int
    ahead_s: float  # what is made further ahead of what is shown makes `push` wait
    holds: int = 0  # how often speech had to wait
    held_frames: int = 0
    released_frames: int = 0
    supply: Supply = field(init=False)
    _places: list[_Place] = field(default_factory=list)
    _made: deque[_Made] = field(default_factory=deque)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _taken_one: asyncio.Event = field(default_factory=asyncio.Event)
    _cursor: int | None = None  # the position that is due next while it speaks; None at rest
    _started: int = 0  # places whose speech has begun to be shown
    _ended: bool = False
    _cut: bool = False
    _breaks: list[int] = field(default_factory=list)  # frames of the utterance that a pause comes before
    _passed: int = -1  # the frame whose speech has been found to be played on, or to have waited long enough
    _waited_s: float = 0.0  # before that frame
    _astray: tuple[int, int] | None = None  # a cut has met the head on its way: the position due, and where it goes on

    def __post_init__(self) -> None:
        fps = self.broadcast.clock.fps
        self.supply = Supply(fps, self.pace.own_frame_s, stable_time_s(), self.broadcast.start.spec.fragment_frames)

    # --- where segments go

    def place(self, first_frame: int, frames: int) -> int:
        """Choose the position of a segment: behind the one before where there is time, else ahead of the clock."""
        now_s, line = stable_time_s(), self.broadcast
        if not self._places:
            self.supply.came_s = now_s
        waiting = sum(p.frames for p in self._places) - self.supply.made  # of earlier segments, still being made
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

    def hear(self, breaks: list[int]) -> None:
        """Take note of the frames before which a segment pauses, before its first fragment is pushed."""
        self._breaks += breaks

    async def push(self, fragments: list[Fragment], cues: Sequence[Cue] = ()) -> None:
        """Take fragments in order; wait while what is made lies too far ahead.

        cues: what the utterance says as far as it is known, in seconds from its first frame.
        """
        if fragments:
            self._take(fragments, cues)
        self._changed.set()
        while self._made and self._ahead_s() > self.ahead_s and not self._cut:
            self.supply.full = True
            self._taken_one.clear()
            await self._taken_one.wait()
        if self.supply.full:
            self.supply.resumed(stable_time_s())

    def _take(self, fragments: list[Fragment], cues: Sequence[Cue]) -> None:
        now_s, made = stable_time_s(), self.supply.made
        frames = sum(fragment.frames for fragment in fragments)
        begins = made == self._place_of(made).first_frame
        took_s = self.supply.came(frames, now_s, learn=not begins)
        if not made:
            self.pace.took(now_s - self._places[0].placed_s)
        elif not begins:  # else a voice, or a text, was waited for
            self.pace.made(frames, took_s)
        for fragment in fragments:
            place = self._place_of(made)
            position = place.position + made - place.first_frame
            breaks = [place.position + frame - place.first_frame for frame in self._breaks]
            begins = made == place.first_frame  # at least there a new encoder may have been opened
            pieces = split_fragment(fragment, position, self.number, begins, breaks)
            self._made.append(_Made(fragment, self._with_cues(pieces, made, cues)))
            made += fragment.frames

    def _place_of(self, frame: int) -> _Place:
        """The segment that a frame of the utterance belongs to."""
        return next(place for place in reversed(self._places) if place.first_frame <= frame)

    def _with_cues(self, pieces: list[LiveFragment], first_frame: int, cues: Sequence[Cue]) -> list[LiveFragment]:
        """The pieces from a frame of the utterance on, each with what is heard in it."""
        fps = self.broadcast.clock.fps
        starts = accumulate((piece.frames for piece in pieces[:-1]), initial=first_frame)
        spans = [(start / fps, (start + piece.frames) / fps) for start, piece in zip(starts, pieces, strict=True)]
        return [replace(piece, cues=cues_between(cues, *span)) for piece, span in zip(pieces, spans, strict=True)]

    def _ahead_s(self) -> float:
        """How much is made and not shown yet, s: the same however far ahead of the clock it was placed."""
        return (self.supply.made - self.released_frames) / self.supply.fps

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
        try:
            await self._show_all()
        except BaseException:
            self._give_up_the_line()
            raise

    async def _show_all(self) -> None:
        while not self._cut:
            self._changed.clear()
            wait_s: float | None
            if self._made:
                wait_s = await self._show_next(self._made[0])
            elif self._ended:
                break
            else:
                wait_s = await self._look_for_the_late()
            if wait_s is None or wait_s > 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(wait_s, self._changed.wait())
        self._keep_what_was_shown()
        self._give_up_the_line()
        await self._come_to_rest()

    def _give_up_the_line(self) -> None:
        """What was placed and is not shown leaves its place to others."""
        if self._started < len(self._places):
            self.broadcast.expect(-1)
        self.broadcast.taken = 0

    async def _show_next(self, made: _Made) -> float:
        """Release the next piece if it is due, or hold it up; else how long to wait for that."""
        piece = made.pieces[made.released]
        if self._cursor is not None and piece.position != self._cursor:
            await self._come_to_rest()
            return 0.0
        early_s = self.broadcast.clock.time_of(piece.position) - stable_time_s()
        frame = self.released_frames
        if frame > self._passed and (self._waited_s or self._may_wait(frame)):
            if early_s > DECIDE_S:
                return early_s - DECIDE_S
            if (lack_s := self._lack_s(frame)) > 0:
                await self._hold(piece.position, lack_s)
                return 0.0
            self._passed = frame
        if early_s > RELEASE_S:
            return early_s - RELEASE_S
        self._release(piece)
        return 0.0

    async def _look_for_the_late(self) -> float | None:
        """Fill the time where speech is due and not there; else how long that may still take, None: no matter."""
        if (due := self._due()) is None:
            return None
        early_s = self.broadcast.clock.time_of(due) - stable_time_s()
        if early_s > DECIDE_S:
            return early_s - DECIDE_S
        if self._rests_at(due):
            await self._come_to_rest()
        else:
            await self._hold(due, self._lack_s(self.released_frames))
        return 0.0

    def _rests_at(self, due: int) -> bool:
        """Whether speech ends here for a while, and is not merely late."""
        if self._cursor is None or not self._started or self._cursor != self._places[self._started - 1].end:
            return False
        return self._started == len(self._places) or self._places[self._started].position != due

    def _may_wait(self, frame: int) -> bool:
        """Whether speech can be held up before a frame without being torn: a sentence begins there, or it pauses.

        A pause's middle may lie a frame from where pieces meet (live.split); it is longer than that.
        """
        return any(abs(frame - pause) <= 1 for pause in self._breaks) or any(
            place.first_frame == frame for place in self._places
        )

    def _lack_s(self, frame: int) -> float:
        """How long speech must wait before a frame to be played on: to its sentence's end, or else for a phrase."""
        now_s, place = stable_time_s(), self._place_of(frame)
        self.supply.shared = self.pace.speaking > 1
        end = place.first_frame + place.frames
        far = frame + PHRASE_S * self.supply.fps
        phrase = min((b for b in self._breaks if far <= b < end), default=end)
        begun = place.first_frame < self.supply.made
        phrase_s = self.supply.lack_s(frame, phrase, end, now_s, begun)
        if not phrase_s and frame != place.first_frame and not self._waited_s:
            return 0.0  # it speaks already: it stops only where it must
        whole_s = min(self.supply.lack_s(frame, end, end, now_s, begun), LONGEST_WAIT_S - self._waited_s)
        return max(0.0, phrase_s, whole_s)

    async def _hold(self, due: int, lack_s: float) -> None:
        """Let speech wait before a position, with the mouth at rest and the head swaying to where it goes on."""
        frames = self.supply.holds_frames(max(lack_s, 1e-3), LIVE_FRAMES, SHORTEST_HOLD, LONGEST_HOLD)
        self.holds += not self._waited_s
        self._waited_s += frames / self.supply.fps
        path = sway(due, frames)
        number = self.number if self._cursor is not None else 0
        for start in range(0, frames, LIVE_FRAMES):
            await self._until(self.broadcast.clock.time_of(due) - DECIDE_S)
            if self._cut:
                self._astray = (due, path[start - 1] + 1) if start else None
                return
            video = await self.rest(path[start : start + LIVE_FRAMES])
            self.broadcast.clock = self.broadcast.clock.delayed(len(video))
            self.held_frames += len(video)
            self.broadcast.send(LiveFragment(due, due, video, utterance=number))

    async def _until(self, at_s: float) -> None:
        """Wait for a time, or a cut."""
        while not self._cut and (wait_s := at_s - stable_time_s()) > 0:
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(wait_s, self._changed.wait())

    def _due(self) -> int | None:
        """The position for which speech must be there next."""
        if self._cursor is not None:
            return self._cursor
        return self._places[self._started].position if self._started < len(self._places) else None

    def _release(self, piece: LiveFragment) -> None:
        made = self._made[0]
        self.broadcast.send(piece)
        made.released += 1
        self.released_frames += piece.frames
        self._waited_s = 0.0
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
            self.write(join_live_fragments(made.pieces[: made.released], made.fragment, spec), made.pieces[0].position)
        self._made.clear()

    async def _come_to_rest(self) -> None:
        """The mouth eases back, up to where idle motion can go on; a head that was swaying goes on from where it is."""
        line = self.broadcast
        if self._astray is not None:
            due, start = self._astray
            line.clock = LiveClock(line.clock.time_of(due) - start / line.clock.fps, line.clock.fps)
        elif self._cursor is not None:
            due = start = self._cursor
        else:
            return
        self._cursor = self._astray = None
        end = line.grid.ceil(start + REST_FRAMES)
        line.taken = max(line.taken, end)
        for at, count in rest_steps(start, end):
            video = await self.rest(range(at, at + count))
            line.send(LiveFragment(due, at + count, video))
            due = at + count
