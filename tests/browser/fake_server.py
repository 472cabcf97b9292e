"""A server with the real page, the real routes' forms and canned media: a face that idles and, asked to, speaks.

One thread, one encoder a viewer, no model and no Ray, so that the page can be tested and looked at on any machine.
`python -m tests.browser.fake_server 8010 [speech.mp4]` serves it by hand; speech.mp4 replaces the painted mouth.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from deployments.access import Access, serve_login
from deployments.paths import builtin_avatars
from deployments.web import serve_page
from models.stitch.events import event_box
from tests.browser.fake_whep import serve_whep

FPS, RATE, FRAGMENT_FRAMES = 25, 24_000, 4
FRAME_SAMPLES = RATE // FPS
IDLE_FRAMES = 150
WORD_S = 0.32
STAGES = {"TTS": 92, "AudioFeatures": 140, "LipSync": 1320, "Enhance": 640, "Stitch": 410}  # ms of a sentence
MOUTH = (slice(306, 346), slice(222, 290))  # of the presenter's 512 px frames: rows, columns


@dataclass
class FakeSession:
    """`until_s`: the monotonic time at which its speech ends."""

    began_s: float = 0.0
    until_s: float = 0.0
    caption: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    interrupts: int = 0

    @property
    def speaks(self) -> bool:
        return self.began_s <= time.monotonic() < self.until_s


@dataclass
class State:
    """What a test may look at and turn: `reply` answers /chat, `fail` is the error of each call that it names."""

    sessions: dict[str, FakeSession] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    reply: str = "Hello, nice to meet you. I am the face of a test, and I say what it wants to hear."
    think_s: float = 0.3
    fail: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    uploads: list[tuple[str, bytes]] = field(default_factory=list)
    viewers: int = 0
    recognition: bool = False  # whether it understands speech, and
    heard: str = "What time is it?"  # what of any recording
    webrtc: Any = False  # whether there is WebRTC; "lost": it is offered, and does not come through
    ended: list[str] = field(default_factory=list)  # WebRTC connections that the page has ended
    down: bool = False  # every live stream ends, and new ones are refused
    why: str = ""  # they end, as they tell

    def session(self, session_id: str) -> FakeSession:
        return self.sessions.setdefault(session_id, FakeSession())


def read_frames(path: Path, limit: int = 10_000) -> tuple[list[Any], Any]:
    """RGB frames and mono sound at RATE of a video."""
    frames, sound = [], []
    resampler = av.AudioResampler("flt", "mono", RATE)
    with av.open(str(path)) as container:
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                if len(frames) < limit:
                    frames.append(frame.to_ndarray(format="rgb24"))
            else:
                sound += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    return frames, np.concatenate(sound) if sound else np.zeros(0, np.float32)


class Film:
    """The frames and the sound of a moment: idle, or speaking."""

    def __init__(self, speech: Path | None = None) -> None:
        source = builtin_avatars() / "presenter" / "frames.mp4"
        self.idle, _ = read_frames(source, IDLE_FRAMES)
        self.speech, self.sound = read_frames(speech) if speech else ([], np.zeros(0, np.float32))

    def frame(self, number: int, speaking: int | None) -> Any:
        """Frame `number` of a viewer; `speaking` counts frames since the speech began."""
        turn = number % (2 * len(self.idle) - 2)
        frame = self.idle[turn if turn < len(self.idle) else 2 * len(self.idle) - 2 - turn]
        if speaking is None:
            return frame
        if self.speech:
            return self.speech[speaking % len(self.speech)]
        frame = frame.copy()
        centre = ((MOUTH[1].start + MOUTH[1].stop) // 2, (MOUTH[0].start + MOUTH[0].stop) // 2)
        cv2.ellipse(frame, centre, (24, 4 + 5 * (speaking // 2 % 4)), 0, 0, 360, (70, 20, 25), -1)
        return frame

    def samples(self, number: int, speaking: int | None) -> Any:
        if speaking is None:
            return np.zeros(FRAME_SAMPLES, np.float32)
        if len(self.sound):
            begin = (speaking % max(len(self.speech), 1)) * FRAME_SAMPLES
            part = self.sound[begin : begin + FRAME_SAMPLES]
            return np.pad(part, (0, FRAME_SAMPLES - len(part)))
        times = (np.arange(FRAME_SAMPLES) + number * FRAME_SAMPLES) / RATE
        return (0.2 * np.sin(2 * np.pi * 220 * times)).astype(np.float32)


class Sink(io.RawIOBase):
    """Collects what a muxer writes; it cannot seek, as a stream cannot."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self.parts)
        self.parts.clear()
        return data


