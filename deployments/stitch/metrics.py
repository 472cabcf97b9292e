"""What the calls of the stages cost, how far an utterance has come, and the summary of a finished one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from deployments.common.metrics import increment, set_gauge
from deployments.common.stage import StageTiming
from deployments.stitch.utterance import UtteranceWriter
from models.runtime.silences import with_silences

if TYPE_CHECKING:  # the outputs record calls, so they import this module
    from deployments.stitch.output import Output

CALL_PARTS = ("queue_ms", "transfer_ms", "compute_ms", "wall_ms", "busy_ms")
TICK_S = 0.25  # between two progress reports

T = TypeVar("T")


# --- calls


@dataclass(frozen=True, slots=True)
class StageCall:
    """One call of a stage, milliseconds. `wall_ms` runs from the arrival of its inputs to the arrival of its result.

    start_s: the arrival of its inputs at the caller. received_s, done_s: when the replica received and ended it. All by
    the wall clock.
    """

    stage: str
    frames: int
    queue_ms: float
    transfer_ms: float
    compute_ms: float
    wall_ms: float
    busy_ms: float  # the call's own share of compute_ms, where a batch served several calls
    start_s: float = 0.0
    received_s: float = 0.0
    done_s: float = 0.0
    replica: str = ""

    @classmethod
    def between(cls, timing: StageTiming, ready_s: float, end_s: float) -> StageCall:
        """A call that its stage has stamped. ready_s, end_s: start and end at the caller, wall clock.

        Transfer is measured in both directions. It is not computed as the remainder of the wall time, so the sum of
        the parts can be compared with the wall time.
        """
        transfer_s = max(0.0, timing.received_s - ready_s) + max(0.0, end_s - timing.done_s)
        parts_s = (timing.queue_s, transfer_s, timing.compute_s, end_s - ready_s, timing.busy_s)
        queue_ms, transfer_ms, compute_ms, wall_ms, busy_ms = (part_s * 1e3 for part_s in parts_s)
        call = cls(timing.stage, timing.frames, queue_ms, transfer_ms, compute_ms, wall_ms, busy_ms)
        return call.at(timing, ready_s)

    def at(self, timing: StageTiming, start_s: float) -> StageCall:
        """The call with its times and its replica."""
        received_s, done_s = timing.received_s, timing.done_s
        return replace(self, start_s=start_s, received_s=received_s, done_s=done_s, replica=timing.replica)


class CallTotals:
    """Running totals of growing lists of calls."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, float]] = {}
        self._added: dict[int, int] = {}  # number of calls already added, by list

    def add_new(self, *lists: list[StageCall]) -> None:
        """Add the calls that were appended to the lists since the previous time. Pass the lists in the same order."""
        for number, calls in enumerate(lists):
            for call in calls[self._added.get(number, 0) :]:
                row = self._rows.setdefault(call.stage, dict.fromkeys(("calls", "frames", *CALL_PARTS), 0.0))
                row["calls"] += 1
                row["frames"] += call.frames
                for part in CALL_PARTS:
                    row[part] += getattr(call, part)
            self._added[number] = len(calls)

    def rows(self) -> dict[str, dict[str, float]]:
        """Per stage: calls, frames, and the sums of CALL_PARTS in milliseconds."""
        return {stage: {key: round(float(v), 2) for key, v in row.items()} for stage, row in self._rows.items()}


def total_calls(calls: list[StageCall]) -> dict[str, dict[str, float]]:
    """Per stage: calls, frames, and the sums of CALL_PARTS in milliseconds."""
    totals = CallTotals()
    totals.add_new(calls)
    return totals.rows()


class LoadMeter:
    """Exports the load of live speech."""

    def record(self, live_sessions: int, capacity: float, reduced_frames: int) -> None:
        """Set the gauges, and count the frames of an utterance that has ended."""
        set_gauge("warmtalk_live_sessions", live_sessions)
        set_gauge("warmtalk_capacity_frames", capacity)
        increment("warmtalk_reduced_frames_total", reduced_frames)

    def record_refusal(self) -> None:
        increment("warmtalk_refused_total")


