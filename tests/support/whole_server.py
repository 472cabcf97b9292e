"""The whole server without Ray: the routes over real stages, in one process and on one event loop.

The ingress, TTS, Stitch, Chat with its offline responder, Avatars, and their files are real. The voice is a tone, and
the faces are white squares.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from deployments.avatars import Avatars
from deployments.chat.deployment import Chat
from deployments.ingress.app import api
from deployments.ingress.routes.admin import AdminState
from deployments.stitch.deployment import Stitch
from deployments.tts import TTS
from models.speech.readable import check_text
from models.speech.text import split_sentences
from models.types import Speech
from tests.support.ingress import PlainIngress
from tests.support.stitch import RATE, Method, Response, Stages, Stream, grey_avatar


class DirectHandle:
    """A stage as a handle: it calls the methods of the object."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage

    def options(self, **options: Any) -> DirectHandle:
        return self

    def __getattr__(self, name: str) -> Method:
        function = getattr(self._stage, name)
        return Method(function, Stream if inspect.isasyncgenfunction(function) else Response)


class Tone:
    """An English voice: 20 ms of a tone per character, with the text checks of every engine."""

    sample_rate_hz = RATE
    language = "en"

    @classmethod
    def load(cls) -> Tone:
        return cls()

    def voices(self) -> list[str]:
        return ["tone"]

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        sentences = split_sentences(check_text(text))
        for k, sentence in enumerate(sentences):
            tone = 0.5 * np.sin(np.arange(len(sentence) * RATE // 50) / 10).astype(np.float32)
            yield Speech(tone, RATE, sentence, last=k + 1 == len(sentences))


@contextmanager
def whole_server(monkeypatch: pytest.MonkeyPatch, home: Path, **configs: dict[str, Any]) -> Iterator[TestClient]:
    """A client of the server. configs: user_config by stage. `client.stages`: the stages by name."""
    monkeypatch.setenv("WARMTALK_HOME", str(home))
    avatar = grey_avatar()
    monkeypatch.setattr(Stitch, "_load_avatar", lambda self, avatar_id: avatar)
    monkeypatch.setattr(Stitch, "_forget_removed", lambda self: asyncio.sleep(0))  # the avatar is not on disk
    vae = SimpleNamespace(encode_reference=None, vae_fingerprint="")
    monkeypatch.setattr("deployments.avatars.load_model", lambda config: vae)
    stages: dict[str, Any] = {}

    async def build() -> None:
        tts, faces, avatars = TTS(), Stages(0.0), Avatars()
        stitch = Stitch(DirectHandle(tts), faces, faces)
        chat = Chat(DirectHandle(stitch))
        ingress = PlainIngress(DirectHandle(stitch), DirectHandle(avatars), DirectHandle(tts), DirectHandle(chat))
        ingress._whep._end_elsewhere = no_other_replica
        ingress._admin = AdminState(dict)  # else it would look for a Ray on this machine
        stages.update(TTS=tts, Stitch=stitch, Chat=chat, Avatars=avatars, Ingress=ingress)
        given = {
            "TTS": {"engine": f"{__name__}:Tone"},
            "Stitch": {"crf": 30, "steady_crops": False, "rest_mouth": "generated"},
            "Chat": {"engine": "offline", "options": {"tokens_per_s": 1e5}},
        }
        for name, stage in stages.items():
            await stage.reconfigure({**given.get(name, {}), **configs.get(name, {})})
        monkeypatch.setattr(
            "ray.serve.get_replica_context",
            lambda: SimpleNamespace(servable_object=ingress, replica_id=SimpleNamespace(unique_id=""), app_name="app"),
        )

    async def no_other_replica(peer_id: str) -> bool:
        return False

    async def end() -> None:
        await stages["Ingress"]._hubs.stop()
        stages["Stitch"]._housekeeping.cancel()
        stages["Chat"]._maintenance.cancel()

    with TestClient(api, raise_server_exceptions=False) as client:
        client.portal.call(build)
        client.stages = stages
        yield client
        client.portal.call(end)
