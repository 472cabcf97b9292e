"""A reading with what several gates look at, computed once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.quality.av_offset import Offset, offset_by_loudness, offset_by_phonemes, sound_delay_s
from models.quality.flicker import greys
from models.quality.lips import fill
from models.quality.silence import levels_db, quiet_frames, rest_frames
from models.speech.visemes import Track, opening_of, shaped, track_of
from warmtalk.cli.quality.media import SOUND_HZ
from warmtalk.cli.quality.reading import Reading

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


CUT_LEVELS, CUT_TIMES = 8.0, 5.0  # mean grey levels, and times the median change, above which a picture is another


class Sight:
    """Frames are counted from the video's first; `(n,)` is a value a frame."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    @cached_property
    def made_grey(self) -> npt.NDArray[np.int16]:
        return greys(self.reading.made.crops)

    @cached_property
    def source_grey(self) -> npt.NDArray[np.int16] | None:
        return None if self.reading.source is None else greys(self.reading.source.crops)

    @cached_property
    def has_sound(self) -> bool:
        return bool(len(self.reading.samples)) and not bool(self.quiet.all())

    @cached_property
    def levels(self) -> Float64:
        """Loudness in dB, `(n,)`."""
        reading = self.reading
        return levels_db(reading.samples, SOUND_HZ, reading.fps, reading.frames)

    @cached_property
    def quiet(self) -> Bool:
        """Frames without speech `(n,)`; all of a video without sound."""
        return quiet_frames(self.levels)

    @cached_property
    def rest(self) -> Bool:
        """Frames at which the mouth should rest `(n,)`."""
        return rest_frames(self.quiet, self.reading.fps) & self.reading.face

    @cached_property
    def pairs(self) -> Bool:
        """`(n - 1,)`: a face in a frame and in the next, and no cut between them."""
        face, change = self.reading.face, self.reading.change
        cut = change > max(CUT_LEVELS, CUT_TIMES * float(np.median(change)))
        return face[1:] & face[:-1] & ~cut

    @cached_property
    def middles(self) -> npt.NDArray[np.int64]:
        """Frames with a face in themselves and in both frames beside them."""
        return np.flatnonzero(self.pairs[1:] & self.pairs[:-1]) + 1

    @cached_property
    def gap(self) -> Float64:
        """Lip gap over the eyes' distance `(n,)`, bridged where no face is seen."""
        return fill(np.where(self.reading.face, self.reading.made.mouth.gap, np.nan))

    @cached_property
    def track(self) -> Track | None:
        """The mouth that the phonemes ask for, in the video's own frames; None where none are known."""
        sidecar = self.reading.sidecar
        if sidecar is None or not any(phoneme.symbol != "_" for phoneme in sidecar.phonemes):
            return None
        return track_of(shaped(sidecar.phonemes), self.reading.frames, sidecar.spec.fps)

    @cached_property
    def offset(self) -> Offset | None:
        """Lips against what is heard; None without sound, or where too little is seen."""
        reading = self.reading
        if not self.has_sound or reading.frames < 25 or reading.face.sum() < reading.frames // 2:
            return None
        if self.track is None or reading.sidecar is None:
            return offset_by_loudness(self.levels, self.gap, reading.fps)
        delay_s = sound_delay_s(shaped(reading.sidecar.phonemes), reading.samples, SOUND_HZ)
        return offset_by_phonemes(opening_of(self.track.mouth), self.gap, delay_s, reading.fps)
