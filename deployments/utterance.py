"""One utterance on its way into a session: pastes crops, encodes fragments, appends them. Knows no other stage.

Nothing is written before its first frame is there, so a refused or failed request leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from deployments.line import Chunk
from deployments.requests import SpeakRequest
from deployments.sessions import OpenSessions
from models.audio import resample
from models.avatar.playback import ping_pong
from models.stitch.encode import Clock, MediaSpec, UtteranceEncoder, live_zero, rebase
from models.stitch.mouth import Mouth
from models.stitch.paste import Paster
from models.stitch.session import SessionFile
from models.stitch.sidecar import Record, frames_record, speech_record, utterance_record
from models.stitch.steady import WHOLE
from models.types import Box, Float32, Fragment, PreparedAvatar, Speech, UInt8


@dataclass(frozen=True, slots=True)
class LoadedAvatar:
    """A prepared avatar with its frames, and what pastes into them."""

    prepared: PreparedAvatar
    paster: Paster
    rests: bool = True  # the mouth of its own frames keeps still
    pasted: Box = WHOLE  # what of a crop is ever seen


@dataclass(slots=True)
class Utterance:
    """`position` is the session's frame count at its start; `speech` stays empty where TTS makes it.

    weights: of the generated mouth in each frame, 0 to 1, an array `(n,)` a chunk. engines: stage → engine, as far as
    is known.
    """

    request: SpeakRequest
    sessions: OpenSessions
    avatar: LoadedAvatar
    spec: MediaSpec
    position: int
    mouth: Mouth
    speech: tuple[Speech, ...] = ()
    frames: int = 0
    session: SessionFile | None = None
    encoder: UtteranceEncoder | None = None
    weights: list[Float32] = field(default_factory=list)
    engines: dict[str, str] = field(default_factory=dict)
    _begins: int = 0  # the video's frame count at its start
    _zero: Clock | None = None

    def add(self, chunk: Chunk) -> list[Fragment]:
        """Paste, encode and append a chunk; return the fragments that it completed. Raises FencedError, OSError."""
        session, encoder = self._begun()
        self._hear(chunk)
        first_frame, crops = chunk.crops.first_frame, chunk.crops.images
        weights = self.mouth.weights(first_frame, len(crops))
        frames = self._paste(first_frame, crops, weights)
        session.note(*self._notes(chunk, weights))
        fragments = encoder.push(frames, self._sound(chunk.speech), chunk.last)
        for fragment in fragments:
            session.append(fragment)
        self.frames += len(frames)
        self.weights.append(weights)
        return fragments

    def end(self) -> None:
        """Mark the utterance as complete; it has a frame. Raises FencedError."""
        assert self.session is not None, "an utterance without a frame has no session"
        self.session.end_utterance()

    def live(self, fragment: Fragment) -> bytes:
        """The fragment on the viewer's own timeline, which starts at 0 with the utterance."""
        if self._zero is None:
            self._zero = live_zero(fragment)
        return rebase(fragment, self._zero.video_ticks, self._zero.audio_samples)

    def _begun(self) -> tuple[SessionFile, UtteranceEncoder]:
        if self.session is None or self.encoder is None:
            request, prepared = self.request, self.avatar.prepared
            self.session = self.sessions.begin(request.session_id, self.spec, prepared, request.text)
            self._begins = self.session.frames
            self.session.note(utterance_record(self._begins, request.text, self.engines))
            self.encoder = UtteranceEncoder(self.session.spec, self.session.clock)
        return self.session, self.encoder

    def _hear(self, chunk: Chunk) -> None:
        """What the mouth can know by now: the chunk's segment, and the one after it if that is here."""
        if chunk.speech is not None:
            self.mouth.hear(chunk.speech, chunk.crops.first_frame)
        if chunk.following is not None:
            self.mouth.hear(*chunk.following)

    def _notes(self, chunk: Chunk, weights: Float32) -> list[Record]:
        """The sidecar's lines of a chunk."""
        avatar, frame = self.avatar.prepared, self._begins + chunk.crops.first_frame
        indices = ping_pong(self.position + chunk.crops.first_frame, len(weights), len(avatar))
        spoken = [] if chunk.speech is None else [speech_record(frame, chunk.speech)]
        return [*spoken, frames_record(frame, indices, avatar, weights)]

    def _sound(self, speech: Speech | None) -> Float32:
        """A segment's samples at the session's rate; none where its first chunk has brought them already."""
        if speech is None:
            return np.zeros(0, np.float32)
        return resample(speech.samples, speech.sample_rate_hz, self.spec.sample_rate_hz)

    def _paste(self, first_frame: int, crops: UInt8, weights: Float32) -> UInt8:
        """The avatar's own frames with the crops pasted in, `(n, h, w, 3)`; a frame without a face stays as it is."""
        avatar = self.avatar.prepared
        assert avatar.frames is not None
        indices = ping_pong(self.position + first_frame, len(crops), len(avatar))
        frames = np.empty((len(crops), avatar.height, avatar.width, 3), np.uint8)
        for frame, crop, index, weight in zip(frames, crops, indices.tolist(), weights.tolist(), strict=True):
            frame[:] = avatar.frames[index]
            self.avatar.paster.paste_into(frame, self.mouth.crop(crop, weight), index, weight)
        return frames
