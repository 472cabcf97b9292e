"""The state that the page of the operator shows, over fake replicas and a fake controller."""

import asyncio
import threading
from typing import Any

import pytest

from deployments.ingress.routes.admin import AdminState, without_secrets
from models.errors import BusyError
from tests.support.ingress import error_of

KEY = "0123456789abcdef-admin"


def details(target: int, *states: str) -> dict[str, Any]:
    replicas = [{"replica_id": f"r{k}", "state": state} for k, state in enumerate(states)]
    return {"target_num_replicas": target, "status": "HEALTHY", "message": "", "replicas": replicas}


def error(time_s: float, stage: str) -> dict[str, Any]:
    return {"time_s": time_s, "stage": stage, "code": "stage_failed", "message": "It broke."}


REPLICAS: dict[str, list[Any]] = {
    "Stitch": [
        {"replica": "s1", "sessions": {"bob": {"speaking": True, "watched": False}}, "errors": [error(1.0, "Stitch")]},
        {"replica": "s2", "sessions": {"alice": {"speaking": False, "watched": True}}, "errors": []},
        RuntimeError("lost"),
    ],
    "Chat": [{"replica": "c1", "errors": [], "config": {"options": {"api_key": "sk-1", "model": "m"}, "token": None}}],
    "Ingress": [
        {"replica": "i", "viewers": 3, "webrtc": 1, "late": 0, "dropped": 2, "errors": [error(2.0, "Ingress")]}
    ],
}


class Handle:
    """Answers a broadcast of `stats`; without answers, never."""

    def __init__(self, answers: list[Any] | None) -> None:
        self.answers = answers

    def broadcast(self, method: str) -> "Handle":
        assert method == "stats"
        return self

    async def results_async(self, return_exceptions: bool) -> list[Any]:
        if self.answers is None:
            await asyncio.Event().wait()
        return [dict(answer) if isinstance(answer, dict) else answer for answer in self.answers or ()]


def state_of(found: dict[str, Any], asked: list[int] | None = None) -> AdminState:
    def read() -> dict[str, Any]:
        if asked is not None:
            asked.append(1)
        return found

    return AdminState(read, lambda stage: Handle(REPLICAS.get(stage)))


GRAPH = {
    "Stitch": details(3, "RUNNING", "RUNNING", "STARTING"),
    "Chat": details(1, "RUNNING"),
    "Ingress": details(1, "RUNNING"),
    "Enhance": details(0),
}


async def test_each_stage_has_its_replicas_and_each_session_its_owner():
    state = await state_of(GRAPH).get()
    assert state["stages"]["Stitch"]["target"] == 3
    assert state["stages"]["Stitch"]["states"] == {"RUNNING": 2, "STARTING": 1}
    assert [replica["replica"] for replica in state["stages"]["Stitch"]["replicas"]] == ["s1", "s2"]
    assert state["stages"]["Enhance"] == {
        "target": 0,
        "status": "HEALTHY",
        "message": "",
        "states": {},
        "replicas": [],
    }
    assert state["sessions"] == [
        {"session_id": "alice", "owner": "s2", "speaking": False, "watched": True},
        {"session_id": "bob", "owner": "s1", "speaking": True, "watched": False},
    ]
    assert state["viewers"] == {"viewers": 3, "webrtc": 1, "late": 0, "dropped": 2}


async def test_the_latest_error_of_any_replica_comes_first():
    errors = (await state_of(GRAPH).get())["errors"]
    assert [(error["replica"], error["time_s"]) for error in errors] == [("i", 2.0), ("s1", 1.0)]


async def test_secrets_in_a_config_are_not_shown():
    (chat,) = (await state_of(GRAPH).get())["stages"]["Chat"]["replicas"]
    assert chat["config"] == {"options": {"api_key": "…", "model": "m"}, "token": None}
    assert without_secrets({"url": "https://me:pw@host/v1?to=a@b"}) == {"url": "https://…@host/v1?to=a@b"}


async def test_requests_at_the_same_time_ask_the_replicas_once():
    asked: list[int] = []
    admin = state_of(GRAPH, asked)
    await asyncio.gather(admin.get(), admin.get())
    await admin.get()
    assert len(asked) == 1


async def test_a_stage_that_does_not_answer_is_shown_without_replicas(monkeypatch):
    monkeypatch.setattr("deployments.ingress.routes.admin.ANSWER_S", 0.05)
    state = await state_of({"TTS": details(1, "RUNNING"), **GRAPH}).get()
    assert state["stages"]["TTS"]["states"] == {"RUNNING": 1} and state["stages"]["TTS"]["replicas"] == []
    assert state["viewers"]["viewers"] == 3


async def test_without_an_answer_of_the_controller_it_is_busy_and_asked_again(monkeypatch):
    admin = state_of(GRAPH)
    works, admin._read = admin._read, lambda: (_ for _ in ()).throw(TimeoutError())
    with pytest.raises(BusyError):
        await admin.get()
    admin._read = works
    assert (await admin.get())["sessions"]


async def test_a_controller_that_hangs_takes_one_thread(monkeypatch):
    monkeypatch.setattr("deployments.ingress.routes.admin.ANSWER_S", 0.01)
    answers, reads = threading.Event(), []

    def read() -> dict[str, Any]:
        reads.append(1)
        answers.wait(30)
        return {}

    admin = AdminState(read, lambda stage: Handle([]))
    for _ in range(3):
        with pytest.raises(BusyError):
            await admin.get()
    answers.set()
    await admin._reading
    assert len(reads) == 1 and (await admin.get())["stages"] == {}


def test_page_and_state_need_a_key_where_keys_are_set(serve, monkeypatch):
    monkeypatch.setenv("KEYS", KEY)
    client = serve(config={"api_keys_env": "KEYS"})
    client.replica._admin = state_of(GRAPH)
    for path in ("/admin", "/admin/state"):
        assert error_of(client.get(path))["code"] == "unauthorized"
        assert client.get(path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    page = client.get("/admin", headers={"Authorization": f"Bearer {KEY}"})
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get("/admin/state?token=x").status_code == 401
