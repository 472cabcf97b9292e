"""The output of an utterance: the session file alone, or the live stream and then the session file.

The deployment chooses the output once, when an utterance starts. No other code asks which of the two it is.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from typing import Any, Literal, Protocol

from deployments.stitch.chunks import Chunk, SpeechSegment
from deployments.stitch.interrupts import Interrupt
from deployments.stitch.rendering import Renderer
from models.types import Fragment

# Why an utterance ends before its last frame: an interrupt, a caller that went away, or an error.
AbortReason = Literal["interrupted", "cancelled", "failed"]


class Output(Protocol):
    """Where the fragments of one utterance go. Not thread-safe: one event loop.

    Order of the calls: `place` once per segment, when its speech has arrived; `push` once per chunk, then once with
    None; `finish`. If one of them raises, or the caller leaves, call `abort` in place of the rest.
    """

    watched: bool  # whether viewers see the utterance

    @property
    def shown_frames(self) -> int:
        """Frames that viewers have received. Without viewers: all frames that are made."""
        ...

    def place(self, segment: SpeechSegment) -> int:
        """Return the position of a segment on the session's timeline."""
        ...

    def slack_s(self, position: int) -> float:
        """Seconds until a frame at a position of the timeline must be made. Only where `watched`."""
        ...

    async def push(self, chunk: Chunk | None) -> list[Fragment]:
        """Render a chunk and take the fragments that it completes. None: the utterance ends, take the rest.

        Returns these fragments, with the pauses that the file keeps before them. Waits where the output is full.
        Raises FencedError, OSError, InterruptedSpeech.
        """
        ...

    async def finish(self) -> None:
        """Wait until everything is shown and written, then mark the utterance as complete in the file.

        Raises FencedError, OSError, InterruptedSpeech.
        """
        ...

    async def abort(self, reason: AbortReason) -> None:
        """Show nothing more, write what was shown, and mark where the utterance was interrupted.

        Raises FencedError, OSError.
        """
        ...

    def report(self, progress: dict[str, Any]) -> None:
        """Send the progress of the utterance to viewers."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the output adds to the summary of the utterance."""
        ...


class FileOutput:
    """Appends fragments to the session file as soon as they are encoded."""

    watched = False

    def __init__(self, renderer: Renderer) -> None:
        self._renderer, self._writer = renderer, renderer.writer

    @property
    def shown_frames(self) -> int:
        return self._writer.frames

    def place(self, segment: SpeechSegment) -> int:
        """Segments follow one another without a gap from the session's position on."""
        self._renderer.speech_arrived(segment)
        return self._writer.position + segment.first_frame

    def slack_s(self, position: int) -> float:
        return math.inf

    async def push(self, chunk: Chunk | None) -> list[Fragment]:
        if chunk is None:
            return await self._renderer.run(self._writer.add_rest)
        return await self._renderer.render(chunk, self._writer.add)

    async def finish(self) -> None:
        await self._renderer.run(self._writer.end)

    async def abort(self, reason: AbortReason) -> None:
        """An utterance whose caller left gets no end in the file: its frames stay there."""
        if reason == "interrupted":
            await self._renderer.run(self._writer.end, interrupted=True)

    def report(self, progress: dict[str, Any]) -> None:
        """There is no viewer."""

    def facts(self) -> dict[str, Any]:
        return {}


async def deliver(
    chunks: AsyncGenerator[Chunk, None], output: Output, interrupt: Interrupt
) -> AsyncGenerator[Fragment, None]:
    """Send all chunks through the output and yield their fragments; ends when the output has finished.

    Raises InterruptedSpeech and what the chunks or the output raise. Does not close `chunks`.
    """
    while (chunk := await interrupt.run(anext(chunks, None))) is not None:
        for fragment in await output.push(chunk):
            yield fragment
    for fragment in await output.push(None):
        yield fragment
    await output.finish()
