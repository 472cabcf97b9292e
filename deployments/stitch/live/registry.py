"""The sessions of a Stitch replica that somebody watches: their broadcasts, their avatars' idle motion on disk.

Knows sessions and avatars; knows no stage and no HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.common.clocks import CLOCK_OFFSET_S, own_host, stable_time_s
from deployments.common.messages import Ending, LiveEvent, LiveStart
from deployments.common.stage import Worker
from deployments.stitch.chunks import Chunk
from deployments.stitch.live.broadcast import Broadcast
from deployments.stitch.live.pacing import Pace
from deployments.stitch.live.playout import Performance
from deployments.stitch.utterance import LoadedAvatar, Utterance
from models.live.pauses import Pause, RestFragment
from models.live.timeline import IdleGrid, LiveClock, encode_idle
from models.media.encode import MediaSpec
from models.runtime.atomic_file import replace_file
from models.speech.activity import pause_frames
from models.types import Fragment

IDLE_FOLDER = ".idle"  # beside the sessions: every replica and ingress finds it there
IDLE_FILES = 32  # that stay on disk
IDLE_CODING = 2  # rises when the same frames and spec give other pictures: speech must not look unlike idle motion
_NUMBERS = itertools.count(1)  # of utterances on air in this process


@dataclass(frozen=True, slots=True)
class Show:
    """What a session shows: its avatar, how it is coded, and where its head is."""

    avatar: LoadedAvatar
    spec: MediaSpec
    position: int


class OnAir:
    """Broadcasts by session. Not thread-safe: one event loop."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._broadcasts: dict[str, Broadcast] = {}
        self._performing: set[str] = set()
        self._coding: dict[Path, asyncio.Task[None]] = {}
        self._closings = 0  # sessions whose broadcasts were ended, whether or not they had any

    def of(self, session_id: str) -> Broadcast | None:
        """The session's broadcast, None where nobody watches it."""
        return self._broadcasts.get(session_id)

    def watched(self) -> list[str]:
        return [session_id for session_id, broadcast in self._broadcasts.items() if broadcast.watched]

    async def watch(
        self, session_id: str, find: Callable[[], Show], worker: Worker, root: Path, position: int | None
    ) -> AsyncGenerator[LiveEvent, None]:
        """What the session shows from now on. position: where its head is, if the caller knows better."""
        while (broadcast := self._broadcasts.get(session_id)) is None:
            closings = self._closings
            show = (await worker.run(find)).value
            path = await self._idle_file(show, root / IDLE_FOLDER)
            if closings == self._closings and session_id not in self._broadcasts:  # else it may have ended meanwhile
                self._broadcasts[session_id] = _broadcast(session_id, show, path, position)
        try:
            async with aclosing(broadcast.listen()) as events:
                async for event in events:
                    yield event
        finally:
            self._forget_unwatched(session_id)

    def perform(
        self, utterance: Utterance, broadcast: Broadcast, worker: Worker, ahead_s: float, pause_s: float
    ) -> OnStage:
        """pause_s: how much of what was shown before it is kept in the session's file, at either end of that time."""
        self._performing.add(broadcast.start.session_id)
        self.pace.speaking = len(self._performing)
        utterance.on_air = True
        keep = round(pause_s * utterance.spec.fps)
        # an utterance before this one may have failed without a frame: what was shown before it is still to be kept
        broadcast.rested = {at: rested for at, rested in broadcast.rested.items() if at >= utterance.position}
        utterance.pause = Pause(Path(broadcast.start.idle_path), keep, broadcast.rested)
        return OnStage(utterance, broadcast, worker, self.pace, ahead_s)

    def performed(self, session_id: str) -> None:
        self._performing.discard(session_id)
        self.pace.speaking = len(self._performing)
        self._forget_unwatched(session_id)

    def close(self, session_id: str, why: Ending) -> None:
        """End the session's broadcast, also one that is being prepared: whoever watches must ask anew."""
        self._closings += 1
        if (broadcast := self._broadcasts.pop(session_id, None)) is not None:
            broadcast.close(why)

    def leaving(self, avatar_id: str) -> list[str]:
        """Sessions on air with an avatar that was removed; whoever is about to watch one must ask anew."""
        self._closings += 1
        return [session_id for session_id, cast in self._broadcasts.items() if cast.start.avatar_id == avatar_id]

    def shown_avatars(self) -> set[str]:
        return {cast.start.avatar_id for cast in self._broadcasts.values()}

    async def forget_idle(self, avatar_id: str, root: Path) -> None:
        """Delete the idle motion of an avatar that was removed, also that which is being coded."""
        coding = [task for path, task in self._coding.items() if _idle_of(path) == avatar_id]
        if coding:
            await asyncio.wait(coding)
        await asyncio.to_thread(_delete_idle, avatar_id, root / IDLE_FOLDER)

    def _forget_unwatched(self, session_id: str) -> None:
        broadcast = self._broadcasts.get(session_id)
        if broadcast is not None and not broadcast.watched and session_id not in self._performing:
            del self._broadcasts[session_id]

    async def _idle_file(self, show: Show, folder: Path) -> Path:
        """The avatar's idle motion as coded for the session, made at its first use. It takes some seconds."""
        prepared = show.avatar.prepared
        coding = hashlib.sha256(f"{show.spec} {IDLE_CODING}".encode()).hexdigest()[:8]
        path = folder / f"{prepared.avatar_id}-{prepared.version}-{coding}.mp4"
        if not path.is_file():
            if path not in self._coding:
                self._coding[path] = asyncio.create_task(asyncio.to_thread(_code_idle, show, path))
                self._coding[path].add_done_callback(lambda task: self._coding.pop(path))
            await asyncio.shield(self._coding[path])
        return path


