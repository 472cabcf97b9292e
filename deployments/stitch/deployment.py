"""The Stitch stage: makes utterances and owns sessions.

For an utterance it drives the pipeline, sends the chunks through the output, and yields the fragments. It calls the
other stages only through their handles.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from configs.schema import StitchConfig
from deployments.common.clocks import own_host
from deployments.common.keyed_lock import KeyedLock
from deployments.common.messages import LiveEvent, LiveResume, SpeakEvent, SpeakRequest
from deployments.common.metrics import set_gauge
from deployments.common.paths import builtin_avatars, output_path
from deployments.common.requests import request_id, stage_call
from deployments.common.text_stream import TextStreams
from deployments.common.worker import Worker, WorkerPool
from deployments.stitch.admission import Admission, AdmissionLimits, Making
from deployments.stitch.attempts import Answers
from deployments.stitch.avatar_cache import PASTE_KEYS, AvatarCache, LoadedAvatar, avatar_of, mouth_of, spec_of
from deployments.stitch.chunks import PipelineRequest, PipelineSettings
from deployments.stitch.enhance_fade import EnhanceFades
from deployments.stitch.interrupts import Interrupt, Interrupts
from deployments.stitch.live.registry import LiveRegistry, Picture
from deployments.stitch.metrics import LoadMeter
from deployments.stitch.open_sessions import OpenSessions, refuse_closed, refuse_other_avatar
from deployments.stitch.output import FileOutput, Output
from deployments.stitch.ownership.owner import SessionOwner, serve_directory
from deployments.stitch.pipeline import Pipeline
from deployments.stitch.recorded import recorded_speech
from deployments.stitch.rendering import Renderer, render_workers
from deployments.stitch.retention import Limits, Retention
from deployments.stitch.session_calls import SessionCalls
from deployments.stitch.spans import Spans
from deployments.stitch.utterance import UtteranceWriter
from deployments.stitch.utterance_run import UtteranceRun
from models.avatar.store import AvatarStore
from models.errors import InputError, WarmTalkError
from models.media.h264 import choose_encoder
from models.runtime.ids import check_id
from models.speech.readable import check_text, has_word
from models.speech.text import printable
from models.types import Speech

log = logging.getLogger("ray.serve")

SURVEY_S = 30.0  # interval at which sessions are counted and leases are renewed
SURVEYS_PER_EXPIRY = 10  # every tenth survey removes expired sessions
MAX_TEXT_CHARS = 100_000  # the TTS stage has a lower limit of its own


class Stitch(SessionCalls):
    """One replica. The ingress and Chat call its public methods through handles; a router keeps a session here."""

    stage = "Stitch"

    def __init__(
        self,
        tts: DeploymentHandle,
        features: DeploymentHandle,
        lipsync: DeploymentHandle,
        enhance: DeploymentHandle | None = None,
    ) -> None:
        super().__init__()
        # Sentences are small and streamed by value; features and frames travel through the object store.
        self._handles = (tts.options(stream=True, _by_reference=False), features, lipsync, enhance)
        self._by_value = features.options(_by_reference=False), lipsync.options(_by_reference=False)
        self._session_lock = KeyedLock()  # one utterance per session at a time
        self._interrupts = Interrupts()
        self._text_streams = TextStreams()
        self._live = LiveRegistry()
        self._admission = Admission(metrics=LoadMeter())
        self._fades = EnhanceFades(None if enhance is None else lambda: enhance.needs_landmarks.remote())
        self._avatars = AvatarCache()
        self._owner = SessionOwner(
            *serve_directory(),
            interrupts=self._interrupts,
            live=self._live,
            lock=self._session_lock,
            close_file=lambda session_id: self._sessions.close(session_id),
        )
        self._workers = WorkerPool([self.worker])
        self._answers = Answers()
        self._spans = Spans()
        self._housekeeping: asyncio.Task[None] | None = None

    def apply(self, config: StitchConfig, changed: set[str] | None) -> None:
        self._new_config = config  # for this thread: `self.config` is the previous one until all of this is applied
        if changed is None or "encoder" in changed:
            log.info("New sessions are encoded by %s: %s.", *choose_encoder(config.encoder))
        self._store = AvatarStore(
            output_path(config.avatars_dir), builtin_avatars(), cache_bytes=config.frame_cache_mb * 2**20
        )
        if changed is None or changed & {"sessions_dir", "cached_sessions"}:
            self._sessions = OpenSessions(output_path(config.sessions_dir), config.cached_sessions, self._admit)
        if changed is None or "otlp_endpoint" in changed:
            before, self._spans = self._spans, Spans(config.otlp_endpoint)
            before.close()
        limits = Limits(config.max_sessions, config.max_sessions_gb * 2**30, config.session_idle_hours * 3600)
        if changed is None or "max_utterances" in changed:
            self._slots = {live: asyncio.Semaphore(config.max_utterances) for live in (True, False)}
        self._admission.limits = AdmissionLimits.of(config)
        self._retention = Retention(self._sessions.store, limits)
        if changed is None or "threads" in changed:
            self._workers = render_workers(self.worker, config.threads)
            self._owner.load.threads = config.threads
        if changed is None or changed & PASTE_KEYS:
            self._avatars.clear()
        if changed is None and self._store.exists(config.avatar_id):
            self._load_avatar(config.avatar_id)  # so that the first utterance does not wait for it

    def workers(self) -> tuple[Worker, ...]:
        return self.worker, *self._workers.workers

    async def _change(self, config: StitchConfig) -> None:
        await super()._change(config)
        if self._housekeeping is None:
            self._housekeeping = asyncio.create_task(self._housekeep())
            self._owner.start()

    # --- speech

    @stage_call
    async def speak(self, request: SpeakRequest) -> AsyncIterator[SpeakEvent]:
        """Yield the video as it is made, from time 0, and then the summary. Raises WarmTalkError.

        Utterances of one session run one after another, in the order of their arrival. In a session that somebody
        watches live an utterance runs at the pace of the session's clock, and ends when its last frame is shown.
        Raises MovedError before it begins if another replica owns the session: send it again.
        """
        await self.ready()
        requested_s = time.perf_counter()
        session_id = check_id(request.session_id, "session id")
        text_stream = self._text_streams.reserve(request.text_stream_key)
        with text_stream, self._interrupts.register(session_id) as interrupt:
            await interrupt.run(self._owner.arrive(session_id, request.sent_s))  # first: then it is known who watches
            live_fps, moved = self._live.watched_fps(session_id), request.moves > 0
            with self._admission.admit(session_id, live_fps, force=moved) as making:
                async with (
                    self._session_lock.hold(session_id),
                    self._owner.turn(session_id, interrupt, self._slots[making.live]),
                    aclosing(self._start(request, interrupt, making, requested_s)) as events,
                ):
                    async for event in events:
                        yield event

    async def _start(
        self, request: SpeakRequest, interrupt: Interrupt, making: Making, requested_s: float
    ) -> AsyncGenerator[SpeakEvent, None]:
        started_s = time.perf_counter()
        writer = (await self.worker.run(self._plan, request)).value
        speaking = self._avatars.speaking(request.session_id, writer.avatar.prepared.avatar_id)
        async with recorded_speech(request.audio_path, writer.spec, self.config.max_audio_s) as speech:
            with speaking, self._workers.least_busy() as worker:
                renderer = Renderer(writer, worker, self.meter, making, self._owner.load)
                output = self._choose_output(renderer, interrupt)
                settings = PipelineSettings.from_config(self.config, writer.spec.fps)
                pipeline = Pipeline(
                    *self._handles, settings=settings, making=making, answers=self._answers, by_value=self._by_value
                )
                writer.engines = pipeline.engines
                run = UtteranceRun(renderer, pipeline, output, interrupt, requested_s, started_s)
                events = run.events(self._pipeline_request(writer, output, speech))
                with self._spans.utterance(run, request):
                    async with aclosing(events):
                        async for event in events:
                            yield event
        summary = run.summary() | {"request_id": request_id()}
        await asyncio.to_thread(self._sessions.remember, request.session_id, summary)
        yield SpeakEvent(summary={**summary, "calls": run.calls()} if request.calls else summary)

    def _plan(self, request: SpeakRequest) -> UtteranceWriter:
        """Check all that can be checked before the pipeline starts. Raises InputError, AvatarNotFound."""
        request = replace(request, text=printable(request.text))
        sources = [bool(request.text.strip()), bool(request.audio_path), bool(request.text_stream_key)].count(True)
        if not sources:
            raise InputError("There is nothing to say.", "Send a text or a sound file.")
        if sources > 1:
            raise InputError("The request has both a text and a sound file.", "Send only one of them.")
        if request.text:
            check_text(request.text, MAX_TEXT_CHARS, language="")  # the voice checks the script
        session = self._sessions.find(request.session_id)
        self._retention.check(new=session is None)
        self._retention.renew_leases([request.session_id])
        refuse_closed(session, self.config.session_max_minutes)
        refuse_other_avatar(session, request.avatar_id)
        avatar = avatar_of(session, request.avatar_id, self.config.avatar_id, self._load_avatar)
        spec = spec_of(session, avatar.prepared, self.config)
        mouth = mouth_of(avatar, self.config, spec.fps)
        return UtteranceWriter(request, self._sessions, avatar, spec, session.position if session else 0, mouth)

    def _load_avatar(self, avatar_id: str) -> LoadedAvatar:
        return self._avatars.load(avatar_id, self._store, self._new_config)

    def _choose_output(self, renderer: Renderer, interrupt: Interrupt) -> Output:
        """The live stream if somebody watches the session, else the session file."""
        writer = renderer.writer
        session_id = writer.request.session_id
        broadcast = self._live.broadcast_of(session_id)
        if broadcast is not None and not broadcast.shows(writer.avatar.prepared, writer.spec):
            self._live.close(session_id, "replaced")  # the viewers see another avatar, or an older version of it
            broadcast = None
        if broadcast is None:
            return FileOutput(renderer)
        times_s = (self.config.live_ahead_s, self.config.recorded_pause_ms / 1e3)
        return self._live.open_output(renderer, broadcast, interrupt, *times_s)

    def _pipeline_request(self, writer: UtteranceWriter, output: Output, speech: Iterable[Speech]) -> PipelineRequest:
        request = writer.request
        enhance = bool(self._handles[3]) and (self.config.enhance if request.enhance is None else request.enhance)
        return PipelineRequest(
            avatar_id=writer.avatar.prepared.avatar_id,
            place=output.place,
            avatar_version=writer.avatar.prepared.version,
            session_id=request.session_id,
            text=request.text,
            parts=self._text_parts(writer) if request.text_stream_key else None,
            speech=speech,
            voice=request.voice,
            speed=request.speed,
            enhance=enhance,
            strength=request.strength,
            slack_s=output.slack_s if output.watched else None,
            fade=self._fades.begin(request.session_id, self.config.live_ahead_s)
            if enhance and output.watched
            else None,
        )

    async def _text_parts(self, writer: UtteranceWriter) -> AsyncIterator[str]:
        """The parts of a text stream; the writer records them as spoken."""
        spoken: list[str] = []
        async with aclosing(self._text_streams.read(writer.request.text_stream_key)) as parts:
            async for part in parts:
                if has_word(part):
                    spoken.append(part.strip())
                    writer.spoken_text = " ".join(spoken)
                yield part

    async def feed(self, session_id: str, key: str, parts: list[str], last: bool) -> None:
        """Add parts to a text stream that is being spoken, or will be. Raises TextError."""
        self._text_streams.feed(key, parts, last)

    async def interrupt_nowait(self, session_id: str) -> int:
        """Interrupt without waiting; return the number of utterances interrupted. Raises SessionNotFound, IdError."""
        await self.ready()
        count = self._interrupts.interrupt(check_id(session_id, "session id"))
        if not self._interrupts.count(session_id):
            await asyncio.to_thread(self._sessions.store.path, session_id)
        return count

    async def interrupt(self, session_id: str) -> dict[str, Any]:
        """Interrupt the session's utterances, waiting ones included; return when it is silent.

        Raises IdError, and MovedError if another replica owns the session: its utterances are there, or on their way.
        """
        await self.ready()
        await self._owner.settled(check_id(session_id, "session id"))
        count = self._interrupts.interrupt(session_id)
        async with self._session_lock.hold(session_id):  # the interrupted utterances have ended
            return {"session_id": session_id, "interrupted": count}

    @stage_call
    async def live(self, session_id: str, resume: LiveResume | None = None) -> AsyncGenerator[LiveEvent, None]:
        """The session's live events from now on.

        Raises SessionNotFound, IdError, AvatarNotFound, ClosedError, ResetNeededError.

        resume: where the caller's stream goes on. Raises MovedError if another replica owns the session.
        """
        await self.ready()
        root = self._sessions.store.root

        def find() -> Picture:
            with self._sessions.lock:
                session = self._sessions.find(session_id) or self._sessions.store.open(session_id)
                refuse_closed(session)
                self._retention.renew_leases([session_id])
                avatar = avatar_of(session, None, "", self._load_avatar)
                return Picture(avatar, spec_of(session, avatar.prepared, self.config), session.position)

        await self._owner.take(check_id(session_id, "session id"))
        async with aclosing(self._live.watch(session_id, find, self.worker, root, resume)) as events:
            async for event in events:
                if event.start is not None:
                    self._owner.changed()
                yield event

    def _admit(self) -> None:
        """Count a session that speech creates; others may have been created since `_plan`. Raises QuotaError."""
        self._retention.check(new=True)
        self._retention.opened()

    # --- avatars

    async def default_avatar(self) -> str:
        """The avatar of sessions that name none."""
        await self.ready()
        return self.config.avatar_id

    async def forget_avatar(self, avatar_id: str) -> list[str]:
        """End everything that shows a removed avatar and drop it; return the sessions that were affected."""
        await self.ready()
        speaking = self._avatars.sessions_speaking_with(avatar_id)
        shown = sorted({*speaking, *self._live.sessions_showing(avatar_id)})
        for session_id in shown:
            self._interrupts.interrupt(session_id)
        for session_id in shown:
            async with self._session_lock.hold(session_id):  # the interrupted utterances have ended
                self._live.close(session_id, "closed")
        await self.worker.run(self._avatars.forget, avatar_id)
        await self._live.forget_idle(avatar_id, self._sessions.store.root)
        return shown

    async def _forget_removed(self) -> None:
        """Forget avatars that were removed without a call of `forget_avatar` on this replica."""
        for avatar_id in {*self._avatars.speaking_avatars(), *self._live.shown_avatars()}:
            if not await asyncio.to_thread(self._store.exists, avatar_id):
                await self.forget_avatar(avatar_id)

    # --- the replica

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics for deployments.common.autoscaling:ByDeadline; Serve's controller calls this."""
        idle = len(self._live.watched()) - len(self._admission.live_sessions())
        return self._owner.load.scaling_metrics(max(0, idle), self._start_s)

    async def stats(self) -> dict[str, Any]:
        """As of every stage, the H.264 encoder of new sessions with the reason for it, and the sessions in use here."""
        encoder, reason = choose_encoder(self.config.encoder)
        speaking, watched = set(self._interrupts.sessions()), set(self._live.watched())
        sessions = {name: {"speaking": name in speaking, "watched": name in watched} for name in speaking | watched}
        own = {"encoder": encoder, "encoder_reason": reason, "sessions": sessions}
        return {**await super().stats(), **own}

    def report(self) -> None:
        super().report()
        set_gauge("warmtalk_watched_sessions", len(self._live.watched()))
        set_gauge("warmtalk_degraded_sessions", self._fades.count_faded(self._interrupts.sessions()))

    async def clock(self) -> tuple[str, float]:
        """This host and its monotonic clock."""
        return own_host(), time.monotonic()

    async def _housekeep(self) -> None:
        """Every SURVEY_S: renew leases, count sessions, and from time to time remove expired ones."""
        for number in itertools.count(1):
            await asyncio.sleep(SURVEY_S)
            try:
                used = {*self._live.watched(), *self._interrupts.sessions()}
                await asyncio.to_thread(self._retention.renew_leases, used)
                await asyncio.to_thread(self._retention.survey)
                await self._forget_removed()
                if number % SURVEYS_PER_EXPIRY:
                    continue
                await asyncio.to_thread(self._sessions.store.sweep)
                for session_id in await asyncio.to_thread(self._retention.expired):
                    try:
                        if await asyncio.to_thread(self._retention.has_expired, session_id):
                            await self.remove(session_id, "expired")
                    except (WarmTalkError, OSError):
                        log.exception("The expired session %s cannot be removed", session_id)
            except Exception:
                log.exception("Housekeeping of sessions failed")
