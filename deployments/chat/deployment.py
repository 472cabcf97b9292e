"""The Chat stage: asks the language model and lets Stitch speak the answer while it is being written.

Jobs are on disk, so they survive the ingress and this replica: a new replica resumes jobs that no replica works on.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from configs.schema import ChatConfig
from deployments.chat.reply import ReplyReader, heard_text, record_event, record_spoken, record_tokens
from deployments.chat.store import ChatJob, Conversations, JobStore
from deployments.common.errors import to_warmtalk_error
from deployments.common.keyed_lock import KeyedLock
from deployments.common.messages import ChatRequest, SpeakRequest, SpeechOptions
from deployments.common.paths import output_path
from deployments.common.requests import TRACE_PARENT, detached, stage_call
from deployments.common.stage import Stage
from deployments.common.text_stream import speak_text_stream
from models.errors import BusyError, InterruptedSpeech, SessionNotFound, StageError, TextError, WarmTalkError
from models.llm import ENGINES
from models.llm.base import URL_ENV, Message, Responder
from models.llm.token_stream import end_when_silent, speakable_pieces, without_thoughts, without_unprintable
from models.runtime.ids import check_id
from models.runtime.registry import find_engine
from models.speech.readable import check_text, skip_warnings, skipped_for
from models.speech.text import printable

log = logging.getLogger("ray.serve")

HEARTBEAT_S = 2.0  # interval of writing running jobs, and of looking for abandoned ones
LEASE_S = 3 * HEARTBEAT_S  # a job that was not written for this long has lost its replica
EXPIRY_S = 60.0  # interval of deleting old jobs and conversations
MAX_ATTEMPTS = 3  # limits jobs that crash their replica


@dataclass(slots=True)
class _Running:
    job: ChatJob
    task: asyncio.Task[None]
    written: asyncio.Event  # the job is on disk, or has failed
    refused: WarmTalkError | None = None  # it could not be written: it was never begun


class Chat(Stage[ChatConfig]):
    stage = "Chat"
    responder: Responder

    def __init__(self, stitch: DeploymentHandle) -> None:
        super().__init__()
        self._stitch = stitch
        self._session_lock = KeyedLock()
        self._write_lock = asyncio.Lock()
        self._running: dict[str, _Running] = {}
        self._unsaved: dict[str, ChatJob] = {}  # jobs whose latest state is not on disk, because that is full
        self._maintenance: asyncio.Task[None] | None = None

    def apply(self, config: ChatConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"engine", "options"}:
            self.responder = _load_responder(config)
        folder, keep_s = output_path(config.chat_dir), config.keep_hours * 3600
        self._jobs = JobStore(folder / "jobs", keep_s)
        self._conversations = Conversations(
            folder / "sessions", config.max_history_messages, config.max_history_chars, keep_s
        )

    async def _change(self, config: ChatConfig) -> None:
        await super()._change(config)
        if self._maintenance is None:
            self._maintenance = asyncio.create_task(self._maintain())

    # --- calls of the ingress

    @stage_call
    async def start(self, request: ChatRequest) -> dict[str, str]:
        """Start a job and return its id without waiting for the answer.

        Raises IdError, TextError, BusyError, DiskFullError.
        """
        await self.ready()
        check_id(request.session_id, "session id")
        message = self._checked(request.message)
        mine = sum(running.job.session_id == request.session_id for running in self._running.values())
        if len(self._running) >= self.config.max_jobs or mine >= self.config.max_waiting:
            whose = "this session" if mine >= self.config.max_waiting else "the server"
            raise BusyError(f"Too many messages of {whose} wait for an answer.", "Try again in a few seconds.")
        TRACE_PARENT.set(request.trace_parent)
        job = self._jobs.new(request.session_id, message, options=SpeechOptions(**request.speech_options()))
        running = self._start_job(job)
        await running.written.wait()
        if running.refused is not None:
            raise running.refused
        return {"job_id": job.job_id, "session_id": job.session_id}

    async def status(self, job_id: str) -> dict[str, Any]:
        """The state of a job. Raises IdError, NotFoundError, CorruptError."""
        await self.ready()
        check_id(job_id, "job id")
        if running := self._running.get(job_id):
            if running.job.finished:  # report the end only after it is on disk, where another replica would read it
                await asyncio.wait({running.task})
            return running.job.public()
        if unsaved := self._unsaved.get(job_id):
            return unsaved.public()
        return (await asyncio.to_thread(self._jobs.read, job_id)).public()

    async def messages(self, session_id: str) -> list[dict[str, str]]:
        """The conversation of a session, the oldest message first. Raises IdError."""
        await self.ready()
        return await asyncio.to_thread(self._conversations.read, session_id)

    async def interrupt(self, session_id: str, job_id: str | None = None) -> int:
        """Stop the session's jobs, or one of them, and return their number. Speech so far is kept. Raises IdError."""
        check_id(session_id, "session id")
        mine = [running for running in self._running.values() if running.job.session_id == session_id]
        mine = [running for running in mine if job_id in (None, running.job.job_id)]
        for running in mine:
            await running.written.wait()  # a task that is cancelled before it starts would not write its job
            if not running.job.interrupted:  # an interrupted job is being written, which must not be cancelled
                running.job.interrupted = True
                running.task.cancel()
        await asyncio.gather(*(running.task for running in mine), return_exceptions=True)
        return len(mine)

    async def forget(self, session_id: str) -> None:
        """Stop the session's jobs and delete its conversation. Raises IdError."""
        await self.ready()
        await self.interrupt(session_id)
        await asyncio.to_thread(self._conversations.delete, session_id)

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

    # --- running a job

    def _start_job(self, job: ChatJob) -> _Running:
        written = asyncio.Event()
        task = detached().run(asyncio.create_task, self._run(job, written))
        task.add_done_callback(lambda _: self._running.pop(job.job_id, None))
        self._running[job.job_id] = _Running(job, task, written)
        return self._running[job.job_id]

    async def _run(self, job: ChatJob, written: asyncio.Event) -> None:
        """Run a job to its end, and write the result, whatever it is."""
        try:
            await self._save(job, must=True)
            written.set()
            async with self._session_lock.hold(job.session_id), asyncio.timeout(self.config.job_timeout_s):
                await self._answer(job)
            job.status = "done"
            job.progress = job.progress if job.interrupted else 1.0
        except asyncio.CancelledError:
            if not job.interrupted:
                raise  # this replica is stopping; the next one resumes the job
            job.status = "done"
        except TimeoutError:
            limit = self.config.job_timeout_s
            _fail(job, StageError(f"The answer took longer than {limit:g} s.", "Ask for a shorter answer."))
        except (WarmTalkError, RayError, RayServeException) as error:
            failure = to_warmtalk_error(error)
            if not written.is_set():
                self._running.pop(job.job_id).refused = failure
                return
            _fail(job, failure)
        except Exception:
            log.exception("Chat job %s failed", job.job_id)
            _fail(job, StageError("The answer could not be generated.", "The server's log has the details."))
        finally:
            written.set()
        job.saying = None
        if job.status == "done":  # an interrupted answer may have had an error
            job.error = None
        await self._save(job)

    async def _answer(self, job: ChatJob) -> None:
        """1. Read the conversation. 2. Ask the model. 3. Speak its answer as it arrives. 4. Store the conversation."""
        began_s = time.perf_counter()
        job.status = "thinking"
        await self._save(job)
        session = await self._session_facts(job.session_id)
        job.start_s = float(session.get("duration_s", 0.0))
        messages = await self._prompt(job, job.options.avatar_id or session.get("avatar_id", ""))
        tokens = without_unprintable(without_thoughts(self.responder.stream(messages)))
        limit_s, pause_s = self.config.reply_timeout_s, self.config.sentence_pause_ms / 1e3
        silent = StageError(f"The language model wrote nothing for {limit_s:g} s.", "Send the message again.")
        recorded = end_when_silent(record_tokens(job, tokens, began_s), limit_s, silent, from_start=False)
        reply = ReplyReader(speakable_pieces(recorded, pause_s), partial(_report, job))
        try:
            spoken = await reply.has_speech()
            failure = await self._speak(job, reply, began_s) if spoken else None
            if not job.interrupted:
                await reply.finish()  # also after a failure: the text of the answer is shown completely
            if not spoken and job.reply.strip():
                job.warnings = _unspoken_warnings(job.reply)
            if failure is not None:
                raise failure
        finally:
            await reply.close()
            if job.reply:
                seen_s = time.perf_counter() - began_s - job.latency.get("first_frame_ms", 0.0) / 1e3
                heard = heard_text(job, seen_s) if job.interrupted else job.reply
                try:
                    await asyncio.to_thread(self._conversations.add, job.session_id, job.message, heard.strip())
                except OSError:  # a full disk must not fail an answer that was heard
                    log.exception("The conversation of session %s cannot be written", job.session_id)

    async def _speak(self, job: ChatJob, reply: ReplyReader, began_s: float) -> Exception | None:
        """Speak the reply as one utterance. An error is returned, so that the caller can read the rest of the reply."""
        job.status = "speaking"
        await self._save(job)
        request = SpeakRequest(
            session_id=job.session_id,
            deliver=False,
            progress=True,
            **job.options.speech_options(),
        )
        asked_ms = (time.perf_counter() - began_s) * 1e3
        text_error: WarmTalkError | None = None
        try:
            async with aclosing(speak_text_stream(self._stitch, request, record_spoken(job, reply.pieces()))) as events:
                async for event in events:
                    before = job.frames
                    text_error = event.error or text_error
                    record_event(job, event, asked_ms)
                    if job.frames and not before:
                        await self._save(job)
        except (WarmTalkError, RayError, RayServeException) as error:
            failure = to_warmtalk_error(error)
            if not isinstance(failure, InterruptedSpeech):
                return failure
            job.interrupted = True  # before its first frame, by a call to Stitch
        return text_error

    async def _prompt(self, job: ChatJob, avatar_id: str) -> list[Message]:
        """The avatar's system prompt, the conversation so far, and the message."""
        config = self.config
        system = config.system_prompts.get(avatar_id, config.system_prompt)
        before = await asyncio.to_thread(self._conversations.read, job.session_id)
        said = [Message("assistant" if m["role"] == "assistant" else "user", m["content"]) for m in before]
        return [Message("system", system), *said, Message("user", job.message)]

    async def _session_facts(self, session_id: str) -> dict[str, Any]:
        """Facts about the session. Of a session that does not exist yet: the avatar that it will have."""
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
            log.warning("The facts of session %s could not be read: %s", session_id, error)
            return {}

    async def _save(self, job: ChatJob, must: bool = False) -> None:
        """Write the job's current state. A full disk is only logged: it must not end an answer that can be heard.

        must: raise the error instead, because the answer has not begun. Raises DiskFullError.
        """
        async with self._write_lock:  # keeps the states in order
            try:
                await asyncio.to_thread(self._jobs.write, copy.deepcopy(job))
                self._unsaved.pop(job.job_id, None)
            except OSError:
                if must:
                    raise
                self._unsaved[job.job_id] = job
                log.exception("Chat job %s cannot be written", job.job_id)

    # --- jobs across replicas

    async def _maintain(self) -> None:
        """Until this replica stops: refresh the heartbeat of its jobs, resume abandoned jobs, delete old files."""
        expired_s = float("-inf")
        while True:
            try:
                begun = {one.job.job_id: one.job for one in self._running.values() if one.written.is_set()}
                for job in (self._unsaved | begun).values():
                    await self._save(job)
                for job in await asyncio.to_thread(lambda: list(self._jobs.abandoned(LEASE_S))):
                    await self._resume(job)
                if time.monotonic() - expired_s > EXPIRY_S:
                    await asyncio.to_thread(self._jobs.expire)
                    await asyncio.to_thread(self._conversations.expire)
                    expired_s = time.monotonic()
            except Exception:
                log.exception("Maintenance of chat jobs failed")
            await asyncio.sleep(HEARTBEAT_S)

    async def _resume(self, job: ChatJob) -> None:
        """Restart a job that has not been spoken yet. Fail a job that was stopped while it was spoken."""
        if job.job_id in self._running or job.job_id in self._unsaved:
            return
        if job.status == "speaking" or job.attempt >= MAX_ATTEMPTS:
            kept = " The part that was spoken is in the video." if job.frames else ""
            message = f"The server stopped while it gave this answer.{kept}"
            _fail(job, StageError(message, "Send the message again."))
            await self._save(job)
            return
        job.status, job.reply, job.written, job.progress = "queued", "", False, 0.0
        await self._save(job)
        self._start_job(job)


def _load_responder(config: ChatConfig) -> Responder:
    """Load the config's engine; for `auto`, choose it by the environment. Raises ConfigError."""
    engine, options = config.engine, config.options
    if engine == "auto":
        engine, options = ("openai", options) if os.environ.get(URL_ENV) else ("offline", {})
    responder: Responder = find_engine(engine, ENGINES).load(**options)
    return responder


def _fail(job: ChatJob, error: WarmTalkError) -> None:
    job.status = "failed"
    _report(job, error)


def _report(job: ChatJob, error: WarmTalkError) -> None:
    job.error = error.to_dict()


def _unspoken_warnings(reply: str) -> list[str]:
    """Why nothing of a reply is spoken."""
    try:
        check_text(reply, len(reply), language="")
    except TextError as error:
        return skip_warnings([skipped_for(reply, error)])
    return []
