"""Runs a scenario against a server: sessions, what each utterance gave, and the state of the stages every second."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from warmtalk.cli.load.scenario import Scenario, Watch
from warmtalk.cli.load.viewers import FrameCounter, late_frames, viewer_of
from warmtalk.client.calls import authorization

TIMEOUT_S = 300.0
RETRY_S = 2.0  # after an answer without Retry-After


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance. at_s: from the start of the load. status: 0 without an answer. ttff_ms: None if none was shown."""

    session_id: str
    at_s: float
    status: int
    ttff_ms: float | None = None
    frames: int = 0
    holds: int = 0
    held_s: float = 0.0
    interrupted: bool = False
    enhanced: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Stay:
    """One session, from begin_s to end_s. late: of `frames` that its viewer got. error: why it could not be watched."""

    session_id: str
    watch: Watch
    begin_s: float
    end_s: float
    frames: int
    late: int
    error: str = ""


@dataclass(slots=True)
class Run:
    """All that was seen. states: (seconds, answer of /admin/state)."""

    scenario: Scenario
    turns: list[Turn] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    states: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    active: list[tuple[float, int]] = field(default_factory=list)  # sessions over time
    took_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario.model_dump(),
            "took_s": round(self.took_s, 2),
            "turns": [asdict(turn) for turn in self.turns],
            "stays": [asdict(stay) for stay in self.stays],
            "active": self.active,
        }


