"""Writes one utterance into its session: pastes crops into frames, encodes fragments, appends them to the file.

Nothing of an utterance is in the file before its first fragment is written. In a live session that is when it has been
shown, so speech that is refused, fails, or is interrupted before its first frame is not recorded. Only the session
itself is created or claimed earlier, when the first speech has arrived, because that waits for the disk.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from deployments.common.messages import SpeakRequest
from deployments.stitch.avatar_cache import LoadedAvatar
from deployments.stitch.chunks import Chunk, SpeechSegment
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
from models.stitch.mouth import Mouth
from models.stitch.paste import PasteMemory
from models.stitch.session import SessionFile
from models.stitch.sidecar import Record, frames_record, pause_record, speech_record, utterance_record
from models.types import FaceCrops, Float32, Fragment, Speech, UInt8, Word

log = logging.getLogger("ray.serve")

MAX_KEPT_CROPS = 32  # crops kept for a return to rest: every LIVE_FRAMES-th of the frames made ahead of the playout
CROP_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
# 32 crops of 512 px take 25 MB as RGB and about 4 MB as JPEG
FRAME_EPSILON = 1e-6  # frames; absorbs rounding when seconds are converted to frames
THUMBNAIL_PX = 32  # height of the grey images by which a pause finds similar frames


@dataclass(slots=True)
class UtteranceWriter:
    """The frames, sound and records of one utterance.

    `encode`, `rest_fragment` and `write` may run beside one another on two threads where the session is watched live:
    `rest_fragment` reads what `encode` has made. Otherwise all methods run on the utterance's compute thread.
    """

    request: SpeakRequest
    sessions: OpenSessions
    avatar: LoadedAvatar
    spec: MediaSpec
    position: int  # of the session's timeline when the utterance starts
    mouth: Mouth
    engines: dict[str, str] = field(default_factory=dict)  # stage → engine, of the stages that have answered
    spoken_text: str | None = None  # of a text stream: the text so far; None: request.text
    pause: Pause | None = None  # live sessions: how the file keeps what is shown between speech; None: it keeps none
    # results
    session: SessionFile | None = None  # claimed for writing with the first frame
    frames: int = 0  # frames made
    kept_frames: int = 0  # frames in the file: speech, and pauses inside the utterance
    weights: list[Float32] = field(default_factory=list)  # of the generated mouth, 0 to 1, an array (n,) per chunk
    cues: list[Cue] = field(default_factory=list)  # sentences made so far, seconds from the utterance's first frame
    audio_delay_s: float = 0.0  # the largest delay of the sound relative to the lips
    interrupted: bool = False  # it ended with an interrupt
    # state
    pasting: PasteMemory = field(default_factory=PasteMemory)
    encoder: UtteranceEncoder | None = None
    _opened: UtteranceEncoder | None = None  # by `prepare`, for the session's end at that time; has the first sound
    pauses: dict[int, list[PausePart]] = field(default_factory=dict)  # by the tick of the fragment that follows
    _ended: bool = False
    _start: Clock | None = None  # position of its first frame in the file
    _clock: Clock | None = None  # position in the file at which the next encoder starts
    _next_position: int = 0  # on the timeline, after the last frame made
    _shifts: list[tuple[int, int]] = field(default_factory=list)  # (frame, by how many frames it is later in the file)
    _sidecar_lines: deque[tuple[int, Record]] = field(default_factory=deque)  # (frame in the file, line not written)
    _written_cues: dict[int, float] = field(default_factory=dict)  # number → end of the sentence as in the transcript
    _written: int = 0  # frames of speech in the file; in a live session they have been shown
    _kept_crops: dict[int, UInt8] = field(default_factory=dict)  # live sessions: JPEG by frame of the utterance
    _rested_after: int = -1  # frames that had been shown at the latest return to rest
    _resting: dict[tuple[int, ...], RestFragment] = field(default_factory=dict)  # since then, by positions
    _live_zero: Clock | None = None
    _canvas: Canvas | None = None

    # --- make

    def prepare(self, segment: SpeechSegment) -> None:
        """Do what the first fragment needs and what needs no face, when the first speech has arrived.

        Become the session's writer, for which a new session waits for the disk, and encode the first sound.
        Raises what `encode` would raise for its first chunk.
        """
        session = self.sessions.claim(self.request.session_id, self.spec, self.avatar.prepared)
        if self.pause is None or not session.frames:  # else the file first gets a pause of unknown length
            encoder = UtteranceEncoder(session.spec, session.clock)
            encoder.hear(self._sound(segment.speech))
            self._opened = encoder
        self.mouth.add_speech(segment.speech, segment.first_frame, segment.speech_active)

    def add(self, chunk: Chunk) -> list[Fragment]:
        """Encode a chunk and write the fragments that it completes. Raises FencedError, OSError."""
        fragments = self.encode(chunk, chunk.last)
        for fragment in fragments:
            self.write(fragment)
        return fragments

    def add_rest(self) -> list[Fragment]:
        """Flush the encoder and write its fragments. Raises FencedError, OSError."""
        fragments = self.flush()
        for fragment in fragments:
            self.write(fragment)
        return fragments

    def encode(self, chunk: Chunk, close: bool) -> list[Fragment]:
        """Paste and encode a chunk; return the fragments that it completes.

        close: also flush the encoder. The next chunk gets a new one. Raises FencedError, OSError.
        """
        first, heard = chunk.crops.first_frame, self._opened
        encoder = self._open_encoder(chunk.position, first)
        if chunk.speech is not None:
            add_cue(self.cues, chunk.speech, first / self.spec.fps)
            self.mouth.add_speech(chunk.speech, first, chunk.active)
        if (after := chunk.following) is not None:
            self.mouth.add_speech(after.speech, after.first_frame, after.speech_active)
        weights = self.mouth.weights(first, len(chunk.crops))
        frames = self._paste(chunk.position, chunk.crops, weights)
        fragments = encoder.push(frames, self._sound(None if encoder is heard else chunk.speech), close)
        self._describe(chunk, weights)
        self.audio_delay_s = max(self.audio_delay_s, encoder.audio_delay_s)
        if close:
            self.encoder, self._clock = None, encoder.clock
        self.frames += len(weights)
        self.weights.append(weights)
        self._next_position = chunk.position + len(weights)
        return fragments

    def flush(self) -> list[Fragment]:
        """Close the encoder and return the fragments that it still holds."""
        if self.encoder is None:
            return []
        encoder, self.encoder = self.encoder, None
        fragments = encoder.push((), np.zeros(0, np.float32), True)
        self._clock = encoder.clock
        return fragments

    def release(self) -> None:
        """Drop the encoder with its threads, and the frame: the utterance itself may be referenced for longer."""
        self.encoder = self._opened = self._canvas = None
        for kept in (self.pauses, self._sidecar_lines, self._kept_crops, self._resting):
            kept.clear()

    def live(self, fragment: Fragment) -> bytes:
        """The fragment on the timeline of the request's own stream, which starts at 0 with the utterance."""
        if self._live_zero is None:
            self._live_zero = live_zero(fragment)
        return rebase(fragment, self._live_zero.video_ticks, self._live_zero.audio_samples)

    # --- write

    def write(self, fragment: Fragment, position: int | None = None) -> None:
        """Append a fragment: before it the pause, its sidecar lines, and the sentences that start in it.

        position: of its first frame on the timeline; None: directly after the previous frame.
        Raises FencedError, OSError.
        """
        with self.sessions.lock:
            self._write(fragment, position)

    def _write(self, fragment: Fragment, position: int | None) -> None:
        assert self.session is not None
        pause = self.pauses.pop(fragment.video_start, [])
        if self._written:
            self._write_pause(pause)
            self.kept_frames += sum(part.fragment.frames for part in pause)
        else:
            self._begin(pause)
        end = self.session.frames + fragment.frames
        while self._sidecar_lines and self._sidecar_lines[0][0] < end:  # later frames may never be shown
            self.session.add_to_sidecar(self._sidecar_lines.popleft()[1])
        for cue in tuple(self.cues):
            in_file = self._cue_in_file(cue)
            started = in_file.start_s < fragment.start_s + fragment.duration_s
            if started and self._written_cues.get(cue.number) != cue.end_s:  # a streaming voice extends its sentence
                self.session.add_sentence(in_file)
                self._written_cues[cue.number] = cue.end_s
        self.session.append(fragment, position)
        self._written += fragment.frames
        self.kept_frames += fragment.frames
        self._drop_shown_crops(self._written)

    def _begin(self, pause: list[PausePart]) -> None:
        """Write the pause before the utterance and its start. Raises FencedError."""
        assert self.session is not None
        self.session.acquire()  # another replica may have claimed the session and written nothing
        if self.session.clock != (pause[0].start if pause else self._start):
            raise FencedError(
                f"Another replica has written to the session {self.session.session_id!r}.", "Send the request again."
            )
        self._write_pause(pause)
        self.session.start_utterance(self.request.text)
        self.session.add_to_sidecar(utterance_record(self.session.frames, self.request.text, self.engines))

    def _write_pause(self, pause: list[PausePart]) -> None:
        assert self.session is not None
        avatar = self.avatar.prepared
        if pause:
            self.session.add_to_sidecar(pause_record(self.session.frames))
        for part in pause:
            indices = ping_pong(part.position, part.fragment.frames, len(avatar))
            self.session.add_to_sidecar(frames_record(self.session.frames, indices, avatar, part.weights))
            self.session.append(part.fragment, part.position, pause=True)

    def end(self, interrupted: bool = False) -> None:
        """Mark the utterance as complete or interrupted in the file. The first call counts. Raises FencedError.

        Writes nothing where none of the utterance is in the file.
        """
        if self._ended:
            return
        if self._written:
            assert self.session is not None
            with self.sessions.lock:
                self.session.end_utterance(text=self.spoken_text, interrupted=interrupted)
        self._ended, self.interrupted = True, interrupted

    @property
    def start_s(self) -> float:
        """Where the utterance starts in the session's video, or would have started. Needs its first frame."""
        assert self._start is not None
        return self._start.video_ticks / VIDEO_TIMESCALE

    # --- pauses and rest in live sessions

    def pause_inside(self, fragment: Fragment) -> list[Fragment]:
        """The pause inside the utterance that the file keeps before a fragment, which is not written yet."""
        if self._start is None or fragment.video_start == self._start.video_ticks:
            return []
        return [part.fragment for part in self.pauses.get(fragment.video_start, ())]

    def rest_fragment(self, shown: int, positions: Sequence[int]) -> RestFragment:
        """Encode frames in which the mouth returns from speech to rest. Safe beside `encode`.

        shown: frames of the utterance that have been shown. positions: of the head on the timeline, one per frame.
        """
        if shown != self._rested_after:
            self._rested_after, self._resting = shown, {}
            return self._encode_rest(shown, positions, True)
        # a mouth at rest stays at rest until more speech is shown; a head that sways for long repeats itself
        key = tuple(positions)
        if key not in self._resting:
            self._resting[key] = self._encode_rest(shown, positions, False)
        return self._resting[key]

    def _encode_rest(self, shown: int, positions: Sequence[int], moving: bool) -> RestFragment:
        avatar = self.avatar.prepared
        known = [frame for frame in tuple(self._kept_crops) if frame < shown]
        crop = self._kept_crops.get(max(known)) if known and moving else None
        indices = [int(ping_pong(position, 1, len(avatar))[0]) for position in positions]
        weights, face, memory = [0.0] * len(indices), None, deepcopy(self.pasting)
        if crop is not None:
            face = _from_jpeg(crop)
            level = float(np.concatenate(self.weights)[shown - 1]) if shown else 0.0
            weights = [level * weight for weight in fade_out_weights(len(indices))]
        canvas = Canvas(avatar)
        with self.avatar.borrow_paster() as paster:
            frames = (canvas.frame(paster, face, *at, memory) for at in zip(indices, weights, strict=True))
            return RestFragment(encode_closed_gop(frames, self.spec), tuple(weights))

    def _keep_pause(self, since: int, until: int, first_frame: int) -> None:
        """Prepare the pause from `since` to `until` on the timeline, to be written before the frame `first_frame`."""
        assert self.session is not None and self._clock is not None
        if self.pause is None:
            return
        try:
            parts = list(self.pause.parts(self.session.spec, self._clock, since, until, self._thumbnail))
        except (OSError, ValueError):  # the idle motion cannot be read; the speech matters more
            log.warning("The file of session %r omits a pause.", self.session.session_id, exc_info=True)
            return
        if parts:
            self._clock = parts[-1].end
            self.pauses[self._clock.video_ticks] = parts
            frames = sum(part.fragment.frames for part in parts)
            self._shifts.append((first_frame, self._shifts[-1][1] + frames))

    def _missing_rests(self) -> dict[int, RestFragment]:
        """The return to rest after the last frame made, by position; without what viewers have been shown already.

        A segment may be made before the one before it has been played.
        """
        assert self.pause is not None
        grid = IdleGrid.of(len(self.avatar.prepared), self.spec.fps)
        end = grid.ceil(self._next_position + REST_FRAMES)
        position, made = self._next_position, {}
        while position in self.pause.rested:
            position += len(self.pause.rested[position].video)
        for start, count in rest_steps(position, end):
            moving = start == self._next_position
            made[start] = self._encode_rest(self.frames, range(start, start + count), moving)
        return made

    def _thumbnail(self, position: int) -> Float32:
        """The avatar's frame at a position of the timeline, small and grey."""
        avatar = self.avatar.prepared
        assert avatar.frames is not None
        step = max(1, avatar.height // THUMBNAIL_PX)
        picture = picture_at(avatar.frames, int(ping_pong(position, 1, len(avatar))[0]))
        return np.asarray(picture.luma[::step, ::step], np.float32)

    def _drop_shown_crops(self, end: int) -> None:
        """Of the kept crops before frame `end`, a return to rest needs only the last."""
        for frame in sorted(frame for frame in self._kept_crops if frame < end)[:-1]:
            del self._kept_crops[frame]

    # --- steps of `encode`

    def _open_encoder(self, position: int, first_frame: int) -> UtteranceEncoder:
        """The encoder for frames from `first_frame` of the utterance on, at `position` of the timeline."""
        if self.encoder is None:
            if self.session is None:
                self.session = self.sessions.claim(self.request.session_id, self.spec, self.avatar.prepared)
                self._clock = self.session.clock
                self._shifts.append((0, self.session.frames))
                if self.session.frames:
                    self._keep_pause(self.session.position, position, first_frame)
                self._start = self._clock
            elif self.pause is not None and position != self._next_position:
                self.pause = replace(self.pause, rested={**self.pause.rested, **self._missing_rests()})
                self._keep_pause(self._next_position, position, first_frame)
            assert self._clock is not None
            opened, self._opened = self._opened, None
            if opened is None or (opened.spec, opened.clock) != (self.session.spec, self._clock):  # after a pause
                opened = UtteranceEncoder(self.session.spec, self._clock)
            self.encoder = opened
        return self.encoder

    def _paste(self, position: int, crops: FaceCrops, weights: Float32) -> Iterator[AnyFrame]:
        """The avatar's frames with the crops pasted in; a frame without a face stays as it is.

        A frame is valid until the next one is requested.
        """
        if self._canvas is None:
            self._canvas = Canvas(self.avatar.prepared)
        indices = ping_pong(position, len(crops), len(self.avatar.prepared))
        with self.avatar.borrow_paster() as paster:
            for k, (index, weight) in enumerate(zip(indices.tolist(), weights.tolist(), strict=True)):
                crop = self.mouth.crop(crops.images[k], weight)
                if self.pause is not None and (k + 1 == len(crops) or (k + 1) % LIVE_FRAMES == 0):
                    self._kept_crops[crops.first_frame + k] = _to_jpeg(crop)
                yield self._canvas.frame(paster, crop, index, weight, self.pasting)
        for frame in sorted(self._kept_crops)[:-MAX_KEPT_CROPS]:
            del self._kept_crops[frame]

    def _sound(self, speech: Speech | None) -> Float32:
        """A segment's samples at the session's rate; empty for its later chunks."""
        if speech is None:
            return np.zeros(0, np.float32)
        return resample(speech.samples, speech.sample_rate_hz, self.spec.sample_rate_hz)

    def _describe(self, chunk: Chunk, weights: Float32) -> None:
        """Queue the sidecar lines of a chunk until it is written."""
        avatar, frame = self.avatar.prepared, self._shifts[-1][1] + chunk.crops.first_frame
        indices = ping_pong(chunk.position, len(weights), len(avatar))
        if chunk.speech is not None:
            self._sidecar_lines.append((frame, speech_record(frame, chunk.speech)))
        self._sidecar_lines.append((frame, frames_record(frame, indices, avatar, weights)))

    def _cue_in_file(self, cue: Cue) -> Cue:
        """A cue in seconds of the session's video, which also counts the pauses inside the utterance."""
        fps = self.spec.fps

        def in_file(seconds: float, ends: bool = False) -> float:
            frame = seconds * fps + (-FRAME_EPSILON if ends else FRAME_EPSILON)
            return seconds + next(by for first, by in reversed(self._shifts) if first <= max(frame, 0)) / fps

        words = tuple(Word(word.text, in_file(word.start_s), in_file(word.end_s, ends=True)) for word in cue.words)
        return replace(cue, start_s=in_file(cue.start_s), end_s=in_file(cue.end_s, ends=True), words=words)


def _to_jpeg(crop: UInt8) -> UInt8:
    """RGB `(s, s, 3)` → JPEG bytes `(n,)`."""
    _, data = cv2.imencode(".jpg", crop[..., ::-1], CROP_JPEG)
    return np.asarray(data, np.uint8)


def _from_jpeg(data: UInt8) -> UInt8:
    """JPEG bytes `(n,)` → RGB `(s, s, 3)`."""
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert image is not None
    return np.ascontiguousarray(image[..., ::-1], np.uint8)
