"""Several Stitch replicas with fake stages, one directory of sessions, and the ingress's hubs, in one process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from deployments.common.messages import LiveResume, SpeakEvent, SpeakRequest
from deployments.common.speech_call import SpeechCall
from deployments.ingress.live import hub
from deployments.ingress.live.hubs import Hubs
from deployments.stitch.deployment import Stitch
from deployments.stitch.ownership import directory
from deployments.stitch.ownership.actor import DirectoryError
from deployments.stitch.ownership.directory import SessionDirectory
from tests.support.stitch import Method, Stages, Stream, grey_avatar

CONFIRM_S = 0.5
CONFIG = {"crf": 8, "steady_crops": False, "rest_mouth": "generated", "recorded_pause_ms": 0}


class LocalDirectory:
    """A client of a directory in this process. down: it does not answer."""

    def __init__(self) -> None:
        self.directory, self.down = SessionDirectory(lambda: time.monotonic()), False
        self.calls: list[str] = []

    async def call(self, method: str, *arguments: Any, timeout_s: float = 1.0) -> Any:
        self.calls.append(method)
        if self.down:
            raise DirectoryError(f"{method}: it is down")
        return getattr(self.directory, method)(*arguments)


class Cluster:
    """Replicas by name. A request goes to the owner of its session, as SessionRouter does it."""

    def __init__(self) -> None:
        self.replicas: dict[str, Stitch] = {}
        self.listed: dict[str, None] = {}
        self.dead: set[str] = set()
        self.client = LocalDirectory()
        self.routed: list[tuple[str, str]] = []  # (method, replica)
        self.hubs = [self.ingress()]

    def ingress(self) -> Hubs:
        """The hubs of one more ingress replica."""
        return Hubs(lambda session_id, resume: self.handle(session_id).live.remote(session_id, resume), lambda: 100)

    async def add(self, name: str, delay_s: float = 0.02, **config: Any) -> Stitch:
        stages = Stages(delay_s)
        stitch = self.replicas[name] = Stitch(stages, stages, stages)
        stitch._owner._replica, stitch._owner._directory = name, self.client
        await stitch.reconfigure({**CONFIG, **config})
        self.list(*self.listed, name)
        return stitch

    def list(self, *names: str) -> None:
        """These replicas are on Serve's list from now on; others drain."""
        self.listed = dict.fromkeys(names)
        self.client.directory.update(self.listed)

    def owner(self, session_id: str) -> str:
        return self.client.directory.route(session_id, self.listed, self.dead).replica

    def handle(self, session_id: str) -> ClusterHandle:
        return ClusterHandle(self, session_id)

    def options(self, session_id: str = "", **options: Any) -> ClusterHandle:
        return self.handle(session_id)

    async def speak(self, session_id: str, text: str, **options: Any) -> dict[str, Any]:
        """Speak, as the ingress does; return the summary."""
        call = SpeechCall(self, SpeakRequest(session_id, text, deliver=False, **options))  # type: ignore[arg-type]
        events: list[SpeakEvent] = [event async for event in call]
        assert events[-1].summary is not None
        return events[-1].summary

    async def stop(self) -> None:
        for hubs in self.hubs:
            await hubs.stop()
        for stitch in self.replicas.values():
            for task in (stitch._housekeeping, stitch._owner._reporting):
                assert task is not None
                task.cancel()


class ClusterHandle:
    """Stitch as the handle that Ingress and Chat have, for the requests of one session."""

    def __init__(self, cluster: Cluster, session_id: str) -> None:
        self._cluster, self._session_id = cluster, session_id
        self.speak, self.live = Method(self._stream("speak"), Stream), Method(self._stream("live"), Stream)
        self.feed, self.interrupt = Method(self._unary("feed")), Method(self._unary("interrupt"))
        self.interrupt_nowait = Method(self._unary("interrupt_nowait"))

    def options(self, **options: Any) -> ClusterHandle:
        return self

    def _replica(self, method: str) -> Stitch:
        name = self._cluster.owner(self._session_id)
        self._cluster.routed.append((method, name))
        return self._cluster.replicas[name]

    def _stream(self, method: str) -> Any:
        async def call(*arguments: SpeakRequest | LiveResume | str | None) -> Any:
            async for event in getattr(self._replica(method), method)(*arguments):
                yield event

        return call

    def _unary(self, method: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return await getattr(self._replica(method), method)(*arguments)

        return call


@pytest.fixture
async def cluster(monkeypatch, tmp_path):
    """Without a replica yet."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "GRACE_S", 2.0)  # Stitch, hub and viewers share one busy event loop here
    monkeypatch.setattr(directory, "CONFIRM_S", CONFIRM_S)  # shorter speech is enough for a test, which renders it
    avatar = grey_avatar()
    monkeypatch.setattr(Stitch, "_load_avatar", lambda self, avatar_id: avatar)
    monkeypatch.setattr("deployments.stitch.deployment.AvatarStore.exists", lambda self, avatar_id: True)
    cluster = Cluster()
    yield cluster
    await cluster.stop()
