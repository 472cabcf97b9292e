"""The Chat stage: owns jobs and conversations. Asks the language model, and has Stitch speak the answer as it comes.

Jobs are on disk, so they outlive the ingress and this replica: the next one takes up what nobody works on any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import logging
import os
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from configs.schema import ChatConfig
from deployments.chat.reply import Reading, heard_of, note, noted, told
from deployments.chat.store import Conversations, Job, JobStore
from deployments.common.errors import to_warmtalk_error
from deployments.common.keyed_lock import KeyedLock
from deployments.common.messages import ChatRequest, SpeakRequest
from deployments.common.paths import output_path
from deployments.common.stage import Stage
from deployments.common.text_stream import speak_text_stream
from models.errors import BusyError, InterruptedSpeech, SessionNotFound, StageError, TextError, WarmTalkError
from models.llm import ENGINES
from models.llm.base import URL_ENV, Message, Responder
from models.llm.token_stream import speakable_pieces, without_thoughts, without_unprintable
from models.runtime.ids import check_id
from models.runtime.registry import find_engine
from models.speech.text import printable

log = logging.getLogger("ray.serve")

HEARTBEAT_S = 2.0
LEASE_S = 3 * HEARTBEAT_S  # a job that was not written for this long has lost its replica
EXPIRY_S = 300.0  # between two looks for what is too old
MAX_ATTEMPTS = 3  # a job that takes its replica down with it must end


@dataclass(slots=True)
class _Running:
    job: Job
    task: asyncio.Task[None]
    written: asyncio.Event  # the job is on disk


class Chat(Stage[ChatConfig]):
    stage = "Chat"
    responder: Responder

    def __init__(self, stitch: Any) -> None:
        super().__init__()
        self._stitch = stitch
        self._session_lock = KeyedLock()
        self._writing = asyncio.Lock()
        self._running: dict[str, _Running] = {}
        self._keeper: asyncio.Task[None] | None = None

    def apply(self, config: ChatConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"engine", "options"}:
            self.responder = _responder(config)
        folder, keep_s = output_path(config.chat_dir), config.keep_hours * 3600
        self._jobs = JobStore(folder / "jobs", keep_s)
        self._talks = Conversations(folder / "sessions", config.max_history_messages, config.max_history_chars, keep_s)

    async def _change(self, config: ChatConfig) -> None:
        await super()._change(config)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    # --- what the ingress asks

    async def start(self, request: ChatRequest) -> dict[str, str]:
        """Begin a job and return its id at once. Raises IdError, TextError, BusyError, OSError."""
        await self.ready()
        check_id(request.session_id, "session id")
        message = self._checked(request.message)
        mine = sum(running.job.session_id == request.session_id for running in self._running.values())
        if len(self._running) >= self.config.max_jobs or mine >= self.config.max_waiting:
            whose = "this session" if mine >= self.config.max_waiting else "the server"
            raise BusyError(f"Too many messages of {whose} wait for their answer.", "Try again in a few seconds.")
        job = self._jobs.new(
            request.session_id,
            message,
            avatar_id=request.avatar_id,
            enhance=request.enhance,
            voice=request.voice,
            speed=request.speed,
        )
        await self._begin(job).written.wait()
        return {"job_id": job.job_id, "session_id": job.session_id}

    async def status(self, job_id: str) -> dict[str, Any]:
        """How far a job has come. Raises IdError, NotFoundError, CorruptError."""
        await self.ready()
        check_id(job_id, "job id")
        if running := self._running.get(job_id):
            if running.job.status in ("done", "failed"):  # not told before it is written: the next replica must know
                await asyncio.wait({running.task})
            return running.job.public()
        return (await asyncio.to_thread(self._jobs.read, job_id)).public()

    async def messages(self, session_id: str) -> list[dict[str, str]]:
        """The conversation of a session, the oldest message first. Raises IdError."""
        await self.ready()
        return await asyncio.to_thread(self._talks.read, session_id)

    async def interrupt(self, session_id: str, job_id: str | None = None) -> int:
        """End the session's jobs, or one of them, where they are: said is said. How many there were. Raises IdError."""
        check_id(session_id, "session id")
        mine = [running for running in self._running.values() if running.job.session_id == session_id]
        mine = [running for running in mine if job_id in (None, running.job.job_id)]
        for running in mine:
            await running.written.wait()  # a task that is cancelled before it begins tells nobody
            if not running.job.interrupted:  # else it is being written down, and must not be cut in that
                running.job.interrupted = True
                running.task.cancel()
        await asyncio.gather(*(running.task for running in mine), return_exceptions=True)
        return len(mine)

    async def forget(self, session_id: str) -> None:
        """End the session's jobs and forget its conversation. Raises IdError."""
        await self.ready()
        await self.interrupt(session_id)
        await asyncio.to_thread(self._talks.forget, session_id)

    def _checked(self, message: str) -> str:
        """The message without control characters. Raises TextError."""
        limit = self.config.max_message_chars
        if len(message) > limit:
            raise TextError(
                f"The message has {len(message)} characters; the limit is {limit}.",
                "Send it in parts, or raise max_message_chars of Chat.",
            )
        kept = printable(message).strip()
        if not kept:
            raise TextError("The message is empty.", "Send at least one word.")
        return kept

    # --- a job's way

    def _begin(self, job: Job) -> _Running:
        written = asyncio.Event()
        # in a context of its own: what is called in a request's ends with it, and a job outlives the request
        task = contextvars.Context().run(asyncio.create_task, self._run(job, written))
        task.add_done_callback(lambda _: self._running.pop(job.job_id, None))
        self._running[job.job_id] = _Running(job, task, written)
        return self._running[job.job_id]

    async def _run(self, job: Job, written: asyncio.Event) -> None:
        """Carry a job to its end, whatever that is, and write it down."""
        try:
            await self._save(job)
            written.set()
            async with self._session_lock.hold(job.session_id):
                await asyncio.wait_for(self._answer(job), self.config.job_timeout_s)
            job.status = "done"
            job.progress = job.progress if job.interrupted else 1.0
        except asyncio.CancelledError:
            if not job.interrupted:
                raise  # the replica goes: the next one finds the job unfinished
            job.status = "done"
        except TimeoutError:
            limit = self.config.job_timeout_s
            _fail(job, StageError(f"The answer took longer than {limit:g} s.", "Ask for a shorter one."))
        except (WarmTalkError, RayError, RayServeException) as error:
            _fail(job, to_warmtalk_error(error))
        except Exception:
            log.exception("chat job %s", job.job_id)
            _fail(job, StageError("The answer could not be made.", "The server's log has the details."))
        finally:
            written.set()
        job.saying = None
        await self._save(job)

    async def _answer(self, job: Job) -> None:
        """1. Read the conversation. 2. Have the model answer. 3. Speak it as it comes. 4. Remember."""
        began_s = time.perf_counter()
        job.status = "thinking"
        await self._save(job)
        session = await self._session(job.session_id)
        job.start_s = float(session.get("duration_s", 0.0))
        messages = await self._prompt(job, job.avatar_id or session.get("avatar_id", ""))
        tokens = noted(job, without_unprintable(without_thoughts(self.responder.stream(messages))), began_s)
        reading = Reading(speakable_pieces(tokens))
        try:
            failure = await self._say(job, reading, began_s) if await reading.begun() else None
            if not job.interrupted:
                await reading.finish()  # an answer that cannot be spoken is shown whole
            if failure is not None:
                raise failure
        finally:
            await reading.close()
            if job.reply:
                seen_s = time.perf_counter() - began_s - job.latency.get("first_frame_ms", 0.0) / 1e3
                heard = heard_of(job, seen_s) if job.interrupted else job.reply
                await asyncio.to_thread(self._talks.add, job.session_id, job.message, heard.strip())

    async def _say(self, job: Job, reading: Reading, began_s: float) -> Exception | None:
        """Have the answer spoken while it is read: one utterance. An error is returned: the rest is still to come."""
        job.status = "speaking"
        await self._save(job)
        request = SpeakRequest(
            session_id=job.session_id,
            avatar_id=job.avatar_id,
            enhance=job.enhance,
            voice=job.voice,
            speed=job.speed,
            deliver=False,
            progress=True,
        )
        asked_ms = (time.perf_counter() - began_s) * 1e3
        try:
            async with aclosing(speak_text_stream(self._stitch, request, told(job, reading.pieces()))) as events:
                async for event in events:
                    before = job.frames
                    note(job, event, asked_ms)
                    if job.frames and not before:
                        await self._save(job)
        except (WarmTalkError, RayError, RayServeException) as error:
            known = to_warmtalk_error(error)
            if not isinstance(known, InterruptedSpeech):
                return known
            job.interrupted = True  # before its first frame, and not by this stage
        return None

    async def _prompt(self, job: Job, avatar_id: str) -> list[Message]:
        """The avatar's system prompt, what was said before, and the message."""
        config = self.config
        system = config.system_prompts.get(avatar_id, config.system_prompt)
        before = await asyncio.to_thread(self._talks.read, job.session_id)
        said = [Message("assistant" if m["role"] == "assistant" else "user", m["content"]) for m in before]
        return [Message("system", system), *said, Message("user", job.message)]

    async def _session(self, session_id: str) -> dict[str, Any]:
        """Facts of the session; of one that is not there yet, whose face it will have."""
        facts: dict[str, Any]
        try:
            try:
                facts = await self._stitch.options(session_id=session_id).session.remote(session_id, False)
            except (WarmTalkError, RayError, RayServeException) as error:
                if not isinstance(to_warmtalk_error(error), SessionNotFound):
                    raise
                facts = {"avatar_id": (await self._stitch.stats.remote())["config"]["avatar_id"]}
            return facts
        except (WarmTalkError, RayError, RayServeException) as error:
            log.warning("the session %s cannot be described: %s", session_id, error)
            return {}

    async def _save(self, job: Job) -> None:
        """Write the job as it is now. A full disk must not end an answer that can still be heard."""
        async with self._writing:  # so that a later state is never written over by an earlier one
            try:
                await asyncio.to_thread(self._jobs.write, copy.deepcopy(job))
            except OSError:
                log.exception("chat job %s cannot be written", job.job_id)

    # --- what outlives a replica

    async def _keep(self) -> None:
        """Say that this replica's jobs live, take up those of dead ones, and forget the old, for ever."""
        expired_s = float("-inf")
        while True:
            try:
                for running in list(self._running.values()):
                    await self._save(running.job)
                for job in await asyncio.to_thread(lambda: list(self._jobs.abandoned(LEASE_S))):
                    await self._take_up(job)
                if time.monotonic() - expired_s > EXPIRY_S:
                    await asyncio.to_thread(self._jobs.expire)
                    await asyncio.to_thread(self._talks.expire)
                    expired_s = time.monotonic()
            except Exception:
                log.exception("keeping chat jobs")
            await asyncio.sleep(HEARTBEAT_S)

    async def _take_up(self, job: Job) -> None:
        """Begin again what nobody has heard a word of; fail, in words, what broke off in the middle."""
        if job.job_id in self._running:
            return
        if job.status == "speaking" or job.attempt >= MAX_ATTEMPTS:
            heard = " What was said of it is in the video." if job.frames else ""
            _fail(job, StageError(f"The server stopped while it gave this answer.{heard}", "Send the message again."))
            await self._save(job)
            return
        job.status, job.reply, job.written, job.progress = "queued", "", False, 0.0
        await self._save(job)
        self._begin(job)


def _responder(config: ChatConfig) -> Responder:
    """The engine that the config names, or that the environment does under `auto`. Raises ConfigError."""
    engine, options = config.engine, config.options
    if engine == "auto":
        engine, options = ("openai", options) if os.environ.get(URL_ENV) else ("offline", {})
    responder: Responder = find_engine(engine, ENGINES).load(**options)
    return responder


def _fail(job: Job, error: WarmTalkError) -> None:
    job.status, job.error = "failed", error.to_dict()
