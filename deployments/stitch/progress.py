"""How far an utterance has come while it is made and shown, several times a second. Belongs to Stitch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from deployments.stitch.calls import Call, Sums
from deployments.stitch.live.registry import OnStage
from deployments.stitch.utterance import Utterance

TICK_S = 0.25  # between two reports

T = TypeVar("T")


@dataclass(slots=True)
class Progress:
    """One utterance; `calls` are lists that grow. stage: where it is shown live, None where nobody watches."""

    utterance: Utterance
    stage: OnStage | None
    calls: tuple[list[Call], ...]
    ttff_ms: float | None = None
    _sums: Sums = field(default_factory=Sums)
    _told: dict[str, Any] = field(default_factory=dict)

    def report(self) -> dict[str, Any] | None:
        """How far it is (messages.Making), None where that was told already; whoever watches is told, too."""
        self._sums.add_new(*self.calls)
        frames = self.utterance.frames
        shown = frames if self.stage is None else self.stage.performance.released_frames
        facts = {
            "frames": frames,
            "shown_frames": shown,
            "duration_s": round(frames / self.utterance.spec.fps, 3),
            "ttff_ms": None if self.ttff_ms is None else round(self.ttff_ms, 1),
            "spoken_chars": round(sum(len(text) * share for text, share in self._begun(shown))),
            "stages": self._sums.rows(),
        }
        if facts == self._told:
            return None
        self._told = facts
        if self.stage is not None:
            self.stage.performance.broadcast.making(facts)
        return facts

    def heard(self) -> dict[str, Any]:
        """What of it the latest report was about: the sentences that have begun, and whether somebody watches."""
        spoken = " ".join(text for text, _ in self._begun(self._told["shown_frames"]))
        return {"spoken": spoken, "watched": self.stage is not None}

    def _begun(self, shown: int) -> list[tuple[str, float]]:
        """Each sentence that has begun within some frames, and how much of it they show, 0 to 1."""
        now_s = shown / self.utterance.spec.fps
        begun = [cue for cue in tuple(self.utterance.cues) if cue.start_s < now_s]
        return [(c.text, min(1.0, (now_s - c.start_s) / max(c.end_s - c.start_s, 1e-3))) for c in begun]


async def ticked(source: AsyncGenerator[T, None], every_s: float = TICK_S) -> AsyncGenerator[T | None, None]:
    """The items of a source as they come, and None whenever so much time has passed since the last None."""
    coming: asyncio.Future[T] | None = None
    due_s = time.monotonic() + every_s
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(source))
            await asyncio.wait({coming}, timeout=max(0.0, due_s - time.monotonic()))
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + every_s
                yield None
            if coming.done():
                done, coming = coming, None
                try:
                    item = done.result()
                except StopAsyncIteration:
                    return
                yield item
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
        await source.aclose()
