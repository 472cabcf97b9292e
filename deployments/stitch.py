"""The Stitch stage: owns an utterance. Drives the line, pastes, encodes, appends to the session, yields fragments.

Knows the other stages as handles only. The session file is the truth; what a replica remembers is a cache.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from configs.schema import StitchConfig
from deployments.line import Call, Chunk, Job, Line, LineSettings, summarise
from deployments.paths import builtin_avatars, output_path
from deployments.requests import SpeakEvent, SpeakRequest
from deployments.stage import Stage
from models.audio import decode_audio, resample, segments
from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.errors import FencedError, InputError
from models.stitch.encode import Clock, MediaSpec, UtteranceEncoder, live_zero, rebase
from models.stitch.paste import Paster
from models.stitch.session import SessionFile, SessionStore
from models.types import Fragment, PreparedAvatar, Speech, UInt8


@dataclass(slots=True)
class _Avatar:
    prepared: PreparedAvatar
    paster: Paster


@dataclass(slots=True)
class _Utterance:
    """The state of one utterance while it is made."""

    request: SpeakRequest
    session: SessionFile
    avatar: _Avatar
    encoder: UtteranceEncoder
    first_position: int
    asked_s: float
    zero: Clock | None = None  # where this viewer's timeline starts
    ttff_ms: float = 0.0
    frames: int = 0
    calls: list[Call] = field(default_factory=list)


class Stitch(Stage[StitchConfig]):
    stage = "Stitch"

    def __init__(self, tts: Any, features: Any, lipsync: Any, enhance: Any | None = None) -> None:
        super().__init__()
        # Sentences are small and streamed by value; features and frames travel through the object store.
        self._handles = (tts.options(stream=True, _by_reference=False), features, lipsync, enhance)
        self._locks: dict[str, asyncio.Lock] = {}
        self._avatars: OrderedDict[tuple[str, str], _Avatar] = OrderedDict()
        self._open_sessions: OrderedDict[str, SessionFile] = OrderedDict()
        self._last: dict[str, dict[str, Any]] = {}  # the latest summary of each open session

    def apply(self, config: StitchConfig, changed: set[str] | None) -> None:
        self._store = AvatarStore(
            output_path(config.avatars_dir), builtin_avatars(), cache_bytes=config.frame_cache_mb * 2**20
        )
        self._sessions = SessionStore(output_path(config.sessions_dir))
        if changed is None and self._store.exists(config.avatar_id):
            self._load_avatar(config.avatar_id)  # warm: the first utterance should not wait for it

    async def speak(self, request: SpeakRequest) -> AsyncIterator[SpeakEvent]:
        """Yield the video as it is made (from time 0), then the summary. Raises WarmTalkError.

        Utterances of one session are made one after another, in the order of their arrival.
        """
        await self.ready()
        asked_s = time.perf_counter()
        if bool(request.text.strip()) == bool(request.audio):
            raise InputError("There is nothing to say.", "Send a text or a sound file, and only one of them.")
        async with self._lock(request.session_id):
            utterance = await self._begin(request, asked_s)
            if request.deliver:
                yield SpeakEvent(utterance.encoder.init_segment)
            line = Line(*self._handles, settings=self._settings(utterance.session.spec.fps))
            chunks = line.run(await self._job(utterance))
            try:
                async for chunk in chunks:
                    for fragment in await self._stitch(utterance, chunk):
                        utterance.ttff_ms = utterance.ttff_ms or (time.perf_counter() - asked_s) * 1e3
                        if request.deliver:
                            yield SpeakEvent(_rebased(utterance, fragment), fragment.frames)
                await self.worker.run(utterance.session.end_utterance)
            finally:
                await chunks.aclose()  # type: ignore[attr-defined]
                utterance.calls += line.calls
                self._count_transfers(line.calls)
            summary = self._last[request.session_id] = self._summary(utterance, line)
            if request.calls:
                summary = {**summary, "calls": [asdict(call) for call in utterance.calls]}
            yield SpeakEvent(summary=summary)

    async def session(self, session_id: str) -> dict[str, Any]:
        """Facts of a session: frames, duration, path, transcript, latest summary. Raises SessionNotFound, IdError."""
        await self.ready()
        session = await asyncio.to_thread(self._sessions.open, session_id)
        return {
            "session_id": session_id,
            "avatar_id": session.avatar_id,
            "frames": session.frames,
            "duration_s": round(session.duration_s, 3),
            "video_path": str(session.path),
            "video_url": f"/sessions/{session_id}/video.mp4",
            "utterances": [asdict(line) for line in session.transcript()],
            "last": self._last.get(session_id),
        }

    async def sessions(self) -> list[str]:
        """Ids of all sessions on disk."""
        await self.ready()
        return await asyncio.to_thread(self._sessions.list)

    async def reset(self, session_id: str) -> dict[str, Any]:
        """Start a session afresh, after the utterance that is being made. Raises IdError."""
        await self.ready()
        async with self._lock(session_id):
            existed = self._sessions.exists(session_id)
            if existed:
                session = await asyncio.to_thread(self._sessions.open, session_id)
                await asyncio.to_thread(session.reset)
                self._remember(session_id, session)
        self._last.pop(session_id, None)
        return {"session_id": session_id, "reset": existed}

    def _lock(self, session_id: str) -> asyncio.Lock:
        """Utterances of one session follow one another. Locks that nobody holds or waits for are forgotten."""
        if len(self._locks) > 2 * self.config.cached_sessions:
            self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(session_id, asyncio.Lock())

    # --- one utterance, step by step

    async def _begin(self, request: SpeakRequest, asked_s: float) -> _Utterance:
        """Open or create the session and its encoder."""
        done = await self.worker.run(self._open, request)
        session, avatar = done.value
        encoder = UtteranceEncoder(session.spec, session.clock)
        return _Utterance(request, session, avatar, encoder, session.frames, asked_s)

    def _open(self, request: SpeakRequest) -> tuple[SessionFile, _Avatar]:
        """The session, taken over for writing, with its transcript line begun, and its avatar."""
        session = self._find_session(request.session_id)
        chosen = request.avatar_id or (session.avatar_id if session else self.config.avatar_id)
        avatar = self._load_avatar(chosen)
        if session is None:
            prepared = avatar.prepared
            session = self._sessions.create(
                request.session_id, self._spec(prepared), prepared.avatar_id, prepared.version
            )
        elif chosen != session.avatar_id:
            self._change_avatar(session, avatar.prepared)
        self._remember(request.session_id, session)
        try:
            session.start_utterance(request.text)
        except FencedError:  # another replica wrote here since: this one takes the session over again
            session.acquire()
            session.start_utterance(request.text)
        return session, avatar

    def _find_session(self, session_id: str) -> SessionFile | None:
        session = self._open_sessions.get(session_id)
        if session is not None:
            session.refresh()
            return session
        return self._sessions.open(session_id) if self._sessions.exists(session_id) else None

    def _remember(self, session_id: str, session: SessionFile) -> None:
        self._open_sessions[session_id] = session
        self._open_sessions.move_to_end(session_id)
        while len(self._open_sessions) > self.config.cached_sessions:
            oldest, old = self._open_sessions.popitem(last=False)
            self._last.pop(oldest, None)
            old.close()

    def _change_avatar(self, session: SessionFile, prepared: PreparedAvatar) -> None:
        """An empty session may change its avatar; one with video may not: its file has one picture format."""
        if session.frames:
            raise InputError(
                f"The session {session.session_id!r} shows the avatar {session.avatar_id!r}, not "
                f"{prepared.avatar_id!r}.",
                f"Use another session_id, or GET /reset?session_id={session.session_id} first.",
            )
        session.reset(self._spec(prepared), avatar_id=prepared.avatar_id, avatar_version=prepared.version)

    def _spec(self, avatar: PreparedAvatar) -> MediaSpec:
        config = self.config
        return MediaSpec.for_source(
            avatar.width,
            avatar.height,
            avatar.fps,
            sample_rate_hz=config.sample_rate_hz,
            crf=config.crf,
            preset=config.preset,
            first_fragment_frames=config.first_chunk_frames,
            fragment_frames=config.chunk_frames,
        )

    def _load_avatar(self, avatar_id: str) -> _Avatar:
        key = (avatar_id, self._store.version(avatar_id))
        if key not in self._avatars:
            prepared = self._store.load(avatar_id, latents=False)
            self._avatars[key] = _Avatar(prepared, Paster(prepared, mode=self.config.blend_mode))
            while len(self._avatars) > self.config.cached_avatars:
                self._avatars.popitem(last=False)
        self._avatars.move_to_end(key)
        return self._avatars[key]

    async def _job(self, utterance: _Utterance) -> Job:
        request, config = utterance.request, self.config
        speech = await asyncio.to_thread(self._given_speech, utterance) if request.audio else ()
        return Job(
            avatar_id=utterance.avatar.prepared.avatar_id,
            position=utterance.first_position,
            session_id=request.session_id,
            text=request.text,
            speech=speech,
            voice=request.voice,
            speed=request.speed,
            enhance=config.enhance if request.enhance is None else request.enhance,
            strength=request.strength,
        )

    def _given_speech(self, utterance: _Utterance) -> tuple[Speech, ...]:
        """An uploaded recording at the session's rate, cut at quiet places. Raises AudioError."""
        spec = utterance.session.spec
        samples, rate = decode_audio(utterance.request.audio, max_seconds=self.config.max_audio_s)
        return tuple(segments(resample(samples, rate, spec.sample_rate_hz), spec.sample_rate_hz, spec.fps))

    def _settings(self, fps: int) -> LineSettings:
        config = self.config
        return LineSettings(
            fps,
            config.chunk_frames,
            config.first_chunk_frames,
            config.window_chunks,
            config.tries,
            config.chunk_timeout_s,
        )

    async def _stitch(self, utterance: _Utterance, chunk: Chunk) -> list[Fragment]:
        """Paste, encode and append one chunk, on the compute thread."""
        received_s, began_s = time.time(), time.perf_counter()
        done = await self.worker.run(self._stitch_chunk, utterance, chunk)
        wall_ms = (time.perf_counter() - began_s) * 1e3
        count = len(chunk.crops)
        self.meter.stamp(count, received_s, done.queue_s, done.compute_s)
        queue_ms, compute_ms = done.queue_s * 1e3, done.compute_s * 1e3
        transfer_ms = max(0.0, wall_ms - queue_ms - compute_ms)
        utterance.calls.append(Call(self.stage, count, queue_ms, transfer_ms, compute_ms, wall_ms))
        utterance.frames += count
        return done.value

    def _stitch_chunk(self, utterance: _Utterance, chunk: Chunk) -> list[Fragment]:
        crops, spec = chunk.crops, utterance.session.spec
        frames = self._paste(utterance.avatar, utterance.first_position + crops.first_frame, crops.images)
        samples = resample(chunk.samples, chunk.sample_rate_hz, spec.sample_rate_hz)
        fragments = utterance.encoder.push(frames, samples, chunk.last)
        for fragment in fragments:
            utterance.session.append(fragment)
        return fragments

    def _paste(self, avatar: _Avatar, position: int, crops: UInt8) -> UInt8:
        """The avatar's own frames with the crops pasted in, `(n, h, w, 3)`; a frame without a face stays as it is."""
        prepared = avatar.prepared
        assert prepared.frames is not None
        indices = ping_pong(position, len(crops), len(prepared))
        frames = np.empty((len(crops), prepared.height, prepared.width, 3), np.uint8)
        for frame, crop, index in zip(frames, crops, indices, strict=True):
            frame[:] = prepared.frames[int(index)]
            if prepared.has_face[index]:
                avatar.paster.paste_into(frame, crop, int(index))
        return frames

    def _count_transfers(self, calls: list[Call]) -> None:
        for call in calls:
            self.meter.transferred(call.stage, call.transfer_ms / 1e3)

    def _summary(self, utterance: _Utterance, line: Line) -> dict[str, Any]:
        session, fps = utterance.session, utterance.session.spec.fps
        wall_s = time.perf_counter() - utterance.asked_s
        duration_s = utterance.frames / fps
        return {
            "session_id": utterance.request.session_id,
            "avatar_id": utterance.avatar.prepared.avatar_id,
            "video_path": str(session.path),
            "video_url": f"/sessions/{utterance.request.session_id}/video.mp4",
            "frames": utterance.frames,
            "duration_s": round(duration_s, 3),
            "ttff_ms": round(utterance.ttff_ms, 1),
            "rtf": round(wall_s / duration_s, 3) if duration_s else None,
            "retries": line.retries,
            "stages": summarise(utterance.calls),
        }


def _rebased(utterance: _Utterance, fragment: Fragment) -> bytes:
    """The fragment on the viewer's own timeline, which starts at 0 with the utterance."""
    if utterance.zero is None:
        utterance.zero = live_zero(fragment)
    return rebase(fragment, utterance.zero.video_ticks, utterance.zero.audio_samples)
