"""The output of an utterance in a session that somebody watches: live playout first, then the session file."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from deployments.common.clocks import stable_time_s
from deployments.stitch.chunks import Chunk, SpeechSegment
from deployments.stitch.interrupts import Interrupt
from deployments.stitch.live.broadcast import Broadcast
from deployments.stitch.live.pacing import PaceEstimate
from deployments.stitch.live.playout import DECIDE_LEAD_S, Playout
from deployments.stitch.output import AbortReason, Output
from deployments.stitch.rendering import Renderer
from models.speech.activity import pause_frames
from models.types import Fragment

_NUMBERS = itertools.count(1 + secrets.randbelow(2**30))  # of live utterances; other replicas use others


class LiveOutput(Output):
    """Shows fragments at the pace of the session's clock, and writes each to the file when it has been shown.

    An interrupt stops the playout at once, even while the compute thread is busy.
    """

    watched = True

    def __init__(
        self,
        renderer: Renderer,
        broadcast: Broadcast,
        pace: PaceEstimate,
        interrupt: Interrupt,
        max_ahead_s: float,
        on_end: Callable[[], None],
    ) -> None:
        """on_end: called when the output no longer needs the broadcast; it may be called twice."""
        self._renderer, self._writer = renderer, renderer.writer
        self._interrupt, self._on_end = interrupt, on_end
        self._writes: list[asyncio.Task[None]] = []
        self.playout = Playout(broadcast, pace, self._rest, self._write, next(_NUMBERS), max_ahead_s)
        self._playing = asyncio.create_task(self.playout.run())
        self._playing.add_done_callback(lambda task: self.playout.stop())  # after an error `push` must not wait for it
        interrupt.on_set(self.playout.stop)

    @property
    def shown_frames(self) -> int:
        return self.playout.released_frames

    def place(self, segment: SpeechSegment) -> int:
        self._renderer.speech_arrived(segment)
        return self.playout.place(segment.first_frame, segment.frames)

    def slack_s(self, position: int) -> float:
        return self.playout.broadcast.clock.time_of(position) - DECIDE_LEAD_S - stable_time_s()

    async def push(self, chunk: Chunk | None) -> list[Fragment]:
        if chunk is None:
            fragments = await self._renderer.run(self._writer.flush)
        else:
            # close the encoder before a rest, so that its last frame can be shown
            end = chunk.crops.first_frame + len(chunk.crops)
            close = chunk.ends_segment and not self.playout.continues_at(end)
            fragments = await self._renderer.render(chunk, partial(self._writer.encode, close=close))
        with_pauses = [part for fragment in fragments for part in (*self._writer.pause_inside(fragment), fragment)]
        await self._interrupt.run(self._play(chunk, fragments))
        return with_pauses

    async def _play(self, chunk: Chunk | None, fragments: list[Fragment]) -> None:
        """Give fragments to the playout, and wait while it is full. Raises what broke the playout."""
        if chunk is not None and chunk.speech is not None:
            quiet = await asyncio.to_thread(pause_frames, chunk.speech, self.playout.supply.fps)
            self.playout.add_pauses([chunk.crops.first_frame + frame for frame in quiet])
        await self.playout.push(fragments, tuple(self._writer.cues))
        if chunk is None:
            self.playout.end()
        elif self._playing.done():
            self._playing.result()

    async def finish(self) -> None:
        await self._interrupt.run(asyncio.shield(self._playing))
        await self._wait_for_writes()
        await self._renderer.run(self._writer.end)
        self._on_end()

    async def abort(self, reason: AbortReason) -> None:
        """Viewers saw the utterance stop, so one whose caller left is recorded as interrupted, too."""
        self.playout.stop()
        try:
            await self._playing
            await self._wait_for_writes()
            if reason != "failed":
                await self._renderer.run(self._writer.end, interrupted=True)
        finally:
            self._on_end()

    def report(self, progress: dict[str, Any]) -> None:
        self.playout.broadcast.report(progress)

    def facts(self) -> dict[str, Any]:
        playout = self.playout
        held_s = round(playout.held_frames / playout.supply.fps, 2)
        return {"live": {"shown_frames": playout.released_frames, "holds": playout.holds, "held_s": held_s}}

    async def _rest(self, positions: Sequence[int]) -> tuple[bytes, ...]:
        fragment = await asyncio.to_thread(self._writer.rest_fragment, self.playout.released_frames, positions)
        if positions[-1] - positions[0] == len(positions) - 1:  # of a swaying head the file keeps nothing
            self.playout.broadcast.rested[positions[0]] = fragment
        return fragment.video

    async def _wait_for_writes(self) -> None:
        """Raises FencedError, OSError. A cancelled caller cancels no write: viewers have seen these fragments."""
        await asyncio.shield(asyncio.gather(*self._writes))

    def _write(self, fragment: Fragment, position: int) -> None:
        self._writes.append(asyncio.create_task(self._renderer.run(self._writer.write, fragment, position)))