class Viewer:
    """One viewer's endless fragmented MP4, from time 0."""

    def __init__(self, film: Film, session: FakeSession) -> None:
        self._film, self._session, self._number = film, session, 0
        self._sink = Sink()
        options = {"movflags": "empty_moov+default_base_moof", "frag_duration": "120000"}
        self._out = av.open(self._sink, "w", format="mp4", options=options)  # type: ignore[call-overload]
        height, width = film.idle[0].shape[:2]
        self._video = self._out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "tune": "zerolatency"})
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.gop_size = 25
        self._caption: dict[str, Any] | None = None  # that was told last, and is heard
        self._made: dict[str, Any] = {}  # that was told last
        self._told = 0
        self._audio = self._out.add_stream("aac", rate=RATE, layout="mono")

    def step(self) -> bytes:
        """FRAGMENT_FRAMES more frames, as bytes, and what is told with them."""
        told = b""
        for _ in range(FRAGMENT_FRAMES):
            now_s = time.monotonic()
            speaking = round((now_s - self._session.began_s) * FPS) if self._session.speaks else None
            told += self._tell(speaking)
            frame = av.VideoFrame.from_ndarray(self._film.frame(self._number, speaking), format="rgb24")
            frame.pts = self._number
            self._out.mux(self._video.encode(frame))
            sound = av.AudioFrame.from_ndarray(self._film.samples(self._number, speaking)[None], "fltp", "mono")
            sound.sample_rate, sound.pts = RATE, self._number * FRAME_SAMPLES
            self._out.mux(self._audio.encode(sound))
            self._number += 1
        if speaking is not None:
            told += self._make(speaking)
        return told + self._sink.take()

    def _make(self, speaking: int) -> bytes:
        """What is being made: twice as fast as it is shown, told with every fragment."""
        length = round((self._session.until_s - self._session.began_s) * FPS)
        frames = min(length, 8 + 2 * speaking)
        if frames == self._made.get("frames"):
            return b""
        stages = {name: {"calls": 1, "busy_ms": ms * frames / length} for name, ms in STAGES.items()}
        self._made = {"frames": frames, "shown_frames": speaking, "duration_s": frames / FPS, "ttff_ms": 493.0}
        self._made |= {"spoken_chars": 0, "stages": stages}
        return event_box("making", self._made, 1000 + self._number, self._number / FPS)

    def _tell(self, speaking: int | None) -> bytes:
        """The caption that begins, or is cut, with the next frame."""
        now_s, session, last = self._number / FPS, self._session, self._caption
        told = b""
        if last is not None and (speaking is None or session.began_s != last["began_s"]):
            if last["end_s"] > now_s + 1.5 / FPS:
                told += self._box(last | {"end_s": now_s, "cut": True})
            self._caption = None
        if speaking is not None and self._caption is None:
            self._told += 1
            start_s = now_s - speaking / FPS
            times = {"start_s": max(0.0, start_s), "end_s": start_s + session.until_s - session.began_s}
            about = {"id": self._told, "text": session.caption, "words": [], "cut": False, "began_s": session.began_s}
            self._caption = {**about, **times}
            told += self._box(self._caption)
        return told

    def _box(self, caption: dict[str, Any]) -> bytes:
        return event_box("caption", caption, caption["id"], caption["start_s"], caption["end_s"] - caption["start_s"])

    def close(self) -> None:
        self._out.close()


