"""One utterance on its way into a session: pastes crops, encodes fragments, appends them. Knows no other stage.

Nothing is written before its first fragment is, which on air means shown: speech that is refused, fails, or is cut
before anybody saw it, leaves no trace.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from deployments.common.messages import SpeakRequest
from deployments.stitch.chunks import Chunk
from deployments.stitch.live.playout import REST_FRAMES
from deployments.stitch.open_sessions import OpenSessions
from models.avatar.playback import ping_pong
from models.errors import FencedError
from models.live.cues import Cue, add_cue
from models.live.pauses import Pause, PausePart, RestFragment
from models.live.timeline import LIVE_FRAMES, IdleGrid, encode_closed_gop, fade_out_weights, rest_steps
from models.media.encode import VIDEO_TIMESCALE, Clock, MediaSpec, UtteranceEncoder, live_zero, rebase
from models.media.yuv import AnyFrame, picture_at
from models.speech.audio import resample
from models.stitch.canvas import Canvas
from models.stitch.crop_filter import WHOLE_CROP
from models.stitch.mouth import Mouth
from models.stitch.paste import PasteMemory, Paster
from models.stitch.session import SessionFile
from models.stitch.sidecar import Record, frames_record, pause_record, speech_record, utterance_record
from models.types import Box, FaceCrops, Float32, Fragment, PreparedAvatar, Speech, UInt8, Word

log = logging.getLogger("ray.serve")

KEPT_CROPS = 32  # every fourth of the frames that may be made ahead of what is shown
ROUNDING = 1e-6  # of times as frames
LOOK_PX = 32  # of a frame's height, to tell how alike two are
KEPT_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
# as pictures, 32 crops of 512 px are 25 MB an utterance; like this, some 4 MB


@dataclass(frozen=True, slots=True)
class LoadedAvatar:
    """A prepared avatar with its frames, and what pastes into them: `paster`, or where that is at work its twins."""

    prepared: PreparedAvatar
    paster: Paster
    rests: bool = True  # the mouth of its own frames keeps still
    pasted: Box = WHOLE_CROP  # what of a crop is ever seen
    _idle: deque[Paster] = field(default_factory=deque, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._idle.append(self.paster)

    @contextmanager
    def beside(self) -> Iterator[Paster]:
        """A paster that nobody else has: the one that was given back last, or a new one. From any thread."""
        try:
            paster = self._idle.pop()
        except IndexError:
            paster = self.paster.clone()
        try:
            yield paster
        finally:
            self._idle.append(paster)


@dataclass(slots=True)
class Utterance:
    """`position` is the session's at its start; `speech` stays empty where TTS makes it.

    weights: of the generated mouth in each frame, 0 to 1, an array `(n,)` a chunk. engines: stage → engine, as far as
    is known. On air, where somebody watches the session live, what `make` gives is written when it has been shown; else
    at once, by `add`. pauses: what the file keeps of what is shown before a fragment, by the tick at which it starts.
    """

    request: SpeakRequest
    sessions: OpenSessions
    avatar: LoadedAvatar
    spec: MediaSpec
    position: int
    mouth: Mouth
    speech: tuple[Speech, ...] = ()
    pasting: PasteMemory = field(default_factory=PasteMemory)
    frames: int = 0
    late_s: float = 0.0  # how late its sound stands against its lips, at most: 0 where it begins or follows silently
    on_air: bool = False  # somebody watches: the mouth may have to come to rest at any frame
    pause: Pause | None = None  # on air: what is shown where it does not speak, to be kept in the file
    resting: tuple[float, ...] = ()  # on air: weights of the frames in which the mouth last came to rest
    complete: bool = False  # all that was to be said is made
    said: str | None = None  # all that it says, where the text came bit by bit
    session: SessionFile | None = None  # it is this utterance's to write from its first frame on
    kept_frames: int = 0  # of it that are in the file: its speech, and the pauses inside
    pauses: dict[int, list[PausePart]] = field(default_factory=dict)
    encoder: UtteranceEncoder | None = None
    weights: list[Float32] = field(default_factory=list)
    engines: dict[str, str] = field(default_factory=dict)
    _notes: deque[tuple[int, Record]] = field(default_factory=deque)  # for the sidecar, by the video's frame
    _line_end: int = 0  # the position behind the last frame that is made
    _moved: list[tuple[int, int]] = field(default_factory=list)  # from a frame of it on: by how many in the video
    _crops: dict[int, UInt8] = field(default_factory=dict)  # on air: some of the latest as JPEG, by frame of it
    _written: int = 0  # frames that are in the file; on air, they have been shown
    _rested: int = -1  # frames that had been shown when the mouth was last brought to rest
    _zero: Clock | None = None
    _start: Clock | None = None
    _canvas: Canvas | None = None  # the frame being made
    _end: Clock | None = None  # where the encoder before has ended
    cues: list[Cue] = field(default_factory=list)  # what it says, in seconds from its first frame, as far as it is made
    _told: dict[int, float] = field(default_factory=dict)  # cues in the transcript, by number: where they end

    def add(self, chunk: Chunk, close: bool | None = None) -> list[Fragment]:
        """Paste, encode and append a chunk; return the fragments that it completed. Raises FencedError, OSError."""
        fragments = self.make(chunk, chunk.last if close is None else close)
        for fragment in fragments:
            self.write(fragment)
        return fragments

    def make(self, chunk: Chunk, close: bool) -> list[Fragment]:
        """Paste and encode a chunk; with `close` everything so far comes out, and what follows has a new encoder."""
        position, first = self._position(chunk), chunk.crops.first_frame
        encoder = self._opened(position, first)
        if chunk.speech is not None:
            add_cue(self.cues, chunk.speech, first / self.spec.fps)
        self._hear(chunk)
        weights = self.mouth.weights(first, len(chunk.crops))
        frames = self._pasted(position, chunk.crops, weights)
        fragments = encoder.push(frames, self._sound(chunk.speech), close)
        self._note(chunk, weights)
        self.late_s = max(self.late_s, encoder.audio_delay_s)
        if close:
            self.encoder, self._end = None, encoder.clock
        self.frames += len(weights)
        self.weights.append(weights)
        self._line_end = position + len(weights)
        return fragments

    def flush(self) -> list[Fragment]:
        """What the encoder still holds; afterwards it is closed."""
        if self.encoder is None:
            return []
        encoder, self.encoder = self.encoder, None
        fragments = encoder.push((), np.zeros(0, np.float32), True)
        self._end = encoder.clock
        return fragments

    def rest(self, shown: int, positions: Sequence[int]) -> tuple[bytes, ...]:
        """H.264 samples of frames in which the mouth goes from speech, `shown` frames into it, to rest.

        positions: of the head, on the session's line. Safe beside `make`.
        """
        moving = shown != self._rested  # a mouth at rest stays there until more has been shown
        self._rested = shown
        rested = self._resting(shown, positions, moving)
        self.resting = rested.weights
        return rested.video

    def _resting(self, shown: int, positions: Sequence[int], moving: bool) -> RestFragment:
        avatar = self.avatar.prepared
        known = [frame for frame in tuple(self._crops) if frame < shown]
        crop = self._crops.get(max(known)) if known and moving else None
        indices = [int(ping_pong(position, 1, len(avatar))[0]) for position in positions]
        weights, face, memory = [0.0] * len(indices), None, deepcopy(self.pasting)
        if crop is not None:
            face = _unpacked(crop)
            level = float(np.concatenate(self.weights)[shown - 1]) if shown else 0.0
            weights = [level * weight for weight in fade_out_weights(len(indices))]
        canvas = Canvas(avatar)
        with self.avatar.beside() as paster:
            frames = (canvas.frame(paster, face, *at, memory) for at in zip(indices, weights, strict=True))
            return RestFragment(encode_closed_gop(frames, self.spec), tuple(weights))

    def write(self, fragment: Fragment, position: int | None = None) -> None:
        """Append a fragment, the pause before it, and to the transcript the sentences that begin in it.

        Raises FencedError, OSError.
        """
        with self.sessions.lock:
            self._write(fragment, position)

    def _write(self, fragment: Fragment, position: int | None) -> None:
        assert self.session is not None
        pause = self.pauses.pop(fragment.video_start, [])
        if self._written:
            self._keep(pause)
            self.kept_frames += sum(part.fragment.frames for part in pause)
        else:
            self._begin(pause)
        end = self.session.frames + fragment.frames
        while self._notes and self._notes[0][0] < end:  # lines of what is not shown would speak of what comes instead
            self.session.add_to_sidecar(self._notes.popleft()[1])
        for cue in tuple(self.cues):
            here = self._in_video(cue)
            if here.start_s < fragment.start_s + fragment.duration_s and self._told.get(cue.number) != cue.end_s:
                self.session.add_sentence(here)  # again where a voice that streams has gone on with it
                self._told[cue.number] = cue.end_s
        self.session.append(fragment, position)
        self._written += fragment.frames
        self.kept_frames += fragment.frames
        self._forget_shown(self._written)

    def pause_inside(self, fragment: Fragment) -> list[Fragment]:
        """What the file keeps of a pause inside the utterance, before a fragment that is not written yet."""
        if self._start is None or fragment.video_start == self._start.video_ticks:
            return []
        return [part.fragment for part in self.pauses.get(fragment.video_start, ())]

    @property
    def start_s(self) -> float:
        """Where it begins in the session's video, or would have begun; a frame of it is made."""
        assert self._start is not None
        return self._start.video_ticks / VIDEO_TIMESCALE

    def end(self, interrupted: bool = False) -> None:
        """Mark the utterance as complete, or as cut where it is; nothing where none of it is in the file.

        Raises FencedError.
        """
        assert self.session is not None, "an utterance without a frame has no session"
        if not self._written:
            return
        with self.sessions.lock:
            self.session.end_utterance(text=self.said, interrupted=interrupted)

    def release(self) -> None:
        """Let go of the encoder, its threads and the frame: whoever still knows the utterance must not keep them."""
        self.encoder = self._canvas = None
        self.pauses.clear()
        self._notes.clear()

    def live(self, fragment: Fragment) -> bytes:
        """The fragment on the viewer's own timeline, which starts at 0 with the utterance."""
        if self._zero is None:
            self._zero = live_zero(fragment)
        return rebase(fragment, self._zero.video_ticks, self._zero.audio_samples)

    def _opened(self, position: int, first_frame: int) -> UtteranceEncoder:
        """The encoder for frames from `first_frame` of the utterance on, and `position` of the line."""
        if self.encoder is None:
            if self.session is None:
                self.session = self.sessions.claim(self.request.session_id, self.spec, self.avatar.prepared)
                self._end = self.session.clock
                self._moved.append((0, self.session.frames))
                if self.session.frames:
                    self._pause(self.session.position, position, first_frame)
                self._start = self._end
            elif self.pause is not None and position != self._line_end:
                self.pause = replace(self.pause, rested={**self.pause.rested, **self._eased()})
                self._pause(self._line_end, position, first_frame)
            assert self._end is not None
            self.encoder = UtteranceEncoder(self.session.spec, self._end)
        return self.encoder

    def _pause(self, since: int, until: int, first_frame: int) -> None:
        """Lay what is shown between two positions of the line before the frame `first_frame`, as far as it is kept."""
        assert self.session is not None and self._end is not None
        if self.pause is None:
            return
        try:
            parts = list(self.pause.parts(self.session.spec, self._end, since, until, self._look))
        except (OSError, ValueError):  # of the idle motion: what is going to be said matters more
            log.warning("A pause in %r is left out of its file.", self.session.session_id, exc_info=True)
            return
        if parts:
            self._end = parts[-1].end
            self.pauses[self._end.video_ticks] = parts
            frames = sum(part.fragment.frames for part in parts)
            self._moved.append((first_frame, self._moved[-1][1] + frames))

    def _eased(self) -> dict[int, RestFragment]:
        """The mouth's way to rest behind the last frame that is made, by position: as far as no viewer was shown it.

        A segment may be made before the one before it has been played out.
        """
        assert self.pause is not None
        grid = IdleGrid.of(len(self.avatar.prepared), self.spec.fps)
        end = grid.ceil(self._line_end + REST_FRAMES)
        at, made = self._line_end, {}
        while at in self.pause.rested:
            at += len(self.pause.rested[at].video)
        for start, count in rest_steps(at, end):
            made[start] = self._resting(self.frames, range(start, start + count), start == self._line_end)
        return made

    def _begin(self, pause: list[PausePart]) -> None:
        """Write what was shown before it, and that it begins. Raises FencedError."""
        assert self.session is not None
        self.session.acquire()  # another replica may have looked in since it was claimed
        if self.session.clock != (pause[0].start if pause else self._start):
            raise FencedError(
                f"The session {self.session.session_id!r} was written to meanwhile.", "Send the request again."
            )
        self._keep(pause)
        self.session.start_utterance(self.request.text)
        self.session.add_to_sidecar(utterance_record(self.session.frames, self.request.text, self.engines))

    def _keep(self, pause: list[PausePart]) -> None:
        assert self.session is not None
        avatar = self.avatar.prepared
        if pause:
            self.session.add_to_sidecar(pause_record(self.session.frames))
        for part in pause:
            indices = ping_pong(part.position, part.fragment.frames, len(avatar))
            self.session.add_to_sidecar(frames_record(self.session.frames, indices, avatar, part.weights))
            self.session.append(part.fragment, part.position, pause=True)

    def _in_video(self, cue: Cue) -> Cue:
        """A cue in seconds of the session's video: pauses inside the utterance move what comes behind them."""
        fps = self.spec.fps

        def at(seconds: float, ends: bool = False) -> float:
            frame = seconds * fps + (-ROUNDING if ends else ROUNDING)
            return seconds + next(by for first, by in reversed(self._moved) if first <= max(frame, 0)) / fps

        words = tuple(Word(word.text, at(word.start_s), at(word.end_s, ends=True)) for word in cue.words)
        return replace(cue, start_s=at(cue.start_s), end_s=at(cue.end_s, ends=True), words=words)

    def _look(self, position: int) -> Float32:
        """The avatar's frame at a position of the line, in small and grey."""
        avatar = self.avatar.prepared
        assert avatar.frames is not None
        step = max(1, avatar.height // LOOK_PX)
        picture = picture_at(avatar.frames, int(ping_pong(position, 1, len(avatar))[0]))
        return np.asarray(picture.luma[::step, ::step], np.float32)

    def _position(self, chunk: Chunk) -> int:
        """The line's position of a chunk's first frame: as the line chose it, else counted on from the start."""
        return self.position + chunk.crops.first_frame if chunk.position is None else chunk.position

    def _hear(self, chunk: Chunk) -> None:
        """What the mouth can know by now: the chunk's segment, and the one after it if that is here."""
        if chunk.speech is not None:
            self.mouth.hear(chunk.speech, chunk.crops.first_frame)
        if chunk.following is not None:
            self.mouth.hear(*chunk.following)

    def _note(self, chunk: Chunk, weights: Float32) -> None:
        """Keep the sidecar's lines of a chunk until it is written."""
        avatar, frame = self.avatar.prepared, self._moved[-1][1] + chunk.crops.first_frame
        indices = ping_pong(self._position(chunk), len(weights), len(avatar))
        if chunk.speech is not None:
            self._notes.append((frame, speech_record(frame, chunk.speech)))
        self._notes.append((frame, frames_record(frame, indices, avatar, weights)))

    def _sound(self, speech: Speech | None) -> Float32:
        """A segment's samples at the session's rate; none where its first chunk has brought them already."""
        if speech is None:
            return np.zeros(0, np.float32)
        return resample(speech.samples, speech.sample_rate_hz, self.spec.sample_rate_hz)

    def _pasted(self, position: int, crops: FaceCrops, weights: Float32) -> Iterator[AnyFrame]:
        """The avatar's own frames with the crops pasted in; a frame without a face stays as it is. Each is done with
        when the next is asked for.
        """
        if self._canvas is None:
            self._canvas = Canvas(self.avatar.prepared)
        indices = ping_pong(position, len(crops), len(self.avatar.prepared))
        with self.avatar.beside() as paster:
            for k, (index, weight) in enumerate(zip(indices.tolist(), weights.tolist(), strict=True)):
                crop = self.mouth.crop(crops.images[k], weight)
                if self.on_air and (k + 1 == len(crops) or (k + 1) % LIVE_FRAMES == 0):
                    self._crops[crops.first_frame + k] = _packed(crop)
                yield self._canvas.frame(paster, crop, index, weight, self.pasting)
        for old in sorted(self._crops)[:-KEPT_CROPS]:
            del self._crops[old]

    def _forget_shown(self, end: int) -> None:
        """Of the crops before frame `end`, all shown, a rest wants the last alone."""
        for old in sorted(frame for frame in self._crops if frame < end)[:-1]:
            del self._crops[old]


def _packed(crop: UInt8) -> UInt8:
    """RGB `(s, s, 3)` → a JPEG's bytes `(n,)`."""
    _, data = cv2.imencode(".jpg", crop[..., ::-1], KEPT_QUALITY)
    return np.asarray(data, np.uint8)


def _unpacked(data: UInt8) -> UInt8:
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert image is not None
    return np.ascontiguousarray(image[..., ::-1], np.uint8)
