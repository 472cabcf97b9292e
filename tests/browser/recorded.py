"""Recorded sessions with identifiable frames and utterances, served by the ingress's own routes.

A frame shows its number as sixteen black or white blocks. Utterance k is a tone of its own pitch that begins and ends
at a known frame. A test can therefore compare what a player shows and plays with what it should.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn

from deployments.ingress.app import api
from deployments.stitch.open_sessions import OpenSessions
from models.errors import ClosedError, ExistsError
from models.live.cues import Cue
from models.media.encode import MediaSpec, UtteranceEncoder
from models.stitch.session import SessionFile
from tests.support.ingress import Handle, PlainIngress

SIDE, BLOCK = 64, 16  # px
SPEC = MediaSpec(SIDE, SIDE, 25, crf=18, preset="ultrafast")
RATE, FPS = SPEC.sample_rate_hz, SPEC.fps
LEAD_FRAMES, TONE_FRAMES, TAIL_FRAMES = 4, 5, 3  # per utterance: silence, tone, silence
FRAMES = LEAD_FRAMES + TONE_FRAMES + TAIL_FRAMES


def coded(number: int) -> Any:
    """The frame for a number below 65536. Block k is white if bit k is set; four blocks per row."""
    bits = np.array([number >> k & 1 for k in range(16)], np.uint8).reshape(4, 4) * 219 + 16
    return np.repeat(np.kron(bits, np.ones((BLOCK, BLOCK), np.uint8))[..., None], 3, axis=2)


def pitch_hz(utterance: int) -> float:
    """Pitch of utterance `number`. 40 Hz apart, so that a window of 50 ms distinguishes neighbours."""
    return 400.0 + 40.0 * (utterance % 200)


def say(session: SessionFile, seconds: float | None = None) -> None:
    """Append an utterance: FRAMES long with a short tone, or `seconds` long."""
    number = session.start_utterance("") - 1
    tone_frames = TONE_FRAMES if seconds is None else round(seconds * FPS) - LEAD_FRAMES - TAIL_FRAMES
    counts = (LEAD_FRAMES, tone_frames, TAIL_FRAMES)
    lead, tone, tail = (np.zeros(count * RATE // FPS, np.float32) for count in counts)
    tone += 0.4 * np.sin(2 * np.pi * pitch_hz(number) * np.arange(len(tone)) / RATE, dtype=np.float32)
    start_s = session.duration_s
    session.add_sentence(Cue(1, f"Sentence {number + 1}.", start_s, start_s + sum(counts) / FPS))
    frames = np.stack([coded(session.frames + k) for k in range(sum(counts))])
    encoder = UtteranceEncoder(SPEC, session.clock)
    for fragment in encoder.push(frames, np.concatenate([lead, tone, tail]), last=True):
        session.append(fragment)
    session.end_utterance(text=f"Sentence {number + 1}.")


class _Stitch(Handle):
    """What these routes call on Stitch, answered by the same code."""

    def __init__(self, root: Path) -> None:
        over = ClosedError("The session is closed.", "Open another one.")
        super().__init__(create=ExistsError("There is one.", "Open it."), live=[over], stats={})
        self.sessions = OpenSessions(root, 8)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        return self._describe(*arguments) if name == "session" else super()._call(name, arguments)

    async def _describe(self, session_id: str, transcript: bool = True) -> dict[str, Any]:
        return self.sessions.describe(session_id, transcript)


@contextmanager
def recorded_server(home: Path) -> Iterator[tuple[str, Path]]:
    """Serve the ingress's routes over the sessions in a folder. Yields (url, folder)."""
    root = home / "sessions"
    stitch = _Stitch(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARMTALK_HOME", str(home))
        served = PlainIngress(stitch, Handle(list=()), Handle(voices=()), Handle(messages=()))
        with ThreadPoolExecutor(1) as thread:  # Playwright's loop may run in the calling thread
            thread.submit(asyncio.run, served.reconfigure({})).result()
        patch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=served))
        server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", root
        finally:
            server.should_exit = True
            thread.join(5)
