"""From an utterance's chunks to its fragments: pasted and encoded on the compute thread, written at once or shown live.

Belongs to Stitch; knows no handle and no session but the utterance's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import cv2

from deployments.common.stage import StageMeter, Worker, WorkerPool
from deployments.stitch.calls import Call
from deployments.stitch.chunks import Chunk
from deployments.stitch.interrupts import Cut
from deployments.stitch.live.registry import OnStage
from deployments.stitch.utterance import Utterance
from models.errors import StageError, TextError, WarmTalkError
from models.types import Fragment


@dataclass(slots=True)
class Stitching:
    """One utterance. `stage` is where it is shown live, None where nobody watches; `calls` says where the time went."""

    utterance: Utterance
    stage: OnStage | None
    cut: Cut
    worker: Worker
    meter: StageMeter
    calls: list[Call] = field(default_factory=list)

    async def fragments(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Fragment, None]:
        """The fragments as they are made; ends when the last is shown. Raises InterruptedSpeech, and what the chunks,
        or writing, raise.
        """
        while (chunk := await self.cut.unless(anext(chunks, None))) is not None:
            close = chunk.last if self.stage is None else chunk.closes and not self.stage.follows(chunk)
            for fragment in await self._stitch(chunk, close):
                yield fragment
        for fragment in await self._close():
            yield fragment
        self.utterance.complete = True
        if self.stage is not None:
            await self.cut.unless(self.stage.finish())

    async def _stitch(self, chunk: Chunk, close: bool) -> list[Fragment]:
        """Paste and encode one chunk on the compute thread; write what it completes, or show it."""
        received_s = time.time()
        work = self.utterance.add if self.stage is None else self.utterance.make
        done = await self.worker.run(work, chunk, close)
        back_s = time.perf_counter() - done.ended_s  # from the thread to the event loop, which may be busy
        timing = self.meter.record_call(len(chunk.crops), received_s, done.queue_s, done.compute_s)
        parts_ms = (done.queue_s * 1e3, back_s * 1e3, done.compute_s * 1e3)
        wall_ms = (timing.done_s - received_s) * 1e3
        self.calls.append(Call(timing.stage, len(chunk.crops), *parts_ms, wall_ms, done.compute_s * 1e3))
        made = [part for fragment in done.value for part in (*self.utterance.pause_inside(fragment), fragment)]
        if self.stage is not None:
            await self.cut.unless(self.stage.show(chunk, done.value))
        return made

    async def _close(self) -> list[Fragment]:
        """The last fragments of an utterance whose end was not known when its last chunk came."""
        fragments = (await self.worker.run(self.utterance.flush)).value
        if self.stage is not None:
            await self.cut.unless(self.stage.end(fragments))
            return fragments
        for fragment in fragments:
            await self.worker.run(self.utterance.write, fragment)
        return fragments


def renderers(worker: Worker, threads: int) -> WorkerPool:
    """One thread does all there is to do; of more, none waits behind what is asked about sessions."""
    cv2.setNumThreads(1)  # else OpenCV spreads each small step over all cores of the machine, and the others' replicas
    return WorkerPool([worker] if threads == 1 else [Worker(f"Stitch-{number}") for number in range(threads)])


def nothing_said(utterance: Utterance) -> WarmTalkError:
    """Why an utterance gave no frame."""
    if utterance.request.text_stream_key and not utterance.said:
        return TextError("The text has nothing to speak.", "Send at least one word.")
    return StageError("The utterance gave no frame.", "Send a longer text or recording.")