# --- progress


@dataclass(slots=True)
class Progress:
    """Progress of one utterance while it is made and shown. calls: the growing lists of its stage calls."""

    writer: UtteranceWriter
    output: Output
    calls: tuple[list[StageCall], ...]
    ttff_ms: float | None = None
    _totals: CallTotals = field(default_factory=CallTotals)
    _reported: dict[str, Any] = field(default_factory=dict)

    def report(self) -> dict[str, Any] | None:
        """The progress as in the `making` message, also sent to live viewers. None: nothing changed since the last."""
        self._totals.add_new(*self.calls)
        frames, shown = self.writer.frames, self.output.shown_frames
        facts = {
            "frames": frames,
            "shown_frames": shown,
            "duration_s": round(frames / self.writer.spec.fps, 3),
            "ttff_ms": None if self.ttff_ms is None else round(self.ttff_ms, 1),
            "spoken_chars": round(sum(len(text) * share for text, share in self._begun(shown))),
            "stages": self._totals.rows(),
        }
        if facts == self._reported:
            return None
        self._reported = facts
        self.output.report(facts)
        return facts

    def spoken(self) -> dict[str, Any]:
        """For the caller, with the latest report: the sentences that have begun, and whether somebody watches."""
        spoken = " ".join(text for text, _ in self._begun(self._reported["shown_frames"]))
        return {"spoken": spoken, "watched": self.output.watched}

    def _begun(self, shown: int) -> list[tuple[str, float]]:
        """Each sentence that begins within the first `shown` frames, with the share of it that they show, 0 to 1."""
        now_s = shown / self.writer.spec.fps
        begun = [cue for cue in tuple(self.writer.cues) if cue.start_s < now_s]
        return [(c.text, min(1.0, (now_s - c.start_s) / max(c.end_s - c.start_s, 1e-3))) for c in begun]


async def with_ticks(source: AsyncGenerator[T, None], every_s: float = TICK_S) -> AsyncGenerator[T | None, None]:
    """The items of a source as they arrive, and None every `every_s` seconds."""
    due_s = time.monotonic() + every_s
    async with aclosing(with_silences(source, lambda: max(0.0, due_s - time.monotonic()))) as items:
        async for item in items:
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + every_s
                yield None
            if item is not None:
                yield item
    if time.monotonic() >= due_s:
        yield None


# --- summary


def summary_of(
    writer: UtteranceWriter, calls: list[StageCall], retries: int, ttff_ms: float, wall_s: float
) -> dict[str, Any]:
    """The summary of an utterance of which at least one frame was made.

    ttff_ms: from its request to the first fragment. wall_s: the time that making it took.

    `frames` and `duration_s` count what is in the session's video, pauses inside the utterance included. `made_s`,
    `rtf` and `stages` count all frames that were made, also those that an interrupt kept out of the video.
    """
    assert writer.session is not None
    fps = writer.spec.fps
    made_s = writer.frames / fps
    session_id = writer.request.session_id
    return {
        "session_id": session_id,
        "avatar_id": writer.avatar.prepared.avatar_id,
        "video_path": str(writer.session.path),
        "video_url": f"/sessions/{session_id}/video.mp4",
        "frames": writer.kept_frames,
        "start_s": round(writer.start_s, 3),  # in the session's video
        "duration_s": round(writer.kept_frames / fps, 3),
        "made_s": round(made_s, 3),
        "ttff_ms": round(ttff_ms, 1),
        "rtf": round(wall_s / made_s, 3),
        "retries": retries,
        "audio_delay_ms": round(writer.audio_delay_s * 1e3, 1),  # of the sound relative to the lips, less than a frame
        "stages": total_calls(calls),
        "interrupted": writer.interrupted,
    }