class Load:
    """Runs one scenario once. step: called with a line of what happens, about once a second. transport: for tests."""

    def __init__(
        self,
        url: str,
        scenario: Scenario,
        step: Callable[[str], None] = lambda text: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.run, self._step, self._chance = Run(scenario), step, random.Random(scenario.seed)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        options: dict[str, Any] = {"timeout": TIMEOUT_S, "limits": limits, "transport": transport}
        self._client = httpx.AsyncClient(base_url=url, headers=authorization(), **options)
        self._prefix, self._begin_s, self._active = f"load-{uuid.uuid4().hex[:6]}", 0.0, 0

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._begin_s

    async def play(self) -> Run:
        """Run the scenario; sessions that it opened are deleted. Raises httpx.HTTPError if the server is not there."""
        scenario = self.run.scenario
        async with self._client:
            (await self._client.get("/healthz")).raise_for_status()
            self._begin_s = time.monotonic()
            watching = asyncio.create_task(self._watch_stages())
            try:
                async with asyncio.TaskGroup() as sessions:
                    number = 0
                    while self._now_s < scenario.duration_s:
                        if self._active < scenario.sessions:
                            sessions.create_task(self._session(number, random.Random(self._chance.random())))
                            number += 1
                        await asyncio.sleep(self._chance.expovariate(scenario.arrivals_per_s))
            finally:
                watching.cancel()
            self.run.took_s = self._now_s
        return self.run

    async def _session(self, number: int, chance: random.Random) -> None:
        scenario, session_id, begin_s = self.run.scenario, f"{self._prefix}-{number}", self._now_s
        kinds = list(scenario.watch)
        kind = chance.choices(kinds, [scenario.watch[name] for name in kinds])[0]
        leave_s = min(begin_s + chance.expovariate(1 / scenario.stay_s), scenario.duration_s)
        enhanced, error, viewer = chance.random() < scenario.enhance, "", None
        avatar = {"avatar_id": chance.choice(scenario.avatars)} if scenario.avatars else {}
        with self._counted():
            try:
                (await self._client.post("/sessions", json={"session_id": session_id} | avatar)).raise_for_status()
                if (viewer := viewer_of(kind, self._client, session_id)) is not None:
                    await viewer.start()
                while self._now_s < leave_s:
                    await self._turn(session_id, kind, enhanced, avatar, chance)
                    if viewer is not None:
                        viewer.check()
                    await asyncio.sleep(chance.expovariate(1 / scenario.pause_s) if scenario.pause_s else 0)
            except Exception as failure:  # noqa: BLE001 - each transport has its own errors; the report shows them
                error = _sentence(failure)
            finally:
                if viewer is not None:
                    await viewer.stop()
                came_s = [] if viewer is None else viewer.came_s
                late = late_frames(came_s, scenario.buffer_s)
                self.run.stays.append(Stay(session_id, kind, begin_s, self._now_s, len(came_s), late, error))
                await self._delete(session_id)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A session is there while the block runs."""
        self._active += 1
        self.run.active.append((round(self._now_s, 2), self._active))
        try:
            yield
        finally:
            self._active -= 1
            self.run.active.append((round(self._now_s, 2), self._active))

    async def _delete(self, session_id: str) -> None:
        try:
            await self._client.delete(f"/sessions/{session_id}")
        except httpx.HTTPError:
            return  # it expires

    async def _turn(
        self, session_id: str, kind: Watch, enhanced: bool, avatar: dict[str, str], chance: random.Random
    ) -> None:
        """Speak once, perhaps interrupted; wait as long as the server says if it refuses."""
        scenario, at_s = self.run.scenario, self._now_s
        body = {"text": chance.choice(scenario.texts), "session_id": session_id, "enhance": enhanced} | avatar
        interrupting = None
        if chance.random() < scenario.interrupt:
            interrupting = asyncio.create_task(self._interrupt(session_id, chance.uniform(0.3, 3.0)))
        try:
            given = await (self._stream(body) if kind == "none" else self._speak(body))
            turn = Turn(session_id, at_s, enhanced=enhanced, **given)
        except httpx.HTTPStatusError as error:
            answer = error.response
            turn = Turn(session_id, at_s, answer.status_code, enhanced=enhanced, error=_sentence(error))
            if answer.status_code == 429:
                await asyncio.sleep(_retry_after_s(answer))
        except httpx.HTTPError as error:
            turn = Turn(session_id, at_s, 0, enhanced=enhanced, error=_sentence(error))
            await asyncio.sleep(RETRY_S)
        finally:
            if interrupting is not None:
                interrupting.cancel()
        self.run.turns.append(turn)

    async def _interrupt(self, session_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        with suppress(httpx.HTTPError):  # then the utterance is not interrupted, which the report shows
            await self._client.post(f"/sessions/{session_id}/interrupt")

    async def _speak(self, body: dict[str, Any]) -> dict[str, Any]:
        """Speak in a watched session: the answer is the summary at the end."""
        answer = await self._client.post("/speak", json=body)
        if answer.status_code == 409:  # interrupted before its first frame
            return {"status": 200, "interrupted": True}
        facts = answer.raise_for_status().json()
        live = facts.get("live", {})
        return {
            "status": answer.status_code, "ttff_ms": facts["ttff_ms"], "frames": facts["frames"],
            "holds": live.get("holds", 0), "held_s": live.get("held_s", 0.0),
            "interrupted": bool(facts.get("interrupted")),
        }  # fmt: skip

    async def _stream(self, body: dict[str, Any]) -> dict[str, Any]:
        """Speak in a session that nobody watches: its video is the answer."""
        begin_s, first_s, frames, counter = time.monotonic(), None, 0, FrameCounter()
        async with self._client.stream("POST", "/speak", json=body | {"stream": True}) as answer:
            if answer.is_error:
                await answer.aread()
            answer.raise_for_status()
            async for part in answer.aiter_raw():
                frames += counter.take(part)
                if frames and first_s is None:
                    first_s = time.monotonic()
        ttff_ms = None if first_s is None else 1e3 * (first_s - begin_s)
        return {"status": answer.status_code, "ttff_ms": ttff_ms, "frames": frames}

    async def _watch_stages(self) -> None:
        while True:
            try:
                answer = await self._client.get("/admin/state", timeout=5.0)
                if answer.status_code == 200:
                    self.run.states.append((self._now_s, answer.json()))
            except httpx.HTTPError:
                pass  # a server that restarts
            refused = sum(turn.status == 429 for turn in self.run.turns)
            self._step(
                f"{self._now_s:.0f} s: {self._active} sessions, {len(self.run.turns)} utterances, {refused} refused"
            )
            await asyncio.sleep(1.0)


def _retry_after_s(answer: httpx.Response) -> float:
    """The seconds of the header; a proxy may send a date instead."""
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return RETRY_S


def _sentence(error: BaseException) -> str:
    """What an error says, the server's own words where it has some."""
    if isinstance(error, httpx.HTTPStatusError):
        try:
            found = error.response.json()["error"]
            return str(found["message"] if isinstance(found, dict) else found)
        except (ValueError, KeyError, TypeError, httpx.ResponseNotRead):
            return f"status {error.response.status_code}"
    return str(error) or type(error).__name__
