"""The sessions that somebody watches on this replica: their broadcasts, and idle motion on disk for their avatars."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from deployments.common.clocks import CLOCK_OFFSET_S, own_host, stable_time_s
from deployments.common.messages import Ending, LiveEvent, LiveResume, LiveStart
from deployments.common.worker import Worker
from deployments.stitch.avatar_cache import LoadedAvatar
from deployments.stitch.interrupts import Interrupt
from deployments.stitch.live.broadcast import Broadcast
from deployments.stitch.live.output import LiveOutput
from deployments.stitch.live.pacing import PaceEstimate
from deployments.stitch.rendering import Renderer
from models.live.pauses import Pause
from models.live.timeline import IdleGrid, LiveClock, encode_idle
from models.media.encode import MediaSpec
from models.runtime.atomic_file import replace_file

IDLE_FOLDER = ".idle"  # in the sessions' folder, where all replicas and ingresses find it
MAX_WAY_S = 5.0  # limits the effect of wall clocks that differ between hosts
MAX_IDLE_FILES = 32  # that stay on disk
IDLE_VERSION = 3  # increase it when the same frames and spec encode differently: idle motion must look like speech


@dataclass(frozen=True, slots=True)
class Picture:
    """What a session shows: its avatar, its encoding, and its position on the timeline."""

    avatar: LoadedAvatar
    spec: MediaSpec
    position: int


class LiveRegistry:
    """Broadcasts by session. Not thread-safe: one event loop."""

    def __init__(self) -> None:
        self.pace = PaceEstimate()
        self._broadcasts: dict[str, Broadcast] = {}
        self._speaking: set[str] = set()  # sessions with a live output
        self._encoding: dict[Path, asyncio.Task[None]] = {}  # idle files that are being made
        self._joined = asyncio.Event()  # somebody has begun to watch a session
        self._closings = 0  # calls of `close` and `sessions_showing`; a broadcast prepared meanwhile may be stale

    def broadcast_of(self, session_id: str) -> Broadcast | None:
        """The session's broadcast, None if nobody watches it."""
        return self._broadcasts.get(session_id)

    def watched_fps(self, session_id: str) -> int | None:
        """Frames per second of a session that somebody watches; None: nobody does."""
        broadcast = self._broadcasts.get(session_id)
        return broadcast.start.spec.fps if broadcast is not None and broadcast.watched else None

    def watched(self) -> list[str]:
        """Ids of the sessions that somebody watches."""
        return [session_id for session_id, broadcast in self._broadcasts.items() if broadcast.watched]

    async def watch(
        self, session_id: str, find: Callable[[], Picture], worker: Worker, root: Path, resume: LiveResume | None
    ) -> AsyncGenerator[LiveEvent, None]:
        """What the session shows from now on.

        find: runs on `worker`. root: the sessions' folder. resume: where a stream goes on that was lost or moved.
        """
        while (broadcast := self._broadcasts.get(session_id)) is None:
            closings = self._closings
            picture = (await worker.run(find)).value
            path = await self._idle_file(picture, root / IDLE_FOLDER)
            if closings == self._closings and session_id not in self._broadcasts:  # else look again
                self._broadcasts[session_id] = _new_broadcast(session_id, picture, path, resume)
        try:
            async with aclosing(broadcast.listen()) as events:
                async for event in events:
                    self._joined.set()
                    yield event
        finally:
            self._drop_unused(session_id)

    def open_output(
        self, renderer: Renderer, broadcast: Broadcast, interrupt: Interrupt, max_ahead_s: float, pause_s: float
    ) -> LiveOutput:
        """The live output of a new utterance.

        pause_s: how much of a pause the session's file keeps, at each of its ends.
        """
        session_id, writer = broadcast.start.session_id, renderer.writer
        self._speaking.add(session_id)
        self.pace.speakers = len(self._speaking)
        # an earlier utterance may have ended without a frame in the file, so the pause may start before it
        broadcast.rested = {at: rest for at, rest in broadcast.rested.items() if at >= writer.position}
        writer.pause = Pause(Path(broadcast.start.idle_path), round(pause_s * writer.spec.fps), broadcast.rested)
        return LiveOutput(renderer, broadcast, self.pace, interrupt, max_ahead_s, lambda: self._end_output(session_id))

    def _end_output(self, session_id: str) -> None:
        self._speaking.discard(session_id)
        self.pace.speakers = len(self._speaking)
        self._drop_unused(session_id)

    async def wait_for_viewers(self, session_id: str, timeout_s: float) -> None:
        """Wait until somebody watches the session, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while session_id not in self.watched():
                    self._joined.clear()
                    await self._joined.wait()

    def close(self, session_id: str, reason: Ending | None) -> None:
        """End the session's broadcast, and one that is being prepared. A viewer that returns gets a new one.

        reason: None: the session has moved to another replica, where its viewers' hubs subscribe again.
        """
        self._closings += 1
        if (broadcast := self._broadcasts.pop(session_id, None)) is not None:
            broadcast.close(reason)

    def sessions_showing(self, avatar_id: str) -> list[str]:
        """Watched sessions that show an avatar, which was removed; a broadcast that is being prepared starts over."""
        self._closings += 1
        return [session_id for session_id, cast in self._broadcasts.items() if cast.start.avatar_id == avatar_id]

    def shown_avatars(self) -> set[str]:
        """Ids of the avatars of all broadcasts."""
        return {broadcast.start.avatar_id for broadcast in self._broadcasts.values()}

    async def forget_idle(self, avatar_id: str, root: Path) -> None:
        """Delete the idle motion of a removed avatar, also if it is being encoded now."""
        encoding = [task for path, task in self._encoding.items() if _avatar_of(path) == avatar_id]
        if encoding:
            await asyncio.wait(encoding)
        await asyncio.to_thread(_delete_idle, avatar_id, root / IDLE_FOLDER)

    def _drop_unused(self, session_id: str) -> None:
        broadcast = self._broadcasts.get(session_id)
        if broadcast is not None and not broadcast.watched and session_id not in self._speaking:
            del self._broadcasts[session_id]

    async def _idle_file(self, picture: Picture, folder: Path) -> Path:
        """The avatar's idle motion in the session's encoding. The first use encodes it, which takes some seconds."""
        prepared = picture.avatar.prepared
        encoding = hashlib.sha256(f"{picture.spec} {IDLE_VERSION}".encode()).hexdigest()[:8]
        path = folder / f"{prepared.avatar_id}-{prepared.version}-{encoding}.mp4"
        if not path.is_file():
            if path not in self._encoding:
                self._encoding[path] = asyncio.create_task(asyncio.to_thread(_encode_idle, picture, path))
                self._encoding[path].add_done_callback(lambda task: self._encoding.pop(path))
            await asyncio.shield(self._encoding[path])
        return path


def _new_broadcast(session_id: str, picture: Picture, path: Path, resume: LiveResume | None) -> Broadcast:
    prepared, spec = picture.avatar.prepared, picture.spec
    grid = IdleGrid.of(len(prepared), spec.fps)
    if resume is None:
        clock = LiveClock.starting(picture.position, stable_time_s(), spec.fps)
    else:
        clock = LiveClock.starting(resume.position, stable_time_s() + _due_in_s(resume), spec.fps)
    version = prepared.version
    start = LiveStart(session_id, prepared.avatar_id, spec, str(path), own_host(), CLOCK_OFFSET_S, version)
    return Broadcast(start, grid, clock)


def _due_in_s(resume: LiveResume) -> float:
    """In how many seconds from now its position is due. Between hosts the wall clocks measure the way here."""
    if resume.host == own_host():
        return resume.due_in_s - (time.monotonic() - resume.monotonic_s)
    return resume.due_in_s - min(max(0.0, time.time() - resume.wall_s), MAX_WAY_S)


def _avatar_of(path: Path) -> str:
    """The avatar id in an idle file's name. It may contain `-`, the version and the encoding do not."""
    return path.stem.rsplit("-", 2)[0]


def _delete_idle(avatar_id: str, folder: Path) -> None:
    for path in folder.glob("*.mp4"):
        if _avatar_of(path) == avatar_id:
            path.unlink(missing_ok=True)


def _encode_idle(picture: Picture, path: Path) -> None:
    """Encode the avatar's idle motion into `path`, and delete the oldest files beyond MAX_IDLE_FILES."""
    frames = picture.avatar.prepared.frames
    assert frames is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, encode_idle(frames, picture.spec), sync=False)
    others = sorted(set(path.parent.glob("*.mp4")) - {path}, key=lambda file: file.stat().st_mtime)
    for old in others[: -(MAX_IDLE_FILES - 1)]:  # whatever the clock says, not the new one
        old.unlink(missing_ok=True)
