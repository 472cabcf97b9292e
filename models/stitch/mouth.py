"""One utterance's mouth over time: how much of the generated mouth each frame shows, and that mouth steadied."""

from __future__ import annotations

from models.speech.activity import ActivityDetector
from models.stitch.crop_filter import CropFilter
from models.stitch.rest import Rest, RestSettings
from models.types import Float32, Speech, UInt8


class Mouth:
    """Hears the speech of one utterance, weighs its frames and steadies its crops; without a steadier they stay."""

    def __init__(self, fps: int, rest: RestSettings | None = None, steadier: CropFilter | None = None) -> None:
        self._activity, self._rest, self._steadier = ActivityDetector(), Rest(fps, rest or RestSettings()), steadier
        self._heard: set[int] = set()  # first frames of the segments that are known

    def hear(self, speech: Speech, first_frame: int) -> None:
        """A segment, which begins at `first_frame` of the utterance. Hearing it again changes nothing."""
        if first_frame not in self._heard:
            self._heard.add(first_frame)
            self._rest.add(first_frame, speech.duration_s, self._activity(speech), speech.last)

    def weights(self, first_frame: int, count: int) -> Float32:
        """Weights `(count,)` of the generated mouth, 0 to 1, of the next frames; ask for each once, in order."""
        return self._rest.weights(first_frame, count)

    def crop(self, crop: UInt8, weight: float) -> UInt8:
        """The next frame's crop `(s, s, 3)` as it is to be pasted with that weight; one that is not seen is skipped."""
        if self._steadier is None:
            return crop
        if weight == 0:
            self._steadier.reset()
            return crop
        return self._steadier(crop)