class OnStage:
    """One utterance's performance, with its file written behind it in order, on the compute thread."""

    def __init__(self, utterance: Utterance, broadcast: Broadcast, worker: Worker, pace: Pace, ahead_s: float) -> None:
        self.utterance, self._worker = utterance, worker
        self._writes: list[asyncio.Task[object]] = []
        self.performance = Performance(broadcast, pace, self._rest, self._write, next(_NUMBERS), ahead_s)
        self.task = asyncio.create_task(self.performance.run())
        self.task.add_done_callback(lambda task: self.performance.cut())  # of one that broke nobody may wait for more

    def follows(self, chunk: Chunk) -> bool:
        """Whether speech goes on without a rest behind a chunk that ends its segment."""
        return self.performance.follows(chunk.crops.first_frame + len(chunk.crops))

    async def show(self, chunk: Chunk, fragments: list[Fragment]) -> None:
        """Take what a chunk has completed; wait where it lies too far ahead. Raises what has broken the show."""
        if chunk.speech is not None:
            quiet = await asyncio.to_thread(pause_frames, chunk.speech, self.performance.supply.fps)
            self.performance.hear([chunk.crops.first_frame + frame for frame in quiet])
        await self.performance.push(fragments, tuple(self.utterance.cues))
        if self.task.done():
            self.task.result()

    async def end(self, fragments: list[Fragment]) -> None:
        """Take the last fragments."""
        await self.performance.push(fragments, tuple(self.utterance.cues))
        self.performance.end()

    async def finish(self) -> None:
        """Wait until the last frame has been shown. Raises what went wrong on the way."""
        await asyncio.shield(self.task)

    async def leave(self) -> None:
        """Show nothing more; wait until the mouth rests and what was shown is written. Raises what went wrong."""
        self.performance.cut()
        await self.task
        await asyncio.gather(*self._writes)

    def facts(self) -> dict[str, Any]:
        performance = self.performance
        held_s = performance.held_frames / performance.supply.fps
        return {"shown_frames": performance.released_frames, "holds": performance.holds, "held_s": round(held_s, 2)}

    async def _rest(self, positions: Sequence[int]) -> tuple[bytes, ...]:
        video = await asyncio.to_thread(self.utterance.rest, self.performance.released_frames, positions)
        if positions[-1] - positions[0] == len(positions) - 1:  # else the head swayed, and what goes on did not
            self.performance.broadcast.rested[positions[0]] = RestFragment(video, self.utterance.resting)
        return video

    def _write(self, fragment: Fragment, position: int) -> None:
        self._writes.append(asyncio.create_task(self._worker.run(self.utterance.write, fragment, position)))


def _broadcast(session_id: str, show: Show, path: Path, position: int | None) -> Broadcast:
    prepared, spec = show.avatar.prepared, show.spec
    grid = IdleGrid.of(len(prepared), spec.fps)
    clock = LiveClock.starting(show.position if position is None else position, stable_time_s(), spec.fps)
    version = prepared.version
    start = LiveStart(session_id, prepared.avatar_id, spec, str(path), own_host(), CLOCK_OFFSET_S, version)
    return Broadcast(start, grid, clock)


def _idle_of(path: Path) -> str:
    """Whose idle motion a file is: an id may have `-` in it, what follows has none."""
    return path.stem.rsplit("-", 2)[0]


def _delete_idle(avatar_id: str, folder: Path) -> None:
    for path in folder.glob("*.mp4"):
        if _idle_of(path) == avatar_id:
            path.unlink(missing_ok=True)


def _code_idle(show: Show, path: Path) -> None:
    """Encode the avatar's loop into `path`, and remove the files that were made longest ago."""
    frames = show.avatar.prepared.frames
    assert frames is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, encode_idle(frames, show.spec), sync=False)
    files = sorted(path.parent.glob("*.mp4"), key=lambda file: file.stat().st_mtime)
    for old in files[:-IDLE_FILES]:
        old.unlink(missing_ok=True)
