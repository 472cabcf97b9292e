"""A fake server with the real page, the real routes' formats and synthetic media.

The presenter idles, and speaks on request.

One thread, one encoder per viewer, no models and no Ray: the page can be tested on any machine.
`python -m tests.browser.fake_server 8010 [speech.mp4]` serves it; speech.mp4 replaces the painted mouth.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from deployments.ingress.security.auth import Access, serve_login
from deployments.ingress.static_page import serve_page
from models.media.emsg import event_box
from tests.browser.fake_chat import serve_chat, serve_speech
from tests.browser.fake_media import FPS, FRAGMENT_FRAMES, Film, Viewer
from tests.browser.fake_state import State
from tests.browser.fake_whep import serve_whep


def serve_choices(app: FastAPI, state: State, film: Film) -> None:
    """Add voices, avatars and their preparation."""

    @app.get("/voices")
    async def voices() -> list[dict[str, Any]]:
        names = ("heart", "emma", "fenrir", "fable", "kore")
        return [{"name": name, "ready": name != "kore", "fetch_mb": 7.9 * (name == "kore")} for name in names]

    @app.get("/avatars")
    async def avatars() -> list[dict[str, Any]]:
        facts = {"version": "1", "fps": 25, "width": 512, "height": 512, "frames": 250}
        own = [{"avatar_id": name, **facts, "removable": True} for name in state.avatars]
        return [*own, {"avatar_id": "presenter", **facts, "removable": False}]

    @app.delete("/avatars/{avatar_id}")
    async def remove(avatar_id: str) -> Response:
        if failed := state.failing("remove"):
            return failed
        state.avatars.remove(avatar_id)
        return JSONResponse({"avatar_id": avatar_id, "removed": True, "ended": []})

    @app.get("/avatars/{avatar_id}/poster.jpg")
    async def poster(avatar_id: str) -> Response:
        face = film.idle[0][film.side // 8 : -film.side // 8, film.side // 8 : -film.side // 8, ::-1]
        return Response(cv2.imencode(".jpg", cv2.resize(face, (288, 288)))[1].tobytes(), media_type="image/jpeg")

    @app.post("/avatars")
    async def prepare(http: Request, avatar_id: str) -> Response:
        state.uploads.append((avatar_id, await http.body()))
        if failed := state.failing("avatars"):
            return failed

        async def lines() -> AsyncIterator[bytes]:
            for step in ("reading frames", "finding faces", "encoding faces"):
                for done in range(0, 101, 10):
                    yield json.dumps({"step": step, "done": done, "total": 100}).encode() + b"\n"
                    await asyncio.sleep(0.02)
            yield json.dumps({"report": {"avatar_id": avatar_id, "frames": 100}}).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def serve_sessions(app: FastAPI, state: State, film: Film) -> None:
    """Add sessions and their live streams."""

    @app.post("/sessions", status_code=201)
    async def create(body: dict[str, Any]) -> dict[str, Any]:
        session_id = body.get("session_id") or uuid.uuid4().hex
        state.session(session_id)
        return {"session_id": session_id, "avatar_id": body.get("avatar_id") or "presenter"}

    @app.get("/sessions/{session_id}")
    async def facts(session_id: str) -> dict[str, Any]:
        """There are no recordings here; see tests/browser/recorded.py."""
        return {"session_id": session_id, "frames": 0, "duration_s": 0.0, "size": 0, "utterances": []}

    @app.delete("/sessions/{session_id}")
    async def remove(session_id: str) -> dict[str, Any]:
        return {"session_id": session_id, "removed": state.sessions.pop(session_id, None) is not None}

    @app.get("/sessions/{session_id}/live.mp4")
    async def live(session_id: str) -> Response:
        if state.down:
            return JSONResponse({"error": {"code": "busy", "message": "The server restarts.", "remedy": "Wait."}}, 503)
        if failed := state.failing("live"):
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


def make_app(state: State, film: Film) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Access, settings=lambda: state.settings)  # the real middleware, open unless a test sets keys
    serve_login(app, lambda: state.settings)

    @app.get("/healthz")
    async def healthz() -> Response:
        return state.failing("healthz") or JSONResponse({"status": "ok"})

    serve_choices(app, state, film)
    serve_chat(app, state)
    serve_speech(app, state)
    serve_sessions(app, state, film)
    serve_whep(app, state, film)
    serve_page(app)
    return app


@contextmanager
def fake_server(film: Film, port: int = 0) -> Any:
    """Yields (url, state)."""
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
