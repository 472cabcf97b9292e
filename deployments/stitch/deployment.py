"""The Stitch stage: owns an utterance. Drives the line for it, stitches what comes, yields the fragments.

Knows the other stages as handles only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

from configs.schema import StitchConfig
from deployments.common.clocks import own_host
from deployments.common.messages import Ending, LiveEvent, SpeakEvent, SpeakRequest
from deployments.common.paths import builtin_avatars, output_path
from deployments.common.stage import Stage, Worker
from deployments.common.text_stream import TextStreams
from deployments.common.keyed_lock import KeyedLock
from deployments.stitch.autoscaling import SPEAKING, WATCHED
from deployments.stitch.avatar_cache import Faces, face_of
from deployments.stitch.calls import Call
from deployments.stitch.chunks import Chunk, Job, LineSettings
from deployments.stitch.interrupts import Cut, Cuts
from deployments.stitch.live.registry import OnAir, OnStage, Show
from deployments.stitch.open_sessions import OpenSessions, refuse_closed, refuse_other_avatar
from deployments.stitch.pasting import PASTE_KEYS, mouth_of, spec_of
from deployments.stitch.pipeline import Line
from deployments.stitch.progress import Progress, ticked
from deployments.stitch.rendering import Stitching, nothing_said, renderers
from deployments.stitch.retention import Limits, Retention
from deployments.stitch.summary import summary_of
from deployments.stitch.utterance import LoadedAvatar, Utterance
from models.avatar.store import AvatarStore
from models.errors import BusyError, InputError, InterruptedSpeech
from models.media.encode import MediaSpec
from models.runtime.ids import check_id
from models.speech.audio import decode_audio, resample, split_audio
from models.speech.text import check_text, printable
from models.types import Speech

log = logging.getLogger("ray.serve")

SURVEY_S, SURVEYS_AN_EXPIRY = 30.0, 10  # how often sessions are counted, and looked through for old ones
LONGEST_TEXT = 100_000  # characters; the TTS stage has a lower limit of its own


class Stitch(Stage[StitchConfig]):
    stage = "Stitch"

    def __init__(self, tts: Any, features: Any, lipsync: Any, enhance: Any | None = None) -> None:
        super().__init__()
        # Sentences are small and streamed by value; features and frames travel through the object store.
        self._handles = (tts.options(stream=True, _by_reference=False), features, lipsync, enhance)
        self._session_lock = KeyedLock()
        self._cuts = Cuts()
        self._text_streams = TextStreams()
        self._keeper: asyncio.Task[None] | None = None
        self._on_air = OnAir()
        self._faces = Faces()

    def apply(self, config: StitchConfig, changed: set[str] | None) -> None:
        self._given = config  # for this thread: `self.config` is the one before until all of this one is applied
        self._store = AvatarStore(
            output_path(config.avatars_dir), builtin_avatars(), cache_bytes=config.frame_cache_mb * 2**20
        )
        if changed is None or changed & {"sessions_dir", "cached_sessions"}:
            self._sessions = OpenSessions(output_path(config.sessions_dir), config.cached_sessions, self._admit)
        limits = Limits(config.max_sessions, config.max_sessions_gb * 2**30, config.session_idle_hours * 3600)
        if changed is None or "max_utterances" in changed:
            self._room = asyncio.Semaphore(config.max_utterances)
        self._retention = Retention(self._sessions.store, limits)
        if changed is None or "threads" in changed:
            self._renderers = renderers(self.worker, config.threads)
        if changed is None or changed & PASTE_KEYS:
            self._faces.clear()
        if changed is None and self._store.exists(config.avatar_id):
            self._load_avatar(config.avatar_id)  # warm: the first utterance must not wait for it

    async def _change(self, config: StitchConfig) -> None:
        await super()._change(config)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._expire())

    async def speak(self, request: SpeakRequest) -> AsyncIterator[SpeakEvent]:
        """Yield the video as it is made (from time 0), then the summary. Raises WarmTalkError.

        Utterances of one session are made one after another, in the order of their arrival. Where somebody watches the
        session live, they are shown there at the pace of its clock, and this ends when the last frame is shown.
        """
        await self.ready()
        asked_s = time.perf_counter()
        session_id = check_id(request.session_id, "session id")
        with self._text_streams.reserve(request.text_stream_key), self._cuts.of(session_id) as cut:
            self._refuse_crowd(session_id)
            async with self._session_lock.hold(session_id), cut.within(self._room):
                cut.check()
                async with aclosing(self._say(request, cut, asked_s)) as events:
                    async for event in events:
                        yield event

    def _refuse_crowd(self, session_id: str) -> None:
        """Raises BusyError where too much waits already, with what has just come."""
        config, again = self.config, "Try again in a few seconds."
        if self._cuts.count(session_id) > 1 + config.max_waiting_session:
            raise BusyError(f"{config.max_waiting_session} utterances of this session wait already.", again)
        if len(self._cuts) > config.max_utterances + config.max_waiting:
            raise BusyError("As many utterances are made and wait as this server allows.", again)

    async def _say(self, request: SpeakRequest, cut: Cut, asked_s: float) -> AsyncGenerator[SpeakEvent, None]:
        began_s = time.perf_counter()
        utterance = (await self.worker.run(self._plan, request)).value
        if request.audio:  # on a thread of its own: a long recording must not hold up the others' pictures
            utterance.speech = await asyncio.to_thread(self._given_speech, request.audio, utterance.spec)
        face = self._faces.speaking(request.session_id, utterance.avatar.prepared.avatar_id)
        with face, self._renderers.least_busy() as renderer:
            async with aclosing(self._made(request, utterance, renderer, cut, asked_s, began_s)) as events:
                async for event in events:
                    yield event

    async def _made(
        self, request: SpeakRequest, utterance: Utterance, renderer: Worker, cut: Cut, asked_s: float, began_s: float
    ) -> AsyncGenerator[SpeakEvent, None]:
        stage = self._on_stage(utterance, renderer)
        if stage is not None:
            cut.then(stage.performance.cut)  # not behind what the compute thread is making
        line = Line(*self._handles, settings=LineSettings.of(self.config, utterance.spec.fps))
        utterance.engines = line.engines
        stitching = Stitching(utterance, stage, cut, renderer, self.meter)
        progress, interrupted = Progress(utterance, stage, (line.calls, stitching.calls)), False
        chunks = line.run(self._job(utterance, stage))
        try:
            async with aclosing(ticked(stitching.fragments(chunks))) as made:
                async for fragment in made:
                    first = fragment is not None and progress.ttff_ms is None
                    if first:
                        progress.ttff_ms = (time.perf_counter() - asked_s) * 1e3
                    if (first or fragment is None) and (facts := progress.report()) and request.progress:
                        yield SpeakEvent(making=facts | progress.heard())
                    if fragment is not None and request.deliver:
                        if first:
                            yield SpeakEvent(fragment.init)
                        yield SpeakEvent(utterance.live(fragment), fragment.frames)
            progress.report()
            if not utterance.frames:
                raise nothing_said(utterance)
        except InterruptedSpeech:
            interrupted = True
            if not utterance.frames:
                raise
        except (GeneratorExit, asyncio.CancelledError):  # whoever asked for it has gone
            interrupted = stage is not None
            raise
        finally:
            try:
                await self._leave(chunks, stage, request.session_id)
                if utterance.session is not None and (interrupted or utterance.complete):
                    await renderer.run(utterance.end, interrupted)
            finally:
                await renderer.run(utterance.release)  # behind what the thread still does for it
            self._count_transfers(line.calls)
        calls, ttff_ms = [*line.calls, *stitching.calls], progress.ttff_ms or 0.0
        summary = summary_of(utterance, calls, line.retries, ttff_ms, time.perf_counter() - began_s)
        summary |= {"interrupted": interrupted}
        summary |= {"live": stage.facts()} if stage is not None else {}
        self.meter.record_utterance(ttff_ms, summary["rtf"])
        self._sessions.remember(request.session_id, summary)
        yield SpeakEvent(summary={**summary, "calls": [asdict(c) for c in calls]} if request.calls else summary)

    async def create(self, session_id: str, avatar_id: str | None = None) -> dict[str, Any]:
        """Open a session without video, and return its facts. Raises ExistsError, IdError, AvatarNotFound."""
        await self.ready()
        await asyncio.to_thread(self._sessions.store.refuse_existing, session_id)  # at once, and not behind its speech
        async with self._session_lock.hold(session_id):
            return (await self.worker.run(self._create, session_id, avatar_id)).value

    async def cut(self, session_id: str) -> int:
        """Cut as `interrupt` does, and answer at once: how much. Raises SessionNotFound, IdError."""
        await self.ready()
        count = self._cuts.make(check_id(session_id, "session id"))
        if not self._cuts.count(session_id):
            await asyncio.to_thread(self._sessions.store.path, session_id)
        return count

    async def interrupt(self, session_id: str) -> dict[str, Any]:
        """Cut what the session says and is going to say; answers when it is silent. Raises IdError."""
        await self.ready()
        count = self._cuts.make(check_id(session_id, "session id"))
        async with self._session_lock.hold(session_id):  # what was cut has left
            return {"session_id": session_id, "interrupted": count}

    async def feed(self, session_id: str, key: str, parts: list[str], last: bool) -> None:
        """Add parts to a text that is being spoken, or is going to be. Raises TextError."""
        self._text_streams.feed(key, parts, last)

    async def live(self, session_id: str, position: int | None = None) -> AsyncGenerator[LiveEvent, None]:
        """What the session shows from now on, for an ingress. Raises SessionNotFound, IdError, AvatarNotFound."""
        await self.ready()
        root = self._sessions.store.root

        def find() -> Show:
            with self._sessions.lock:
                session = self._sessions.find(session_id) or self._sessions.store.open(session_id)
                refuse_closed(session)
                self._retention.hold([session_id])
                return Show(face_of(session, None, "", self._load_avatar), session.spec, session.position)

        check_id(session_id, "session id")
        async with aclosing(self._on_air.watch(session_id, find, self.worker, root, position)) as events:
            async for event in events:
                yield event

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's controller asks of a replica, for the policy that scaling.py is."""
        return {SPEAKING: float(len(self._cuts)), WATCHED: float(len(self._on_air.watched()))}

    async def clock(self) -> tuple[str, float]:
        """The host that answers, and its monotonic clock."""
        return own_host(), time.monotonic()

    async def session(self, session_id: str, transcript: bool = True) -> dict[str, Any]:
        """Facts of a session: frames, duration, path, transcript, latest summary. Raises SessionNotFound, IdError.

        transcript: whoever asks again and again goes without: its cost is that of all that was said, on the thread
        that pastes everybody's pictures.
        """
        await self.ready()
        done = await self.worker.run(self._sessions.describe, session_id, transcript)
        return done.value

    async def sessions(self) -> list[str]:
        """Ids of all sessions on disk."""
        await self.ready()
        return await asyncio.to_thread(self._sessions.store.list)

    async def reset(self, session_id: str) -> dict[str, Any]:
        """Start a session afresh; what it says, and what waits to be said, is cut. Raises IdError."""
        await self.ready()
        self._cuts.make(check_id(session_id, "session id"))
        async with self._session_lock.hold(check_id(session_id, "session id")):
            self._on_air.close(session_id, "reset")
            done = await self.worker.run(self._sessions.reset, session_id)
        return {"session_id": session_id, "reset": done.value}

    async def remove(self, session_id: str, why: Ending = "removed") -> dict[str, Any]:
        """Delete a session and its video; what it says is cut, and viewers are told why. Raises IdError."""
        await self.ready()
        self._cuts.make(check_id(session_id, "session id"))
        async with self._session_lock.hold(session_id):
            self._on_air.close(session_id, why)
            done = await self.worker.run(self._sessions.remove, session_id)
        return {"session_id": session_id, "removed": done.value}

    def _admit(self) -> None:
        """Count a session that speech opens: others may have opened theirs since it was planned. Raises QuotaError."""
        self._retention.check(new=True)
        self._retention.opened()

    def _create(self, session_id: str, avatar_id: str | None) -> dict[str, Any]:
        self._retention.check(new=not self._sessions.store.exists(session_id))
        prepared = self._load_avatar(avatar_id or self.config.avatar_id).prepared
        spec = spec_of(prepared, self.config)
        self._sessions.store.create(session_id, spec, prepared.avatar_id, prepared.version)
        self._retention.opened()
        return self._sessions.describe(session_id)

    async def close(self, session_id: str) -> dict[str, Any]:
        """End a session behind the utterance that is being made; it can still be seen. Raises SessionNotFound."""
        await self.ready()
        async with self._session_lock.hold(check_id(session_id, "session id")):
            self._on_air.close(session_id, "closed")
            return (await self.worker.run(self._sessions.finish, session_id)).value

    async def default_avatar(self) -> str:
        """The avatar of sessions that name none."""
        await self.ready()
        return self.config.avatar_id

    async def forget_avatar(self, avatar_id: str) -> list[str]:
        """End what shows an avatar that was removed, and keep nothing of it; the sessions that ended here."""
        await self.ready()
        shown = sorted({*self._faces.speaking_with(avatar_id), *self._on_air.leaving(avatar_id)})
        for session_id in shown:
            self._cuts.make(session_id)
        for session_id in shown:
            async with self._session_lock.hold(session_id):  # what was cut has left
                self._on_air.close(session_id, "closed")
        await self.worker.run(self._faces.forget, avatar_id)
        await self._on_air.forget_idle(avatar_id, self._sessions.store.root)
        return shown

    async def _forget_removed(self) -> None:
        """Forget avatars that were removed while this replica could not be told."""
        for avatar_id in {*self._faces.all_speaking(), *self._on_air.shown_avatars()}:
            if not await asyncio.to_thread(self._store.exists, avatar_id):
                await self.forget_avatar(avatar_id)

    async def _expire(self) -> None:
        """Count sessions, and remove those in which nothing was said for long, now and then, for ever."""
        for look in itertools.count(1):
            await asyncio.sleep(SURVEY_S)
            try:
                await asyncio.to_thread(self._retention.hold, {*self._on_air.watched(), *self._cuts.speaking()})
                await asyncio.to_thread(self._retention.survey)
                await self._forget_removed()
                if look % SURVEYS_AN_EXPIRY:
                    continue
                await asyncio.to_thread(self._sessions.store.sweep)
                for session_id in await asyncio.to_thread(self._retention.expired):
                    if await asyncio.to_thread(self._retention.has_expired, session_id):
                        await self.remove(session_id, "expired")
            except Exception:
                log.exception("removing old sessions")

    # --- steps of an utterance

    def _plan(self, request: SpeakRequest) -> Utterance:
        """Check all that can be checked before anything is made. Raises InputError, AvatarNotFound."""
        request = replace(request, text=printable(request.text))
        if [bool(request.text.strip()), bool(request.audio), bool(request.text_stream_key)].count(True) != 1:
            raise InputError("There is nothing to say.", "Send a text or a sound file, and only one of them.")
        if request.text:
            check_text(request.text, LONGEST_TEXT, language="")  # which scripts can be read is for the voice to say
        session = self._sessions.find(request.session_id)
        self._retention.check(new=session is None)
        self._retention.hold([request.session_id])
        refuse_closed(session, self.config.session_max_minutes)
        refuse_other_avatar(session, request.avatar_id)
        avatar = face_of(session, request.avatar_id, self.config.avatar_id, self._load_avatar)
        spec = session.spec if session is not None and session.frames else spec_of(avatar.prepared, self.config)
        mouth = mouth_of(avatar, self.config, spec.fps)
        position = session.position if session else 0
        return Utterance(request, self._sessions, avatar, spec, position, mouth)

    def _load_avatar(self, avatar_id: str) -> LoadedAvatar:
        return self._faces.load(avatar_id, self._store, self._given)

    def _given_speech(self, audio: bytes, spec: MediaSpec) -> tuple[Speech, ...]:
        """An uploaded recording at the session's rate, cut at quiet places. Raises AudioError."""
        samples, rate = decode_audio(audio, max_seconds=self.config.max_audio_s)
        return tuple(split_audio(resample(samples, rate, spec.sample_rate_hz), spec.sample_rate_hz, spec.fps))

    def _job(self, utterance: Utterance, stage: OnStage | None) -> Job:
        request = utterance.request
        return Job(
            avatar_id=utterance.avatar.prepared.avatar_id,
            position=utterance.position,
            avatar_version=utterance.avatar.prepared.version,
            session_id=request.session_id,
            text=request.text,
            parts=self._noted(utterance) if request.text_stream_key else None,
            place=stage.performance.place if stage is not None else None,
            speech=utterance.speech,
            voice=request.voice,
            speed=request.speed,
            enhance=self.config.enhance if request.enhance is None else request.enhance,
            strength=request.strength,
        )

    async def _noted(self, utterance: Utterance) -> AsyncIterator[str]:
        """The parts of a growing text, each noted as said."""
        said: list[str] = []
        async with aclosing(self._text_streams.read(utterance.request.text_stream_key)) as parts:
            async for part in parts:
                said.append(part.strip())
                utterance.said = " ".join(said)
                yield part

    def _on_stage(self, utterance: Utterance, renderer: Worker) -> OnStage | None:
        """Where the utterance is shown live, if somebody watches its session."""
        broadcast = self._on_air.of(utterance.request.session_id)
        if broadcast is None:
            return None
        if not broadcast.shows(utterance.avatar.prepared, utterance.spec):
            self._on_air.close(utterance.request.session_id, "replaced")  # an empty session may take another avatar
            return None
        times_s = (self.config.live_ahead_s, self.config.recorded_pause_ms / 1e3)
        return self._on_air.perform(utterance, broadcast, renderer, *times_s)

    async def _leave(self, chunks: AsyncGenerator[Chunk, None], stage: OnStage | None, session_id: str) -> None:
        """End what an utterance has under way; the stage is free again even where this, too, is cancelled."""
        if stage is None:
            return await chunks.aclose()
        try:
            stage.performance.cut()
            try:
                await chunks.aclose()
            finally:
                await stage.leave()
        finally:
            self._on_air.performed(session_id)

    def _count_transfers(self, calls: list[Call]) -> None:
        for call in calls:
            self.meter.record_transfer(call.stage, call.transfer_ms / 1e3)
