"""Per-frame signals that several gates use, computed once from the analysis of a video."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.quality.av_offset import SoundOffset, offset_by_loudness, offset_by_phonemes, sound_delay_s
from models.quality.flicker import greys
from models.quality.lips import fill
from models.quality.silence import levels_db, quiet_frames, rest_frames
from models.speech.visemes import MouthTrack, lip_opening, mouth_track, to_visemes
from warmtalk.cli.quality.analysis import VideoAnalysis
from warmtalk.cli.quality.media import SOUND_HZ

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

CUT_LEVELS, CUT_TIMES = 8.0, 5.0  # a cut: change in mean grey levels, and as a multiple of the median change


class Signals:
    """Frames are counted from the first of the video; `(n,)` is one value per frame."""

    def __init__(self, analysis: VideoAnalysis) -> None:
        self.analysis = analysis

    @cached_property
    def made_grey(self) -> npt.NDArray[np.int16]:
        return greys(self.analysis.made.crops)

    @cached_property
    def source_grey(self) -> npt.NDArray[np.int16] | None:
        return None if self.analysis.source is None else greys(self.analysis.source.crops)

    @cached_property
    def has_sound(self) -> bool:
        return bool(len(self.analysis.samples)) and not bool(self.quiet.all())

    @cached_property
    def levels(self) -> Float64:
        """Loudness in dB, `(n,)`."""
        analysis = self.analysis
        return levels_db(analysis.samples, SOUND_HZ, analysis.fps, analysis.frames)

    @cached_property
    def quiet(self) -> Bool:
        """Frames without speech `(n,)`; all frames of a video without sound."""
        return quiet_frames(self.levels)

    @cached_property
    def rest(self) -> Bool:
        """Frames at which the mouth should rest `(n,)`."""
        return rest_frames(self.quiet, self.analysis.fps) & self.analysis.face

    @cached_property
    def pairs(self) -> Bool:
        """`(n - 1,)`: a face in this frame and in the next, and no cut between them."""
        face, change = self.analysis.face, self.analysis.change
        cut = change > max(CUT_LEVELS, CUT_TIMES * float(np.median(change)))
        return face[1:] & face[:-1] & ~cut

    @cached_property
    def middles(self) -> npt.NDArray[np.int64]:
        """Indices of frames with a face in them and in both neighbours."""
        return np.flatnonzero(self.pairs[1:] & self.pairs[:-1]) + 1

    @cached_property
    def gap(self) -> Float64:
        """Lip gap relative to the distance of the eyes `(n,)`, interpolated where no face is found."""
        return fill(np.where(self.analysis.face, self.analysis.made.mouth.gap, np.nan))

    @cached_property
    def track(self) -> MouthTrack | None:
        """The mouth that the phonemes ask for, per video frame; None without phonemes."""
        sidecar = self.analysis.sidecar
        if sidecar is None or not any(phoneme.symbol != "_" for phoneme in sidecar.phonemes):
            return None
        return mouth_track(to_visemes(sidecar.phonemes), self.analysis.frames, sidecar.spec.fps)

    @cached_property
    def offset(self) -> SoundOffset | None:
        """Offset between lips and sound; None without sound, or if the face is visible too rarely."""
        analysis = self.analysis
        if not self.has_sound or analysis.frames < 25 or analysis.face.sum() < analysis.frames // 2:
            return None
        if self.track is None or analysis.sidecar is None:
            return offset_by_loudness(self.levels, self.gap, analysis.fps)
        delay_s = sound_delay_s(to_visemes(analysis.sidecar.phonemes), analysis.samples, SOUND_HZ)
        return offset_by_phonemes(lip_opening(self.track.mouth), self.gap, delay_s, analysis.fps)
