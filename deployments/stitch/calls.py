"""What each call of a stage cost, and what an utterance's calls come to. Knows stamps, not what they were put on."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.common.stage import StageTiming

PARTS = ("queue_ms", "transfer_ms", "compute_ms", "wall_ms", "busy_ms")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a stage, milliseconds. `wall_ms` runs from its inputs being ready to its result being at hand."""

    stage: str
    frames: int
    queue_ms: float
    transfer_ms: float
    compute_ms: float
    wall_ms: float
    busy_ms: float  # the call's own share of compute_ms, where a batch served several calls

    @classmethod
    def between(cls, timing: StageTiming, ready_s: float, end_s: float) -> Call:
        """A call that its stage has stamped, of which the caller saw both ends (wall clock, s).

        Transfer is measured on both ways, and is not what the other parts leave: so the parts can be held to the wall.
        """
        transfer_s = max(0.0, timing.received_s - ready_s) + max(0.0, end_s - timing.done_s)
        parts_s = (timing.queue_s, transfer_s, timing.compute_s, end_s - ready_s, timing.busy_s)
        return cls(timing.stage, timing.frames, *(part_s * 1e3 for part_s in parts_s))


class Sums:
    """What calls come to, as they come."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, float]] = {}
        self._added: dict[int, int] = {}  # calls of each list that were added

    def add_new(self, *lists: list[Call]) -> None:
        """Add what has been appended to lists since the last time."""
        for number, calls in enumerate(lists):
            for call in calls[self._added.get(number, 0) :]:
                row = self._rows.setdefault(call.stage, dict.fromkeys(("calls", "frames", *PARTS), 0.0))
                row["calls"] += 1
                row["frames"] += call.frames
                for part in PARTS:
                    row[part] += getattr(call, part)
            self._added[number] = len(calls)

    def rows(self) -> dict[str, dict[str, float]]:
        """Per stage: calls, frames, and summed milliseconds of queue, transfer, compute and wall."""
        return {stage: {key: round(float(v), 2) for key, v in row.items()} for stage, row in self._rows.items()}


def summarise(calls: list[Call]) -> dict[str, dict[str, float]]:
    """Per stage: calls, frames, and summed milliseconds of queue, transfer, compute and wall."""
    sums = Sums()
    sums.add_new(calls)
    return sums.rows()
