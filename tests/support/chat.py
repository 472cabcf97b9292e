"""A fake Stitch and the Chat stage on top of it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.chat.deployment import Chat
from deployments.chat.reply import CHARS_PER_S
from deployments.common.messages import ChatRequest, SpeakEvent
from models.errors import SessionNotFound
from models.llm.base import KEY_ENV, MODEL_ENV, URL_ENV
from tests.support.llm_server import LLMServer, llm_server


class Events:
    """A streaming call to Stitch: speaks each part of its text in `pause_s`, and ends with a summary or an error."""

    def __init__(self, stitch: Stitch, request: Any) -> None:
        self.stitch, self.request, self.ended, self.cancelled = stitch, request, False, False
        self.asked_s, self.ttff_ms, self.said = time.monotonic(), 0.0, ""

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> SpeakEvent:
        if self.ended:
            raise StopAsyncIteration
        part = await self.stitch.parts[self.request.text_stream_key].get()
        if part is None:
            self.ended = True
            summary = {
                "duration_s": 2.0,
                "made_s": 2.0,
                "ttff_ms": 500.0,
                "rtf": 0.5,
                "stages": {"TTS": {"wall_ms": 9.0}},
            }
            return SpeakEvent(summary=summary | self.stitch.summary)
        self.stitch.began.append((self.request.session_id, part, time.monotonic()))
        if error := self.stitch.errors.get(part):
            raise error
        await self.stitch.may_speak.wait()
        await asyncio.sleep(self.stitch.pause_s)
        self.stitch.spoken.append((self.request.session_id, part))
        self.said = f"{self.said} {part}".strip()
        self.ttff_ms = self.ttff_ms or (time.monotonic() - self.asked_s) * 1e3
        frames = round(25 * len(self.said) / CHARS_PER_S)
        making = {"frames": frames, "shown_frames": frames, "duration_s": frames / 25, "ttff_ms": self.ttff_ms}
        making |= {"spoken_chars": len(self.said), "spoken": self.said, "watched": self.stitch.watched}
        return SpeakEvent(making=making | {"stages": {"TTS": {"busy_ms": float(len(self.said))}}})

    def cancel(self) -> None:
        self.cancelled = not self.ended


class Stitch:
    """A handle of Stitch that records what it is asked to speak and what is cancelled."""

    def __init__(self) -> None:
        self.spoken: list[tuple[str, str]] = []
        self.began: list[tuple[str, str, float]] = []
        self.calls: list[Events] = []
        self.errors: dict[str, Exception] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.pause_s = 0.0
        self.watched = False
        self.summary: dict[str, Any] = {}  # further keys of the summary
        self.may_speak = asyncio.Event()  # cleared: what is being spoken does not end
        self.may_speak.set()
        self.parts: dict[str, asyncio.Queue[str | None]] = defaultdict(asyncio.Queue)  # of the texts that grow, by key
        self.speak = SimpleNamespace(remote=self._speak)
        self.feed = SimpleNamespace(remote=self._feed)
        self.session = SimpleNamespace(remote=self._session)
        self.stats = SimpleNamespace(remote=self._stats)

    def options(self, **options: Any) -> Stitch:
        return self

    def _speak(self, request: Any) -> Events:
        self.calls.append(Events(self, request))
        return self.calls[-1]

    async def _feed(self, session_id: str, key: str, parts: list[str], last: bool) -> None:
        for part in [*parts, None] if last else parts:
            self.parts[key].put_nowait(part)

    async def _session(self, session_id: str, transcript: bool) -> dict[str, Any]:
        if session_id not in self.facts:
            raise SessionNotFound("There is none.", "Speak first.")
        return self.facts[session_id]

    async def _stats(self) -> dict[str, Any]:
        return {"stage": "Stitch", "config": {"avatar_id": "presenter"}}

    def texts(self) -> list[str]:
        return [text for _, text in self.spoken]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    for name in (URL_ENV, MODEL_ENV, KEY_ENV):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def llm() -> Iterator[LLMServer]:
    with llm_server() as running:
        yield running


async def stage(llm: LLMServer | None = None, stitch: Stitch | None = None, **config: Any) -> Chat:
    chat = Chat(stitch or Stitch())
    engine: dict[str, Any] = {"engine": "offline", "options": {"tokens_per_s": 1e5}}
    if llm is not None:
        engine = {"engine": "openai", "options": {"base_url": llm.url, "model": "tiny", "tries": 1, "timeout_s": 2}}
    await chat.reconfigure({**engine, **config})
    return chat


async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "the condition has not become true"
        await asyncio.sleep(0.01)


async def known(chat: Chat, job_id: str, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The first status of a job for which the condition holds."""
    end_s = time.monotonic() + 30.0
    while not condition(status := await chat.status(job_id)):
        assert time.monotonic() < end_s, status
        await asyncio.sleep(0.01)
    return status


async def finished(chat: Chat, job_id: str) -> dict[str, Any]:
    return await known(chat, job_id, lambda job: job["status"] in ("done", "failed"))


async def answered(chat: Chat, message: str = "Hello.", **options: Any) -> dict[str, Any]:
    return await finished(chat, (await chat.start(ChatRequest(message, **options)))["job_id"])
