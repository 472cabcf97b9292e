"""Says how much of the generated mouth each frame shows, and how much of the source's own, which rests in silences.

A fade lies wholly in silence: a frame in which anything sounds shows the generated mouth alone. A source whose own
mouth moves cannot rest there: then the mouth generated from silence rests. Knows no pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.speech.activity import Spans, merge_spans
from models.types import Float32, PreparedAvatar

LEAST_FADE_S = 0.08  # a quicker fade is seen as a jump; one that silence has no room for is quicker still
MARGIN_S = 0.08  # kept clear of fades beside speech, where there is room: lips open before a sound, and close after it
FRAME_TOLERANCE = 0.1  # 0.08 s are two frames at 24 per second too
ROUNDING = 1e-6  # thirds must add up to 1, and a frame's edge falls on itself
LIPS = ((61, 67), (62, 66), (63, 65))  # iBUG points above and below each other on the inner lips
EYES = (36, 45)  # the eyes' outer corners
# How far the inner lips' gap goes in a mouth at rest, 5th to 95th percentile, over the eyes' distance. The embedded
# presenter has 0.0014 idle and 0.059 speaking; landmarks a pixel off make 0.02 of a face with 100 px between the eyes.
STILL = 0.03


@dataclass(frozen=True, slots=True)
class RestSettings:
    """fade_s: from one mouth to the other. pause_s: in a shorter silence between two sounds nothing fades.

    offset_s: how much later than their sound the lips are shown; negative is earlier. source_rests: the source's own
    mouth is at rest; else the generated one is shown throughout, which rests where the speech does.
    """

    fade_s: float = 0.12
    pause_s: float = 0.3
    offset_s: float = 0.0
    source_rests: bool = True


def own_mouth_rests(avatar: PreparedAvatar) -> bool:
    """Whether the lips of the avatar's own frames keep still, by its landmarks; False where no frame has a face."""
    points = avatar.landmarks[avatar.has_face].astype(np.float64)  # (n, 68, 2)
    if not len(points):
        return False
    eyes = np.linalg.norm(points[:, EYES[0]] - points[:, EYES[1]], axis=1)
    gaps = np.mean([np.linalg.norm(points[:, up] - points[:, low], axis=1) for up, low in LIPS], axis=0)
    low, high = np.percentile(gaps / np.maximum(eyes, 1.0), (5, 95))
    return bool(high - low <= STILL)


@dataclass(frozen=True, slots=True)
class _Silence:
    """Frames `begin` up to `end` are wholly silent. opens: the utterance begins with it. closes: it ends with it."""

    begin: int
    end: int
    duration_s: float
    opens: bool
    closes: bool

    def fade(self, longest: int, least: int, margin: int) -> tuple[int, int]:
        """Frames of one fade, and of the margin between it and speech: what there is room for, the fade first."""
        length = self.end - self.begin
        if self.opens or self.closes:  # one fade; at the end, the last frame is at rest
            room = length - self.closes
            frames = min(max(room, 1), longest)
            return frames, min(max(room - frames, 0), margin)
        room = length - 1  # two fades, and a frame at rest between them
        spare = min(max((room - 2 * least) // 2, 0), margin)
        return min(max((room - 2 * spare) // 2, 1), longest), spare


@dataclass(slots=True, eq=False)
class Rest:
    """The weights of one utterance. Speech is added a segment at a time, and what is known by then decides.

    The generated mouth is back where knowledge ends, since speech may begin there. Before an utterance, and after it,
    the source's own mouth is shown.
    """

    fps: int
    settings: RestSettings = field(default_factory=RestSettings)
    _active: Spans = field(default_factory=lambda: np.zeros((0, 2)))  # when lips move, seconds of the utterance
    _known_s: float = 0.0
    _ends: bool = False
    _level: float = 0.0  # of the last frame, before easing

    def add(self, first_frame: int, duration_s: float, active: Spans, last: bool) -> None:
        """What is spoken for `duration_s` from `first_frame` on; `active`: when, in seconds from there.

        The same may be added again. last: the utterance ends with it.
        """
        start_s, offset_s = first_frame / self.fps, self.settings.offset_s
        self._active = merge_spans(np.concatenate([self._active, active + (start_s + offset_s)]))
        self._known_s, self._ends = max(self._known_s, start_s + duration_s), self._ends or last

    def weights(self, first_frame: int, count: int) -> Float32:
        """Weights `(count,)` of the generated mouth, 0 to 1, of the next frames; ask for each once, in order."""
        levels = []
        for frame in range(first_frame, first_frame + count):
            silence = self._silence(frame) if self.settings.source_rests else None
            self._level = 1.0 if silence is None else self._silent_level(frame, silence)
            levels.append(self._level)
        return _eased(levels)

    def _silence(self, frame: int) -> _Silence | None:
        """The silence around a frame; None where it is not wholly silent."""
        starts, ends = self._active[:, 0], self._active[:, 1]
        before, after = ends[ends <= frame / self.fps + ROUNDING], starts[starts >= (frame + 1) / self.fps - ROUNDING]
        if len(before) + len(after) < len(self._active):
            return None
        last = self._ends and not len(after)
        known_s = self._known_s + (0.0 if self._ends else min(self.settings.offset_s, 0.0))
        begin_s, end_s = before[-1] if len(before) else 0.0, after[0] if len(after) else known_s
        begin, end = math.ceil(begin_s * self.fps - ROUNDING), math.floor(end_s * self.fps + ROUNDING)
        return _Silence(begin, end, end_s - begin_s, not len(before), last)

    def _silent_level(self, frame: int, silence: _Silence) -> float:
        """A silent frame's level, from that of the frame before."""
        longest, least, margin = (self._frames(s) for s in (self.settings.fade_s, LEAST_FADE_S, MARGIN_S))
        fade, margin = silence.fade(longest, least, margin)
        step = 1.0 / (fade + 1)
        # 1. downward, once the lips have closed; from the generated mouth only where a whole pause lies ahead
        pauses = (
            silence.closes or silence.duration_s - (frame - silence.begin - margin) / self.fps >= self.settings.pause_s
        )
        falls = frame - silence.begin >= margin and (self._level < 1.0 or pauses)
        down = self._level - step if falls else self._level
        # 2. upward, so that the generated mouth is back in time
        up = 0.0 if silence.closes else 1.0 - step * max(silence.end - frame - margin, 0)
        level = min(max(down, up, 0.0), 1.0)
        return level if ROUNDING < level < 1.0 - ROUNDING else float(round(level))

    def _frames(self, seconds: float) -> int:
        return max(int(seconds * self.fps + FRAME_TOLERANCE), 1)


def _eased(levels: Sequence[float]) -> Float32:
    """Levels 0 to 1 with a soft start and end."""
    level = np.array(levels, np.float64)
    return (level * level * (3.0 - 2.0 * level)).astype(np.float32)
