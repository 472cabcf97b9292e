"""Routes of the fake server for chat, speech, recordings and interruption."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.browser.fake_media import FPS
from tests.browser.fake_state import STAGES, FakeSession, State


async def answer(state: State, job: dict[str, Any], session: FakeSession) -> None:
    """Speak `state.reply` sentence by sentence and report the job's status."""
    job["status"] = "thinking"
    interrupts = session.interrupts
    await asyncio.sleep(state.think_s)
    if "answer" in state.fail:
        job |= {"status": "failed", "error": state.fail["answer"][1]}
        return
    for piece in state.reply.replace("? ", "?|").replace(". ", ".|").split("|"):
        job["reply"] = f"{job['reply']} {piece}".strip()
        job |= {"status": "speaking", "saying": job["reply"]}
        length_s = session.say(piece)
        while time.monotonic() < session.until_s and session.interrupts == interrupts:
            await asyncio.sleep(0.02)
        if session.interrupts != interrupts:
            job["interrupted"] = True
            break
        job["frames"] += round(length_s * FPS)
        job["progress"] = min(0.95, len(job["reply"]) / len(state.reply))
        job["latency"] = latency(length_s)
    job |= {"status": "done", "progress": 1.0, "saying": None, "warnings": state.warnings}
    job["video_url"] = f"/sessions/{job['session_id']}/video.mp4"
    session.messages += [
        {"role": "user", "content": job["message"]},
        {"role": "assistant", "content": job["reply"]},
    ]


def latency(length_s: float) -> dict[str, Any]:
    """The busy times of a sentence of this length."""
    frames = round(length_s * FPS)
    stages = {s: {"calls": 9, "frames": frames, "busy_ms": ms, "compute_ms": ms} for s, ms in STAGES.items()}
    first = {"first_token_ms": 28.0, "first_frame_ms": 571.0, "ttff_ms": 493.0}
    return {**first, "rtf": 0.62, "duration_s": length_s, "stages": stages}


def spoken(session_id: str, length_s: float) -> dict[str, Any]:
    """The response of /speak."""
    facts = {"session_id": session_id, "avatar_id": "presenter", "frames": round(length_s * FPS)}
    facts |= {"duration_s": length_s, "ttff_ms": 480.0, "rtf": 0.6, "stages": {}}
    return {**facts, "video_url": f"/sessions/{session_id}/video.mp4"}


def serve_chat(app: FastAPI, state: State) -> None:
    """Add /chat, job status and chat history."""

    @app.post("/chat")
    async def chat(body: dict[str, Any]) -> Response:
        if failed := state.failing("chat"):
            return failed
        session = state.session(body["session_id"])
        job: dict[str, Any] = {"job_id": uuid.uuid4().hex, "session_id": body["session_id"], "message": body["message"]}
        job |= {"status": "queued", "progress": 0.0, "reply": "", "error": None, "interrupted": False, "latency": {}}
        job |= {"video_url": None, "start_s": 0.0, "frames": 0, "saying": None}
        state.jobs[job["job_id"]] = job
        asyncio.get_running_loop().create_task(answer(state, job, session))
        return JSONResponse({"job_id": job["job_id"], "session_id": body["session_id"]})

    @app.get("/status/{job_id}")
    async def status(job_id: str) -> Response:
        if job_id not in state.jobs:
            error = {"code": "not_found", "message": f"There is no job {job_id!r}.", "remedy": "Send it again."}
            return JSONResponse({"error": error}, 404)
        return JSONResponse(state.jobs[job_id])

    @app.get("/chat/{session_id}")
    async def messages(session_id: str) -> list[dict[str, str]]:
        return state.session(session_id).messages


def serve_speech(app: FastAPI, state: State) -> None:
    """Add /speak, /speak/audio, transcription and interruption."""

    @app.post("/speak")
    async def speak(body: dict[str, Any]) -> Response:
        if failed := state.failing("speak"):
            return failed
        length_s = state.session(body["session_id"]).say(body["text"])
        await asyncio.sleep(length_s)
        return JSONResponse({**spoken(body["session_id"], length_s), "warnings": state.warnings})

    @app.post("/speak/audio")
    async def speak_audio(http: Request, session_id: str) -> Response:
        state.uploads.append((session_id, await http.body()))
        if failed := state.failing("speak"):
            return failed
        length_s = state.session(session_id).say("a recording of some words")
        await asyncio.sleep(length_s)
        return JSONResponse(spoken(session_id, length_s))

    @app.get("/abilities")
    async def abilities() -> dict[str, bool]:
        return {"recognition": state.recognition}

    @app.post("/v1/audio/transcriptions")
    async def transcribe(http: Request) -> Response:
        form = await http.form()
        state.uploads.append(("heard", await form["file"].read()))
        await asyncio.sleep(state.think_s)
        return state.failing("transcribe") or JSONResponse({"text": state.heard})

    @app.post("/sessions/{session_id}/interrupt")
    async def interrupt(session_id: str) -> dict[str, Any]:
        session = state.session(session_id)
        was, session.until_s = session.speaks, 0.0
        session.interrupts += 1
        return {"session_id": session_id, "interrupted": was}
