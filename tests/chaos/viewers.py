"""Sessions that are watched and speak, and what their viewers saw and heard, and when."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import av
import httpx
import numpy as np

from benchmarks.common import complete_boxes, decode_audio
from benchmarks.viewers import frames_in
from models.types import Float32
from tests.chaos.engines import FPS, LOUDNESS

RETRY_S = 0.1  # between two attempts of a viewer whose stream ended
WINDOW_S = 0.04  # in which loudness is measured
TONE_S = 0.2  # in which a pitch is measured
LOWEST_HZ, APART_HZ = 400, 60  # of the pitches of the sessions
JOIN_S = 0.25  # a shorter silence within speech is a join of two sentences


@dataclass(slots=True)
class Connection:
    """One connection of a viewer: its data, and when which number of frames had arrived (monotonic clock)."""

    data: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def whole(self) -> bytes:
        """The complete fragments."""
        return bytes(self.data[: max((end for kind, end in complete_boxes(self.data) if kind != b"moof"), default=0)])


class Viewer:
    """Watches live.mp4 of a session and connects again whenever the stream ends, as the page does."""

    def __init__(self, audience: Audience, session_id: str) -> None:
        self.session_id, self.connections, self.refusals = session_id, [Connection()], 0
        self._audience, self._parsed = audience, 0
        self._stopped = False
        self._task = asyncio.run_coroutine_threadsafe(self._watch(), audience.loop)

    async def _watch(self) -> None:
        while not self._stopped:
            with contextlib.suppress(httpx.HTTPError):
                async with self._audience.client.stream("GET", f"/sessions/{self.session_id}/live.mp4") as answer:
                    if answer.status_code == 200:
                        async for part in answer.aiter_raw():
                            self._take(part)
                    else:
                        self.refusals += 1
            if self.connections[-1].data:
                self.connections.append(Connection())
                self._parsed = 0
            await asyncio.sleep(RETRY_S)

    def _take(self, part: bytes) -> None:
        connection = self.connections[-1]
        connection.data += part
        fresh = bytes(connection.data[self._parsed :])
        end = max((end for _, end in complete_boxes(fresh)), default=0)
        self._parsed += end
        if frames := frames_in(fresh[:end]):
            connection.arrivals.append((time.monotonic(), frames))

    def stop(self) -> None:
        self._stopped = True
        self._task.cancel()

    # --- what it saw and heard

    def arrivals_s(self) -> list[float]:
        return [at_s for connection in self.connections for at_s, _ in connection.arrivals]

    def longest_gap_s(self, from_s: float = 0.0, to_s: float = float("inf")) -> float:
        """The longest time without a new picture, within a span of the monotonic clock."""
        times = [at_s for at_s in self.arrivals_s() if from_s <= at_s <= to_s]
        ends = [max(from_s, times[0]) if times else from_s, *times, *([to_s] if to_s != float("inf") else [])]
        return float(np.diff(ends).max()) if len(ends) > 1 else 0.0

    def sound(self) -> list[tuple[Float32, int]]:
        return [decode_audio(c.whole()) for c in self.connections if c.arrivals]

    def heard(self, pitch_hz: float) -> Heard:
        return heard(self.sound(), pitch_hz)

    def assert_playable(self) -> None:
        """Every connection decodes without an error, with frames 40 ms apart."""
        for connection in self.connections:
            if connection.arrivals:
                assert_playable(connection.whole())


@dataclass(frozen=True, slots=True)
class Heard:
    """Seconds of speech at the session's pitch and at other pitches, and the longest silence between two sounds."""

    own_s: float
    foreign_s: float
    longest_pause_s: float


def heard(tracks: Iterable[tuple[Float32, int]], pitch_hz: float) -> Heard:
    own_s = foreign_s = pause_s = 0.0
    for samples, rate in tracks:
        loud = loudness(samples, rate) > LOUDNESS / 4
        own_s += float(loud.sum()) * WINDOW_S
        foreign_s += foreign_seconds(samples, rate, pitch_hz)
        quiet = np.diff(np.flatnonzero(loud)) - 1
        pause_s = max(pause_s, float(quiet.max(initial=0)) * WINDOW_S)
    return Heard(own_s, foreign_s, pause_s)


