"""Viewers of a live session, over fragmented MP4, a WebSocket or WebRTC. They note when each frame came."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np

from models.errors import NotConfiguredError
from models.media import mp4
from warmtalk.cli.load.scenario import Watch
from warmtalk.client.calls import authorization

FPS = 25
STARTED_S = 30.0


class Viewer(Protocol):
    """came_s: monotonic times at which the frames came, in order."""

    came_s: list[float]

    async def start(self) -> None:
        """Return when the stream has begun. Raises what the transport raises."""

    def check(self) -> None:
        """Raises what has ended the stream, or ConnectionError if the server ended it."""

    async def stop(self) -> None: ...


def viewer_of(kind: Watch, client: httpx.AsyncClient, session_id: str) -> Viewer | None:
    """The viewer of that kind; None for `none`."""
    kinds: dict[str, Any] = {"fmp4": Mp4Viewer, "websocket": WebSocketViewer, "webrtc": WebRtcViewer}
    return None if kind == "none" else kinds[kind](client, session_id)


class FrameCounter:
    """Counts the video frames of a stream of MP4 boxes that arrives in parts."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, part: bytes) -> int:
        """The frames of the fragments that this part completes."""
        data, frames, at, moof = self._rest + part, 0, 0, 0
        while at + 8 <= len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            if at + size > len(data):
                break
            if kind == b"moof":
                moof = at
            elif kind == b"mdat":
                runs, _ = mp4.read_fragment(data[moof : at + size])
                frames += len(runs[mp4.VIDEO_TRACK].samples) if mp4.VIDEO_TRACK in runs else 0
            at += size
            if kind != b"moof":
                moof = at
        self._rest = data[moof:]
        return frames


class _Watching:
    """Runs `_watch` in a task; the stream has begun when its first frame is there."""

    def __init__(self, client: httpx.AsyncClient, session_id: str) -> None:
        self.came_s: list[float] = []
        self._client, self._path, self._counter = client, f"/sessions/{session_id}", FrameCounter()
        self._begun = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task, begun = asyncio.create_task(self._watch()), asyncio.create_task(self._begun.wait())
        try:
            async with asyncio.timeout(STARTED_S):
                await asyncio.wait({self._task, begun}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
        self.check()

    def check(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()
            raise ConnectionError("The server ended the stream.")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watch(self) -> None:
        raise NotImplementedError

    def _take(self, part: bytes) -> None:
        self._add(self._counter.take(part))

    def _add(self, frames: int) -> None:
        if frames:
            self.came_s += [time.monotonic()] * frames
            self._begun.set()


class Mp4Viewer(_Watching):
    async def _watch(self) -> None:
        async with self._client.stream("GET", f"{self._path}/live.mp4") as answer:
            answer.raise_for_status()
            async for part in answer.aiter_raw():
                self._take(part)


class WebSocketViewer(_Watching):
    """Reports each fragment as played when it has come."""

    async def _watch(self) -> None:
        from websockets.asyncio.client import connect

        url = urlsplit(str(self._client.base_url))
        address = urlunsplit((url.scheme.replace("http", "ws"), url.netloc, f"{self._path}/ws", "", ""))
        async with connect(address, additional_headers=authorization(), max_size=None) as socket:
            await socket.send(json.dumps({"type": "watch", "on": True}))
            pieces = 0
            async for message in socket:
                if isinstance(message, bytes):
                    before = len(self.came_s)
                    self._take(message)
                    if len(self.came_s) > before:
                        pieces += 1
                        await socket.send(json.dumps({"type": "played", "pieces": pieces}))


class WebRtcViewer(_Watching):
    async def _watch(self) -> None:
        try:
            from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
            from aiortc.mediastreams import MediaStreamError
        except ImportError as error:
            raise NotConfiguredError("The scenario has WebRTC viewers, and aiortc is missing.",
                                     "Install it: pip install aiortc.") from error  # fmt: skip
        connection, tracks = RTCPeerConnection(RTCConfiguration([])), asyncio.Queue[Any]()
        connection.on("track", tracks.put_nowait)
        try:
            for kind in ("video", "audio"):
                connection.addTransceiver(kind, direction="recvonly")
            await connection.setLocalDescription(await connection.createOffer())
            headers = {"Content-Type": "application/sdp"}
            offer = connection.localDescription.sdp
            answer = (await self._client.post(f"{self._path}/whep", content=offer, headers=headers)).raise_for_status()
            await connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(2):
                        group.create_task(self._receive(await tracks.get()))
            except* MediaStreamError:  # the stream has ended; contextlib.suppress takes no groups before Python 3.12
                pass
        finally:
            await connection.close()

    async def _receive(self, track: Any) -> None:
        while True:
            await track.recv()
            if track.kind == "video":
                self._add(1)


def late_frames(came_s: list[float], buffer_s: float, fps: int = FPS) -> int:
    """Frames that came too late for a player that begins with the first one and `buffer_s`, and never waits twice.

    After a frame that is late, the player waits for it and goes on later, so that one pause counts its frames once.
    """
    if not came_s:
        return 0
    behind_s = np.array(came_s) - came_s[0] - np.arange(len(came_s)) / fps - buffer_s
    waited_s = np.maximum.accumulate(np.maximum(0.0, behind_s))
    return int((behind_s > np.concatenate(([0.0], waited_s[:-1])) + 1e-9).sum())
