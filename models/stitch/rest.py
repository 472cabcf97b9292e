"""Computes how much of the generated mouth each frame shows, and how much of the source's own mouth.

The source's own mouth is shown in silence, because it is at rest there. Fades lie completely in silence: a frame with
any sound shows only the generated mouth. If the source's own mouth moves, the generated mouth is shown throughout; the
speech features then bring it to rest in silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.speech.activity import Spans, merge_spans
from models.types import Float32, PreparedAvatar

LEAST_FADE_S = 0.08  # a quicker fade looks like a jump; used only if the silence is too short
MARGIN_S = 0.08  # kept between fade and speech if possible: lips open before a sound and close after it
FRAME_TOLERANCE = 0.1  # frames: 0.08 s count as two frames at 24 fps, too
ROUNDING = 1e-6  # tolerance for sums of fractions and for times at a frame's edge
LIPS = ((61, 67), (62, 66), (63, 65))  # pairs of opposite iBUG points on the inner lips
EYES = (36, 45)  # iBUG points: the outer corners of the eyes
# Limit for the range of the inner lips' gap, 5th to 95th percentile, relative to the distance of the eyes. The embedded
# presenter has 0.0014 idle and 0.059 speaking. Landmarks that are a pixel off give 0.02 at 100 px between the eyes.
STILL = 0.03


@dataclass(frozen=True, slots=True)
class RestSettings:
    """fade_s: length of a fade. pause_s: a shorter silence between two sounds shows no fade.

    offset_s: how much later than the sound the lips are shown; negative is earlier. source_rests: the source's own
    mouth is at rest; if False, the generated mouth is shown throughout.
    """

    fade_s: float = 0.12
    pause_s: float = 0.3
    offset_s: float = 0.0
    source_rests: bool = True


def own_mouth_rests(avatar: PreparedAvatar) -> bool:
    """Whether the lips in the avatar's own frames are still, by its landmarks. False if no frame has a face."""
    points = avatar.landmarks[avatar.has_face].astype(np.float64)  # (n, 68, 2)
    if not len(points):
        return False
    eyes = np.linalg.norm(points[:, EYES[0]] - points[:, EYES[1]], axis=1)
    gaps = np.mean([np.linalg.norm(points[:, up] - points[:, low], axis=1) for up, low in LIPS], axis=0)
    low, high = np.percentile(gaps / np.maximum(eyes, 1.0), (5, 95))
    return bool(high - low <= STILL)


@dataclass(frozen=True, slots=True)
class _Silence:
    """Frames `begin` to `end` − 1 are silent. opens, closes: the utterance starts or ends with this silence."""

    begin: int
    end: int
    duration_s: float
    opens: bool
    closes: bool

    def fade(self, longest: int, least: int, margin: int) -> tuple[int, int]:
        """(frames of one fade, frames of the margin between fade and speech). The fade takes precedence."""
        length = self.end - self.begin
        if self.opens or self.closes:  # one fade; the last frame of an utterance is at rest
            room = length - self.closes
            frames = min(max(room, 1), longest)
            return frames, min(max(room - frames, 0), margin)
        room = length - 1  # two fades, and at least one frame at rest between them
        spare = min(max((room - 2 * least) // 2, 0), margin)
        return min(max((room - 2 * spare) // 2, 1), longest), spare


@dataclass(slots=True, eq=False)
class Rest:
    """The weights of one utterance. Speech is added per segment; decisions use what is known so far.

    At the end of the known speech the generated mouth is shown, since speech may continue there. Before and after an
    utterance the source's own mouth is shown.
    """

    fps: int
    settings: RestSettings = field(default_factory=RestSettings)
    _active: Spans = field(default_factory=lambda: np.zeros((0, 2)))  # spans of moving lips, seconds of the utterance
    _known_s: float = 0.0
    _ends: bool = False
    _level: float = 0.0  # weight of the last frame, before easing

    def add(self, first_frame: int, duration_s: float, active: Spans, last: bool) -> None:
        """Add speech of `duration_s` that starts at `first_frame`. active: its sounding spans, in seconds from there.

        Adding the same segment again has no effect. last: the utterance ends with it.
        """
        start_s, offset_s = first_frame / self.fps, self.settings.offset_s
        self._active = merge_spans(np.concatenate([self._active, active + (start_s + offset_s)]))
        self._known_s, self._ends = max(self._known_s, start_s + duration_s), self._ends or last

    def weights(self, first_frame: int, count: int) -> Float32:
        """Weights `(count,)` of the generated mouth, 0 to 1. Call it once per frame, in order."""
        levels = []
        for frame in range(first_frame, first_frame + count):
            silence = self._silence(frame) if self.settings.source_rests else None
            self._level = 1.0 if silence is None else self._silent_level(frame, silence)
            levels.append(self._level)
        return _eased(levels)

    def _silence(self, frame: int) -> _Silence | None:
        """The silence around a frame; None if the frame is not completely silent."""
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
        """The weight of a silent frame, from that of the frame before."""
        longest, least, margin = (self._frames(s) for s in (self.settings.fade_s, LEAST_FADE_S, MARGIN_S))
        fade, margin = silence.fade(longest, least, margin)
        step = 1.0 / (fade + 1)
        # 1. fade out after the lips have closed; between sounds only if the rest of the silence is a whole pause
        pauses = (
            silence.closes or silence.duration_s - (frame - silence.begin - margin) / self.fps >= self.settings.pause_s
        )
        falls = frame - silence.begin >= margin and (self._level < 1.0 or pauses)
        down = self._level - step if falls else self._level
        # 2. fade in early enough for the next sound
        up = 0.0 if silence.closes else 1.0 - step * max(silence.end - frame - margin, 0)
        level = min(max(down, up, 0.0), 1.0)
        return level if ROUNDING < level < 1.0 - ROUNDING else float(round(level))

    def _frames(self, seconds: float) -> int:
        return max(int(seconds * self.fps + FRAME_TOLERANCE), 1)


def _eased(levels: Sequence[float]) -> Float32:
    """Smoothstep of levels 0 to 1."""
    level = np.array(levels, np.float64)
    return (level * level * (3.0 - 2.0 * level)).astype(np.float32)
