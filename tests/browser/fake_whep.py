"""WebRTC for the fake server: the real connections and tracks, over fragments encoded per viewer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from configs.schema import IngressConfig
from deployments.ingress.webrtc.whep import Whep
from models.live.timeline import LIVE_FRAMES, LiveFragment, ViewerTimeline, split_fragment
from models.media.encode import MediaSpec, UtteranceEncoder

FPS = 25


class PieceViewer:
    """The source of a WebRTC viewer: a session of the fake server as fragments."""

    def __init__(self, film: Any, session: Any, state: Any) -> None:
        self._spec = MediaSpec(
            film.side,
            film.side,
            FPS,
            preset="ultrafast",
            fragment_frames=LIVE_FRAMES,
            first_fragment_frames=LIVE_FRAMES,
        )
        self.timeline, self.ending = ViewerTimeline(self._spec), None
        self._film, self._session, self._state = film, session, state
        self._encoder, self._number = UtteranceEncoder(self._spec), 0
        self._news: list[tuple[str, dict[str, Any]]] = []
        self._began_s, self._open = 0.0, True
        state.viewers += 1

    def skip_to_edge(self) -> None:
        """There are no earlier fragments."""

    def take_messages(self) -> list[tuple[str, dict[str, Any]]]:
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        self._state.viewers -= self._open
        self._open = False

    async def fragments(self) -> AsyncGenerator[tuple[LiveFragment, bool], None]:
        began_s, given = time.monotonic(), 0
        while self._open and not self._state.down:
            for piece in await asyncio.to_thread(self._step):
                await asyncio.sleep(max(0.0, began_s + given / FPS - time.monotonic()))
                given += piece.frames
                yield piece, False

    def _step(self) -> list[LiveFragment]:
        pieces = []
        for _ in range(LIVE_FRAMES):
            session = self._session
            speaking = round((time.monotonic() - session.began_s) * FPS) if session.speaks else None
            if speaking is not None and self._began_s != session.began_s:
                self._began_s = session.began_s
                times = {
                    "start_s": self._number / FPS,
                    "end_s": self._number / FPS + session.until_s - time.monotonic(),
                }
                self._news.append(("caption", {"id": self._number, "text": session.caption, "words": [], **times}))
            frame, sound = self._film.frame(self._number, speaking), self._film.samples(self._number, speaking)
            for fragment in self._encoder.push(frame[None], sound):
                pieces += split_fragment(fragment, fragment.video_start // self._spec.frame_ticks, 0, False)
            self._number += 1
        return pieces


def serve_whep(app: FastAPI, state: Any, film: Any) -> None:
    """Add the WHEP routes. `state.webrtc` turns WebRTC on."""

    async def view(session_id: str) -> PieceViewer:
        return PieceViewer(film, state.session(session_id), state)

    async def nobody(peer_id: str) -> bool:
        return False

    def config() -> IngressConfig:
        return IngressConfig(max_webrtc_viewers=10 if state.webrtc and not state.down else 0)

    whep = Whep(SimpleNamespace(view=view), config, nobody)  # type: ignore[arg-type]

    @app.options("/sessions/{session_id}/whep")
    async def options(session_id: str) -> Response:
        return whep.options()

    @app.post("/sessions/{session_id}/whep")
    async def play(http: Request, session_id: str) -> Response:
        answer = await whep.play(http, session_id)
        if state.webrtc == "lost":  # no media arrives, as if UDP were blocked
            sdp = re.sub(r"a=ice-pwd:\S+", f"a=ice-pwd:{'x' * 22}", bytes(answer.body).decode())
            return Response(sdp, 201, {"Location": answer.headers["location"]}, "application/sdp")
        return answer

    @app.delete("/sessions/{session_id}/whep/{peer_id}")
    async def end(session_id: str, peer_id: str) -> dict[str, str]:
        state.ended.append(peer_id)
        await whep.end(peer_id)
        return {"ended": peer_id}