def loudness(samples: Float32, rate: int) -> Any:
    """The rms of each 40 ms."""
    step = round(WINDOW_S * rate)
    cut = samples[: len(samples) // step * step].reshape(-1, step)
    return np.sqrt((cut**2).mean(axis=1)) if len(cut) else np.zeros(0)


def foreign_seconds(samples: Float32, rate: int, pitch_hz: float) -> float:
    """Seconds of steady sound at another pitch. A window that is loud in part is left out."""
    step = round(TONE_S * rate)
    found = 0.0
    for start in range(0, len(samples) - step + 1, step):
        window = samples[start : start + step]
        if (loudness(window, rate) > LOUDNESS / 4).all():
            spectrum = np.abs(np.fft.rfft(window * np.hanning(step), 4 * step))
            found += TONE_S * (abs(float(np.argmax(spectrum)) * rate / (4 * step) - pitch_hz) > APART_HZ / 3)
    return found


def assert_playable(data: bytes) -> int:
    """Decode an MP4 strictly; return the number of its frames, which are 40 ms apart."""
    with av.open(io.BytesIO(data)) as file:
        file.streams.video[0].codec_context.options = {"err_detect": "explode"}
        times = [float(frame.time) for frame in file.decode(video=0)]
    np.testing.assert_allclose(np.diff(times), 1 / FPS, atol=1e-3)
    return len(times)


@dataclass(frozen=True, slots=True)
class Spoken:
    """The answer of one /speak: its status (0: the connection broke), its JSON, and when it was sent and answered.

    retry_after: the header of that name.
    """

    session_id: str
    text: str
    status: int
    body: dict[str, Any]
    sent_s: float
    answered_s: float
    retry_after: str = ""

    @property
    def frames(self) -> int:
        return int(self.body.get("frames", 0)) if self.status == 200 else 0


class Audience:
    """Sessions with a pitch each, their viewers, and their utterances."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(10, read=None), limits=limits)
        self.api = httpx.Client(base_url=url, timeout=180, limits=limits)
        self._pool = concurrent.futures.ThreadPoolExecutor(64)
        self.viewers: dict[str, Viewer] = {}
        self.pitches: dict[str, int] = {}

    def open(self, *session_ids: str, watched: bool = True) -> None:
        """Open sessions; return when their viewers see a picture."""
        for session_id in session_ids:
            self.pitches[session_id] = next(
                pitch for pitch in itertools.count(LOWEST_HZ, APART_HZ) if pitch not in self.pitches.values()
            )
            self.api.post("/sessions", json={"session_id": session_id}).raise_for_status()
        self.watch_again(*session_ids if watched else ())

    def watch_again(self, *session_ids: str) -> None:
        """Watch with a new connection, which has seen and heard nothing before; return when there is a picture."""
        for session_id in session_ids:
            if session_id in self.viewers:
                self.viewers[session_id].stop()
            self.viewers[session_id] = Viewer(self, session_id)
        end_s = time.monotonic() + 30
        while not all(viewer.arrivals_s() for viewer in self.viewers.values()):
            assert time.monotonic() < end_s, "some viewers see no picture after 30 s"
            time.sleep(0.02)

    def speak(self, session_id: str, text: str, **options: Any) -> concurrent.futures.Future[Spoken]:
        """Send an utterance; the result is its answer."""
        body = {"text": text, "session_id": session_id, "voice": str(self.pitches[session_id]), **options}
        return self._pool.submit(self._post, session_id, text, body)

    def _post(self, session_id: str, text: str, body: dict[str, Any]) -> Spoken:
        sent_s, retry_after = time.monotonic(), ""
        try:
            answer = self.api.post("/speak", json=body)
            status, retry_after = answer.status_code, answer.headers.get("retry-after", "")
            content = answer.json() if "json" in answer.headers.get("content-type", "") else {"error": answer.text}
        except httpx.TransportError as error:
            status, content = 0, {"error": repr(error)}
        return Spoken(session_id, text, status, content, sent_s, time.monotonic(), retry_after)

    def delete(self, session_id: str) -> None:
        """Delete a session; its pitch is free again."""
        self.viewers.pop(session_id).stop()
        self.api.delete(f"/sessions/{session_id}").raise_for_status()
        del self.pitches[session_id]

    def file_frames(self, session_id: str) -> int:
        """The frames of a session's file, which must be playable, agree with its description, and have its pitch only.

        Waits until the session is readable."""
        data = self._read(f"/sessions/{session_id}/video.mp4").content
        facts = self._read(f"/sessions/{session_id}").json()
        if not facts["frames"]:
            return 0
        frames = assert_playable(data)
        assert frames == facts["frames"], (session_id, frames, facts["frames"])
        assert heard([decode_audio(data)], self.pitches[session_id]).foreign_s == 0, f"{session_id} is mixed"
        return frames

    def _read(self, path: str) -> httpx.Response:
        end_s = time.monotonic() + 30
        while True:
            answer = None
            with contextlib.suppress(httpx.TransportError):
                answer = self.api.get(path)
                if answer.status_code == 200:
                    return answer
            assert time.monotonic() < end_s, f"{path}: {answer and (answer.status_code, answer.text)} after 30 s"
            time.sleep(0.2)

    def close(self) -> None:
        for viewer in self.viewers.values():
            viewer.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        asyncio.run_coroutine_threadsafe(self.client.aclose(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.api.close()
