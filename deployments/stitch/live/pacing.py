"""How fast frames are made: what to expect of an utterance, and how long its speech must wait so that it never stops.

Arithmetic alone; belongs to Stitch's broadcasts. Knows no clock but the times it is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SAFETY = 1.25  # frames may take so much longer than they did lately
OVERDUE = 1.3  # what is late will come, but not at once
LEARNING = 0.4  # how much the latest burst says
RELEASE_S = 0.08  # a piece leaves Stitch this long before it is due: the way to the ingress, and no more
RESERVE_S = 0.4  # a burst may come so much later than the others, where the machine has little to spare
# How much of the time frames take to play their making may take before that is so: from there on, and altogether. Where
# several speak at once each is held up by all the others, so it is so sooner.
TIGHT_ALONE, TIGHT_SHARED = (0.9, 1.0), (0.6, 0.9)
LONGEST_WAIT_S = 4.0  # of a sentence, for so much of it to be made that it can be played without a stop


@dataclass(slots=True)
class Supply:
    """Frames of one utterance come in bursts, a file's fragment each. Times are seconds of any one clock.

    frame_s: to make a frame, as it was lately. full: what makes them waits for its frames to be shown. shared: others
    speak at the same time.
    """

    fps: int
    frame_s: float
    came_s: float  # when the latest burst came, or its making began
    burst: int = 12
    made: int = 0
    full: bool = False
    shared: bool = False

    def came(self, frames: int, now_s: float, learn: bool = True) -> float:
        """Count a burst; returns what its making took. learn: its making has waited for nothing else."""
        took_s = max(0.0, now_s - self.came_s)
        if learn:  # a short burst takes longer a frame, and says less of the others
            self.frame_s += LEARNING * min(1.0, frames / self.burst) * (took_s / frames - self.frame_s)
            self.burst = frames if 2 * frames > self.burst else self.burst
        self.made, self.came_s = self.made + frames, now_s
        return took_s

    def resumed(self, now_s: float) -> None:
        """Making goes on after it had to wait."""
        self.full, self.came_s = False, now_s

    def lack_s(self, shown: int, until: int, end: int, now_s: float, begun: bool = True) -> float:
        """For how long frame `shown` must wait so that every frame up to `until` is there when it is due.

        end: of the segment, with which a burst may come that is shorter than the others. begun: some of the segment is
        made; else other things than frames are waited for, a voice to begin with, and how long says nothing of these.
        """
        missing = until - self.made
        if missing <= 0 or self.full:
            return 0.0
        spent_s = max(0.0, now_s - self.came_s) if begun else 0.0
        left = end - self.made
        burst = min(self.burst, left)
        frame_s, reserve_s = self.frame_s * SAFETY, self._reserve_s()
        if spent_s > burst * frame_s:  # a burst that is overdue says that making has become slower
            frame_s = OVERDUE * spent_s / burst
        lack_s = 0.0
        for before in range(0, missing, burst):
            there_s = min(before + burst, left) * frame_s - spent_s
            lack_s = max(lack_s, there_s + reserve_s - (self.made + before - shown) / self.fps)
        return lack_s

    def _reserve_s(self) -> float:
        """What is to be made ahead of need: nothing where frames are made much faster than they are played."""
        begins, whole = TIGHT_SHARED if self.shared else TIGHT_ALONE
        return RESERVE_S * min(1.0, max(0.0, (self.frame_s * SAFETY * self.fps - begins) / (whole - begins)))

    def holds_frames(self, lack_s: float, step: int, least: int, most: int) -> int:
        """A lack as frames to wait: whole steps, within bounds; 0 where nothing lacks."""
        if lack_s <= 0:
            return 0
        frames = math.ceil(lack_s * self.fps / step) * step
        return min(max(frames, least), most)


@dataclass(slots=True)
class Pace:
    """How long segments take, learned from those before: mean and deviation as TCP's timer (RFC 6298) keeps them."""

    first_s: float = 0.35  # from a segment's place being chosen to its first fragment
    deviation_s: float = 0.1
    frame_s: float = 0.02  # to make a frame, once it runs and nobody else speaks
    speaking: int = 1  # who share the machine now

    def took(self, first_s: float) -> None:
        self.deviation_s += 0.25 * (abs(first_s - self.first_s) - self.deviation_s)
        self.first_s += 0.25 * (first_s - self.first_s)

    def made(self, frames: int, seconds: float) -> None:
        self.frame_s += 0.2 * (seconds / frames / max(self.speaking, 1) - self.frame_s)

    @property
    def own_frame_s(self) -> float:
        """To make a frame among all who speak."""
        return self.frame_s * max(self.speaking, 1)

    def lead_s(self, frames: int, fps: int) -> float:
        """How far ahead a segment must be placed so that it is there in time, and is not overtaken by its playing."""
        slower = max(0.0, self.own_frame_s - 1 / fps) * frames
        return self.first_s + 2 * self.deviation_s + RELEASE_S + min(slower, LONGEST_WAIT_S)
