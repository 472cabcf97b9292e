"""The mouth of one utterance over time: the weight of the generated mouth per frame, and its temporal filter."""

from __future__ import annotations

from models.speech.activity import ActivityDetector, Spans
from models.stitch.crop_filter import CropFilter
from models.stitch.rest import Rest, RestSettings
from models.types import Float32, Speech, UInt8


class Mouth:
    """Weights the frames of an utterance and filters its crops. Without a filter, crops are unchanged."""

    def __init__(self, fps: int, rest: RestSettings | None = None, crop_filter: CropFilter | None = None) -> None:
        self._activity, self._rest, self._filter = ActivityDetector(), Rest(fps, rest or RestSettings()), crop_filter
        self._added: set[int] = set()  # first frames of the segments added so far

    def add_speech(self, speech: Speech, first_frame: int, active: Spans | None = None) -> None:
        """Add a segment that starts at `first_frame` of the utterance. Adding it again has no effect.

        active: when it sounds, seconds from its start; None: detect it.
        """
        if first_frame not in self._added:
            self._added.add(first_frame)
            spans = self._activity(speech) if active is None else active
            self._rest.add(first_frame, speech.duration_s, spans, speech.last)

    def weights(self, first_frame: int, count: int) -> Float32:
        """Weights `(count,)` of the generated mouth, 0 to 1. Call it once per frame, in order."""
        return self._rest.weights(first_frame, count)

    def crop(self, crop: UInt8, weight: float) -> UInt8:
        """The next frame's crop `(s, s, 3)`, filtered. A crop of weight 0 is not shown, and resets the filter."""
        if self._filter is None:
            return crop
        if weight == 0:
            self._filter.reset()
            return crop
        return self._filter(crop)