def make_app(state: State, film: Film) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Access)  # the real one: open unless a test gives it keys
    serve_login(app)

    def failing(name: str) -> JSONResponse | None:
        if name not in state.fail:
            return None
        status, error = state.fail[name]
        return JSONResponse({"error": error}, status)

    def say(session: FakeSession, text: str) -> float:
        """Begin to speak; how long it takes, seconds."""
        length_s = max(1.0, WORD_S * len(text.split()))
        session.began_s = max(time.monotonic(), session.until_s)
        session.until_s = session.began_s + length_s
        session.caption = text
        return length_s

    @app.get("/healthz")
    async def healthz() -> Response:
        return failing("healthz") or JSONResponse({"status": "ok"})

    @app.get("/voices")
    async def voices() -> list[str]:
        return ["heart", "emma", "fenrir", "fable", "kore"]

    @app.get("/avatars")
    async def avatars() -> list[dict[str, Any]]:
        return [{"avatar_id": "presenter", "version": "1", "fps": 25, "width": 512, "height": 512, "frames": 250}]

    @app.get("/avatars/{avatar_id}/poster.jpg")
    async def poster(avatar_id: str) -> Response:
        face = film.idle[0][60:440, 66:446, ::-1]
        return Response(cv2.imencode(".jpg", cv2.resize(face, (288, 288)))[1].tobytes(), media_type="image/jpeg")

    @app.post("/avatars")
    async def prepare(http: Request, avatar_id: str) -> Response:
        state.uploads.append((avatar_id, await http.body()))
        if failed := failing("avatars"):
            return failed

        async def lines() -> AsyncIterator[bytes]:
            for step in ("reading frames", "finding faces", "encoding faces"):
                for done in range(0, 101, 10):
                    yield json.dumps({"step": step, "done": done, "total": 100}).encode() + b"\n"
                    await asyncio.sleep(0.02)
            yield json.dumps({"report": {"avatar_id": avatar_id, "frames": 100}}).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.post("/chat")
    async def chat(body: dict[str, Any]) -> Response:
        if failed := failing("chat"):
            return failed
        session = state.session(body["session_id"])
        job: dict[str, Any] = {"job_id": uuid.uuid4().hex, "session_id": body["session_id"], "message": body["message"]}
        job |= {"status": "queued", "progress": 0.0, "reply": "", "error": None, "interrupted": False, "latency": {}}
        job |= {"video_url": None, "start_s": 0.0, "frames": 0, "saying": None}
        state.jobs[job["job_id"]] = job
        asyncio.get_running_loop().create_task(answer(job, session))
        return JSONResponse({"job_id": job["job_id"], "session_id": body["session_id"]})

    async def answer(job: dict[str, Any], session: FakeSession) -> None:
        job["status"] = "thinking"
        interrupts = session.interrupts
        await asyncio.sleep(state.think_s)
        if "answer" in state.fail:
            job |= {"status": "failed", "error": state.fail["answer"][1]}
            return
        for piece in state.reply.replace("? ", "?|").replace(". ", ".|").split("|"):
            job["reply"] = f"{job['reply']} {piece}".strip()
            job |= {"status": "speaking", "saying": job["reply"]}
            length_s = say(session, piece)
            while time.monotonic() < session.until_s and session.interrupts == interrupts:
                await asyncio.sleep(0.02)
            if session.interrupts != interrupts:
                job["interrupted"] = True
                break
            frames = round(length_s * FPS)
            job["frames"] += frames
            job["progress"] = min(0.95, len(job["reply"]) / len(state.reply))
            rows = {s: {"calls": 9, "frames": frames, "busy_ms": ms, "compute_ms": ms} for s, ms in STAGES.items()}
            job["latency"] = {
                "first_token_ms": 28.0,
                "first_frame_ms": 571.0,
                "ttff_ms": 493.0,
                "rtf": 0.62,
                "duration_s": length_s,
            }
            job["latency"]["stages"] = rows
        job |= {"status": "done", "progress": 1.0, "saying": None}
        job["video_url"] = f"/sessions/{job['session_id']}/video.mp4"
        session.messages += [
            {"role": "user", "content": job["message"]},
            {"role": "assistant", "content": job["reply"]},
        ]

    @app.get("/status/{job_id}")
    async def status(job_id: str) -> Response:
        if job_id not in state.jobs:
            error = {"code": "not_found", "message": f"There is no job {job_id!r}.", "remedy": "Send it again."}
            return JSONResponse({"error": error}, 404)
        return JSONResponse(state.jobs[job_id])

    @app.get("/chat/{session_id}")
    async def messages(session_id: str) -> list[dict[str, str]]:
        return state.session(session_id).messages

    @app.post("/speak")
    async def speak(body: dict[str, Any]) -> Response:
        if failed := failing("speak"):
            return failed
        length_s = say(state.session(body["session_id"]), body["text"])
        await asyncio.sleep(length_s)
        return JSONResponse(spoken(body["session_id"], length_s))

    @app.post("/speak/audio")
    async def speak_audio(http: Request, session_id: str) -> Response:
        state.uploads.append((session_id, await http.body()))
        if failed := failing("speak"):
            return failed
        length_s = say(state.session(session_id), "a recording of some words")
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
        return failing("transcribe") or JSONResponse({"text": state.heard})

    def spoken(session_id: str, length_s: float) -> dict[str, Any]:
        facts = {
            "session_id": session_id,
            "avatar_id": "presenter",
            "frames": round(length_s * FPS),
            "duration_s": length_s,
            "ttff_ms": 480.0,
        }
        return {**facts, "rtf": 0.6, "video_url": f"/sessions/{session_id}/video.mp4", "stages": {}}

    @app.post("/sessions/{session_id}/interrupt")
    async def interrupt(session_id: str) -> dict[str, Any]:
        session = state.session(session_id)
        was, session.until_s = session.speaks, 0.0
        session.interrupts += 1
        return {"session_id": session_id, "interrupted": was}

    @app.post("/sessions", status_code=201)
    async def create(body: dict[str, Any]) -> dict[str, Any]:
        session_id = body.get("session_id") or uuid.uuid4().hex
        state.session(session_id)
        return {"session_id": session_id, "avatar_id": body.get("avatar_id") or "presenter"}

    @app.get("/sessions/{session_id}")
    async def facts(session_id: str) -> dict[str, Any]:
        """Nothing is recorded here: tests/browser/recorded.py has sessions that can be seen once more."""
        return {"session_id": session_id, "frames": 0, "duration_s": 0.0, "size": 0, "utterances": []}

    @app.delete("/sessions/{session_id}")
    async def remove(session_id: str) -> dict[str, Any]:
        return {"session_id": session_id, "removed": state.sessions.pop(session_id, None) is not None}

    @app.get("/sessions/{session_id}/live.mp4")
    async def live(session_id: str) -> Response:
        if state.down:
            return JSONResponse({"error": {"code": "busy", "message": "The server restarts.", "remedy": "Wait."}}, 503)
        if failed := failing("live"):
            return failed

        async def parts() -> AsyncIterator[bytes]:
            viewer, began_s, steps = Viewer(film, state.session(session_id)), time.monotonic(), 0
            state.viewers += 1
            try:
                while not state.down:
                    if data := await asyncio.to_thread(viewer.step):
                        yield data
                    steps += 1
                    await asyncio.sleep(max(0.0, began_s + steps * FRAGMENT_FRAMES / FPS - time.monotonic()))
                if state.why:
                    yield event_box("ended", {"reason": state.why}, 0, steps * FRAGMENT_FRAMES / FPS)
            finally:
                state.viewers -= 1

        return StreamingResponse(parts(), media_type="video/mp4", headers={"Cache-Control": "no-store"})

    serve_whep(app, state, film)
    serve_page(app)
    return app


@contextmanager
def fake_server(film: Film, port: int = 0) -> Any:
    """Yields (address, state)."""
    state = State()
    config = uvicorn.Config(make_app(state, film), port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", state
    finally:
        state.down, server.should_exit = True, True
        thread.join(5)


if __name__ == "__main__":
    speech = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    with fake_server(Film(speech), int(sys.argv[1])) as (url, _):
        print(url, flush=True)
        threading.Event().wait()
