"""When the chunks of one utterance are due."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deployments.common.urgency import FILE_LATE_S, Urgency


@dataclass(slots=True)
class Schedule:
    """The urgency of each chunk, at the moment at which it is sent.

    slack_s(position): seconds until a frame must be made, where viewers wait for it; None where nobody watches. Then
    frames are due as if the video was played from its first chunk on. An utterance that is more than FILE_LATE_S late
    starts over: its next frames are due when they would be played if the latest were shown now.
    """

    fps: int
    slack_s: Callable[[int], float] | None = None
    _started_s: float = field(default_factory=lambda: time.monotonic())

    def begin(self) -> None:
        """The first chunk has been made: now the video can be played."""
        self._started_s = time.monotonic()

    def urgency(self, first_frame: int, position: int, frames: int) -> Urgency:
        """Of a chunk that starts at `first_frame` of the utterance and `position` of the timeline.

        The first chunk of an utterance is as urgent as a watched one, and due as soon as it can be made.
        """
        length_s = frames / self.fps
        if self.slack_s is not None:
            slack_s = self.slack_s(position)
        else:
            played_s = time.monotonic() - self._started_s
            slack_s = first_frame / self.fps - played_s
            if slack_s < -FILE_LATE_S:
                self._started_s -= slack_s
        if first_frame == 0:
            slack_s = min(slack_s, length_s) if self.slack_s is not None else length_s
            return Urgency(slack_s, length_s, background=False)
        return Urgency(slack_s, length_s, background=self.slack_s is None)
