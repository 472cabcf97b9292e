"""Runs one utterance: sends the pipeline's chunks through the output, reports progress, and summarises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from deployments.common.messages import SpeakEvent
from deployments.common.metrics import increment
from deployments.stitch.chunks import Chunk, PipelineRequest
from deployments.stitch.interrupts import Interrupt
from deployments.stitch.metrics import Progress, summary_of, with_ticks
from deployments.stitch.output import AbortReason, Output, deliver
from deployments.stitch.pipeline import Pipeline
from deployments.stitch.rendering import Renderer
from models.errors import InterruptedSpeech, StageError, TextError, WarmTalkError
from models.speech.readable import skip_warnings


@dataclass(slots=True)
class UtteranceRun:
    """requested_s, started_s: when the request arrived, and when its turn came, by time.perf_counter."""

    renderer: Renderer
    pipeline: Pipeline
    output: Output
    interrupt: Interrupt
    requested_s: float
    started_s: float
    ttff_ms: float | None = None

    async def events(self, request: PipelineRequest) -> AsyncGenerator[SpeakEvent, None]:
        """Yield video and progress. An interrupted utterance ends normally if a frame of it was made.

        Raises WarmTalkError.
        """
        chunks = self.pipeline.run(request)
        try:
            with self.renderer.load.rendering(self.renderer):
                async with aclosing(self._events(chunks)) as events:
                    async for event in events:
                        yield event
            if not self.renderer.writer.frames:
                raise self._no_frame_error()
        except BaseException as error:
            await self._abort(chunks, error)
            if not isinstance(error, InterruptedSpeech) or not self.renderer.writer.frames:
                raise
        finally:
            await self.renderer.run(self.renderer.writer.release)  # after all that the thread still does for it
            increment("warmtalk_retries_total", self.pipeline.retries)
            for call in self.pipeline.calls:
                self.renderer.meter.record_transfer(call.stage, call.transfer_ms / 1e3)

    async def _events(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[SpeakEvent, None]:
        writer, request = self.renderer.writer, self.renderer.writer.request
        progress = Progress(writer, self.output, (self.pipeline.calls, self.renderer.calls))
        async with aclosing(with_ticks(deliver(chunks, self.output, self.interrupt))) as fragments:
            async for fragment in fragments:
                first = fragment is not None and self.ttff_ms is None
                if first:
                    self.ttff_ms = progress.ttff_ms = (time.perf_counter() - self.requested_s) * 1e3
                if (first or fragment is None) and (facts := progress.report()) and request.progress:
                    yield SpeakEvent(making=facts | progress.spoken())
                if fragment is not None and request.deliver:
                    init = fragment.init if first else b""
                    yield SpeakEvent(init + writer.live(fragment), fragment.frames)
        progress.report()

    async def _abort(self, chunks: AsyncGenerator[Chunk, None], error: BaseException) -> None:
        """Cancel the calls, then end the output."""
        reason: AbortReason = "failed"
        if isinstance(error, InterruptedSpeech):
            reason = "interrupted"
        elif isinstance(error, GeneratorExit | asyncio.CancelledError):  # the caller has left
            reason = "cancelled"
        try:
            await chunks.aclose()
        finally:
            await self.output.abort(reason)

    def _no_frame_error(self) -> WarmTalkError:
        writer = self.renderer.writer
        if writer.request.text_stream_key and not writer.spoken_text:
            return TextError("The text has nothing to speak.", "Send at least one word.")
        return StageError("The utterance has no frame.", "Send a longer text or recording.")

    def summary(self) -> dict[str, Any]:
        """The summary of an utterance that has ended, also recorded in the metrics."""
        calls, ttff_ms = [*self.pipeline.calls, *self.renderer.calls], self.ttff_ms or 0.0
        wall_s = time.perf_counter() - self.started_s
        summary = summary_of(self.renderer.writer, calls, self.pipeline.retries, ttff_ms, wall_s) | self.output.facts()
        summary["warnings"] = skip_warnings(self.pipeline.skipped)
        summary["reduced_frames"] = self.pipeline.making.reduced_frames  # of the enhancement, which could not keep up
        self.renderer.meter.record_utterance(ttff_ms, summary["rtf"])
        return summary

    def facts(self) -> dict[str, Any]:
        """How far it came, also if it failed."""
        waited_ms = (self.started_s - self.requested_s) * 1e3
        facts = {"frames": self.renderer.writer.frames, "ttff_ms": self.ttff_ms, "waited_ms": waited_ms}
        return facts | {"retries": self.pipeline.retries, "watched": self.output.watched}

    def calls(self) -> list[dict[str, Any]]:
        """Every call of every stage, for a profile."""
        return [asdict(call) for call in (*self.pipeline.calls, *self.renderer.calls)]
