"""The Stitch stage: owns an utterance. Drives the line for it, stitches what comes, yields the fragments.

Knows the other stages as handles only.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from configs.schema import StitchConfig
from deployments.line import Call, Chunk, Job, Line, LineSettings, summarise
from deployments.paths import builtin_avatars, output_path
from deployments.requests import SpeakEvent, SpeakRequest
from deployments.sessions import OpenSessions, refuse_other_avatar
from deployments.stage import Stage
from deployments.turns import Turns
from deployments.utterance import LoadedAvatar, Utterance
from models.audio import decode_audio, resample, segments
from models.avatar.store import AvatarStore
from models.errors import InputError, StageError
from models.ids import check_id
from models.stitch.encode import MediaSpec
from models.stitch.mouth import Mouth
from models.stitch.paste import Paster
from models.stitch.rest import RestSettings, own_mouth_rests
from models.stitch.steady import CropSteadier, pasted_box
from models.text import check_text
from models.types import Fragment, PreparedAvatar, Speech

LONGEST_TEXT = 100_000  # characters; the TTS stage has a lower limit of its own


class Stitch(Stage[StitchConfig]):
    stage = "Stitch"

    def __init__(self, tts: Any, features: Any, lipsync: Any, enhance: Any | None = None) -> None:
        super().__init__()
        # Sentences are small and streamed by value; features and frames travel through the object store.
        self._handles = (tts.options(stream=True, _by_reference=False), features, lipsync, enhance)
        self._turns = Turns()
        self._avatars: OrderedDict[tuple[str, str], LoadedAvatar] = OrderedDict()

    def apply(self, config: StitchConfig, changed: set[str] | None) -> None:
        self._store = AvatarStore(
            output_path(config.avatars_dir), builtin_avatars(), cache_bytes=config.frame_cache_mb * 2**20
        )
        if changed is None or changed & {"sessions_dir", "cached_sessions"}:
            self._sessions = OpenSessions(output_path(config.sessions_dir), config.cached_sessions)
        if changed is None or "blend_mode" in changed:
            self._avatars.clear()
        if changed is None and self._store.exists(config.avatar_id):
            self._load_avatar(config.avatar_id, config.blend_mode)  # warm: the first utterance must not wait for it

    async def speak(self, request: SpeakRequest) -> AsyncIterator[SpeakEvent]:
        """Yield the video as it is made (from time 0), then the summary. Raises WarmTalkError.

        Utterances of one session are made one after another, in the order of their arrival.
        """
        await self.ready()
        asked_s = time.perf_counter()
        async with self._turns.of(check_id(request.session_id, "session id")):
            began_s = time.perf_counter()
            utterance = (await self.worker.run(self._plan, request)).value
            if request.audio:  # on a thread of its own: a long recording must not hold up the others' pictures
                utterance.speech = await asyncio.to_thread(self._given_speech, request.audio, utterance.spec)
            line = Line(*self._handles, settings=self._settings(utterance.spec.fps))
            utterance.engines = line.engines
            stitched: list[Call] = []
            ttff_ms = 0.0
            chunks = line.run(self._job(utterance))
            try:
                async for chunk in chunks:
                    for fragment in await self._stitch(utterance, chunk, stitched):
                        if not ttff_ms:
                            ttff_ms = (time.perf_counter() - asked_s) * 1e3
                            if request.deliver:
                                yield SpeakEvent(fragment.init)
                        if request.deliver:
                            yield SpeakEvent(utterance.live(fragment), fragment.frames)
                if not utterance.frames:
                    raise StageError("The utterance gave no frame.", "Send a longer text or recording.")
                await self.worker.run(utterance.end)
            finally:
                await chunks.aclose()
                self._count_transfers(line.calls)
            calls = [*line.calls, *stitched]
            summary = _summary(utterance, calls, line.retries, ttff_ms, time.perf_counter() - began_s)
            self.meter.utterance(ttff_ms, summary["rtf"])
            self._sessions.remember(request.session_id, summary)
            yield SpeakEvent(summary={**summary, "calls": [asdict(c) for c in calls]} if request.calls else summary)

    async def session(self, session_id: str) -> dict[str, Any]:
        """Facts of a session: frames, duration, path, transcript, latest summary. Raises SessionNotFound, IdError."""
        await self.ready()
        done = await self.worker.run(self._sessions.describe, session_id)
        return done.value

    async def sessions(self) -> list[str]:
        """Ids of all sessions on disk."""
        await self.ready()
        return await asyncio.to_thread(self._sessions.store.list)

    async def reset(self, session_id: str) -> dict[str, Any]:
        """Start a session afresh, after the utterance that is being made. Raises IdError."""
        await self.ready()
        async with self._turns.of(check_id(session_id, "session id")):
            done = await self.worker.run(self._sessions.reset, session_id)
        return {"session_id": session_id, "reset": done.value}

    async def remove(self, session_id: str) -> dict[str, Any]:
        """Delete a session and its video, after the utterance that is being made. Raises IdError."""
        await self.ready()
        async with self._turns.of(check_id(session_id, "session id")):
            done = await self.worker.run(self._sessions.remove, session_id)
        return {"session_id": session_id, "removed": done.value}

    # --- steps of an utterance

    def _plan(self, request: SpeakRequest) -> Utterance:
        """Check all that can be checked before anything is made. Raises InputError, AvatarNotFound."""
        if bool(request.text.strip()) == bool(request.audio):
            raise InputError("There is nothing to say.", "Send a text or a sound file, and only one of them.")
        if request.text:
            check_text(request.text, LONGEST_TEXT, language="")  # which scripts can be read is for the voice to say
        session = self._sessions.find(request.session_id)
        refuse_other_avatar(session, request.avatar_id)
        continues = session is not None and session.frames > 0
        known = session.avatar_id if session is not None and continues else self.config.avatar_id
        avatar = self._load_avatar(request.avatar_id or known, self.config.blend_mode)
        spec = session.spec if session is not None and continues else self._spec(avatar.prepared)
        mouth = self._mouth(avatar, spec.fps)
        return Utterance(request, self._sessions, avatar, spec, session.frames if session else 0, mouth)

    def _mouth(self, avatar: LoadedAvatar, fps: int) -> Mouth:
        config = self.config
        source_rests = avatar.rests if config.rest_mouth == "auto" else config.rest_mouth == "source"
        times_s = (config.rest_fade_ms / 1e3, config.rest_pause_ms / 1e3, config.av_offset_ms / 1e3)
        rest = RestSettings(*times_s, source_rests=source_rests)
        return Mouth(fps, rest, CropSteadier(avatar.pasted) if config.steady_crops else None)

    def _load_avatar(self, avatar_id: str, blend_mode: str) -> LoadedAvatar:
        key = (avatar_id, self._store.version(avatar_id))
        if key not in self._avatars:
            prepared = self._store.load(avatar_id, latents=False)
            self._avatars[key] = LoadedAvatar(
                prepared, Paster(prepared, mode=blend_mode), own_mouth_rests(prepared), pasted_box(prepared)
            )
            while len(self._avatars) > self.config.cached_avatars:
                self._avatars.popitem(last=False)
        self._avatars.move_to_end(key)
        return self._avatars[key]

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

    def _given_speech(self, audio: bytes, spec: MediaSpec) -> tuple[Speech, ...]:
        """An uploaded recording at the session's rate, cut at quiet places. Raises AudioError."""
        samples, rate = decode_audio(audio, max_seconds=self.config.max_audio_s)
        return tuple(segments(resample(samples, rate, spec.sample_rate_hz), spec.sample_rate_hz, spec.fps))

    def _job(self, utterance: Utterance) -> Job:
        request = utterance.request
        return Job(
            avatar_id=utterance.avatar.prepared.avatar_id,
            position=utterance.position,
            avatar_version=utterance.avatar.prepared.version,
            session_id=request.session_id,
            text=request.text,
            speech=utterance.speech,
            voice=request.voice,
            speed=request.speed,
            enhance=self.config.enhance if request.enhance is None else request.enhance,
            strength=request.strength,
        )

    def _settings(self, fps: int) -> LineSettings:
        config = self.config
        return LineSettings(
            fps,
            config.chunk_frames,
            config.first_chunk_frames,
            config.window_chunks,
            config.tries,
            config.chunk_timeout_s,
            config.av_offset_ms / 1e3,
        )

    async def _stitch(self, utterance: Utterance, chunk: Chunk, calls: list[Call]) -> list[Fragment]:
        """Paste, encode and append one chunk on the compute thread."""
        received_s = time.time()
        done = await self.worker.run(utterance.add, chunk)
        back_s = time.perf_counter() - done.ended_s  # from the thread to the event loop, which may be busy
        timing = self.meter.stamp(len(chunk.crops), received_s, done.queue_s, done.compute_s)
        parts_ms = (done.queue_s * 1e3, back_s * 1e3, done.compute_s * 1e3)
        wall_ms = (timing.done_s - received_s) * 1e3
        calls.append(Call(self.stage, len(chunk.crops), *parts_ms, wall_ms, done.compute_s * 1e3))
        return done.value

    def _count_transfers(self, calls: list[Call]) -> None:
        for call in calls:
            self.meter.transferred(call.stage, call.transfer_ms / 1e3)


def _summary(utterance: Utterance, calls: list[Call], retries: int, ttff_ms: float, wall_s: float) -> dict[str, Any]:
    assert utterance.session is not None
    duration_s = utterance.frames / utterance.spec.fps
    session_id = utterance.request.session_id
    return {
        "session_id": session_id,
        "avatar_id": utterance.avatar.prepared.avatar_id,
        "video_path": str(utterance.session.path),
        "video_url": f"/sessions/{session_id}/video.mp4",
        "frames": utterance.frames,
        "duration_s": round(duration_s, 3),
        "ttff_ms": round(ttff_ms, 1),
        "rtf": round(wall_s / duration_s, 3),
        "retries": retries,
        "stages": summarise(calls),
    }
