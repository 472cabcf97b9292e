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
from models.errors import InputError
from models.stitch.encode import MediaSpec, UtteranceEncoder
from models.stitch.paste import Paster
from models.stitch.session import SessionFile, SessionStore
from models.types import Fragment, PreparedAvatar, UInt8


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

    def apply(self, config: StitchConfig, changed: set[str] | None) -> None:
        self._store = AvatarStore(
            output_path(config.avatars_dir), builtin_avatars(), cache_bytes=config.frame_cache_mb * 2**20
        )
        self._sessions = SessionStore(output_path(config.sessions_dir))
        if changed is None and config.avatar_id in self._store.ids():
            self._load_avatar(config.avatar_id)  # warm: the first utterance should not wait for it

    async def speak(self, request: SpeakRequest) -> AsyncIterator[SpeakEvent]:
        """Yield the video as it is made (from time 0), then the summary. Raises WarmTalkError.

        Utterances of one session are made one after another, in the order of their arrival.
        """
        await self.ready()
        asked_s = time.perf_counter()
        if bool(request.text.strip()) == bool(request.audio):
            raise InputError("There is nothing to say.", "Send a text or a sound file, and only one of them.")
        async with self._locks.setdefault(request.session_id, asyncio.Lock()):
            utterance = await self._begin(request, asked_s)
            if request.deliver:
                yield SpeakEvent(utterance.encoder.init_segment)
            line = Line(*self._handles, settings=self._settings())
            chunks = line.run(await self._job(utterance))
            try:
                async for chunk in chunks:
                    for fragment in await self._stitch(utterance, chunk):
                        utterance.ttff_ms = utterance.ttff_ms or (time.perf_counter() - asked_s) * 1e3
                        if request.deliver:
                            yield SpeakEvent(utterance.encoder.rebase(fragment), fragment.frames)
            finally:
                await chunks.aclose()  # type: ignore[attr-defined]
                utterance.calls += line.calls
                self._count_transfers(line.calls)
                utterance.session.end_utterance(self._summary(utterance, line))
            summary = self._summary(utterance, line)
            if request.calls:
                summary["calls"] = [asdict(call) for call in utterance.calls]
            yield SpeakEvent(summary=summary)

    async def session(self, session_id: str) -> dict[str, Any]:
        """Facts of a session: frames, duration, path, transcript. Raises SessionNotFound."""
        await self.ready()
        return self._sessions.open(session_id).describe()

    async def sessions(self) -> list[str]:
        await self.ready()
        return self._sessions.ids()

    async def reset(self, session_id: str) -> dict[str, Any]:
        """Start a session afresh, after the utterance that is being made. Raises IdError."""
        await self.ready()
        async with self._locks.setdefault(session_id, asyncio.Lock()):
            existed = session_id in self._sessions.ids()
            if existed:
                await asyncio.to_thread(self._sessions.remove, session_id)
        return {"session_id": session_id, "reset": existed}

    # --- one utterance, step by step

    async def _begin(self, request: SpeakRequest, asked_s: float) -> _Utterance:
        """Open or create the session and its encoder."""
        done = await self.worker.run(self._open, request)
        session, avatar = done.value
        encoder = UtteranceEncoder(session.spec, session.clock)
        return _Utterance(request, session, avatar, encoder, session.frames, asked_s)

    def _open(self, request: SpeakRequest) -> tuple[SessionFile, _Avatar]:
        config = self.config
        if request.session_id in self._sessions.ids():
            session = self._sessions.open(request.session_id)
            avatar_id = session.avatar_id
            if request.avatar_id not in (None, avatar_id):
                raise InputError(
                    f"The session {request.session_id!r} shows the avatar {avatar_id!r}, not {request.avatar_id!r}.",
                    f"Use another session_id, or GET /reset?session_id={request.session_id} first.",
                )
            avatar = self._load_avatar(avatar_id)
        else:
            avatar = self._load_avatar(request.avatar_id or config.avatar_id)
            prepared = avatar.prepared
            spec = MediaSpec(
                prepared.width, prepared.height, config.fps, config.sample_rate_hz, crf=config.crf, preset=config.preset
            )
            session = self._sessions.create(request.session_id, spec, prepared.avatar_id, prepared.version)
        session.acquire()
        session.start_utterance(request.text)
        return session, avatar

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
        speech = ()
        if request.audio:
            samples, rate = await asyncio.to_thread(decode_audio, request.audio, config.max_audio_s)
            speech = tuple(segments(samples, rate, config.fps))
        return Job(
            avatar_id=utterance.avatar.prepared.avatar_id,
            position=utterance.first_position,
            text=request.text,
            speech=speech,
            voice=request.voice,
            speed=request.speed,
            enhance=config.enhance if request.enhance is None else request.enhance,
            strength=request.strength,
        )

    def _settings(self) -> LineSettings:
        config = self.config
        return LineSettings(
            config.fps,
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
        session, fps = utterance.session, self.config.fps
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
