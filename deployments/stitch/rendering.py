"""Renders chunks into fragments: pastes and encodes on the compute thread of an utterance, and measures each call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import cv2

from deployments.common.stage import StageMeter
from deployments.common.worker import Worker, WorkerPool
from deployments.stitch.admission import Making
from deployments.stitch.chunks import Chunk, SpeechSegment
from deployments.stitch.metrics import StageCall
from deployments.stitch.ownership.load import RenderLoad
from deployments.stitch.utterance import UtteranceWriter
from models.errors import WarmTalkError
from models.types import Fragment

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Renderer:
    """Runs the work of one utterance on one thread, in order."""

    writer: UtteranceWriter
    worker: Worker
    meter: StageMeter
    making: Making = field(default_factory=Making)
    load: RenderLoad = field(default_factory=RenderLoad)
    calls: list[StageCall] = field(default_factory=list)  # one per chunk
    placed_frames: int = 0  # frames of the speech that has arrived
    _preparing: asyncio.Task[None] | None = None

    @property
    def pending_frames(self) -> int:
        """Frames of the speech that has arrived that are not rendered yet."""
        return self.placed_frames - self.writer.frames

    def speech_arrived(self, segment: SpeechSegment) -> None:
        """Count the frames of a segment. With the first one, prepare the writer while its faces are generated."""
        self.placed_frames += segment.frames
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(segment))

    async def _prepare(self, segment: SpeechSegment) -> None:
        with contextlib.suppress(WarmTalkError, OSError):  # the first frame raises it again
            await self.run(self.writer.prepare, segment)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on the compute thread, after all that was started before."""
        done = await self.worker.run(function, *args, **kwargs)
        self.load.add(done.compute_s)
        return done.value

    async def render(self, chunk: Chunk, work: Callable[[Chunk], list[Fragment]]) -> list[Fragment]:
        """Render a chunk with `work`, and record the call with its queue, compute and transfer times."""
        received_s = time.time()
        with self.making.working():
            done = await self.worker.run(work, chunk)
        self.making.rendered(len(chunk.crops))
        self.load.add(done.compute_s, len(chunk.crops))
        back_s = time.perf_counter() - done.ended_s  # from the thread to the event loop, which may be busy
        timing = self.meter.record_call(len(chunk.crops), received_s, done.queue_s, done.compute_s)
        parts_ms = (done.queue_s * 1e3, back_s * 1e3, done.compute_s * 1e3)
        wall_ms = (timing.done_s - received_s) * 1e3
        call = StageCall(timing.stage, len(chunk.crops), *parts_ms, wall_ms, done.compute_s * 1e3)
        self.calls.append(call.at(timing, received_s))
        return done.value


def render_workers(worker: Worker, threads: int) -> WorkerPool:
    """The compute threads of utterances. With one thread it is `worker`, which also answers questions on sessions."""
    cv2.setNumThreads(1)  # OpenCV would spread each small step over all cores, which other replicas need
    return WorkerPool([worker] if threads == 1 else [Worker(f"Stitch-{number}") for number in range(threads)])
