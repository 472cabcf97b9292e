"""kill -9 of each kind of replica in mid-stream, with one replica and with two."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import httpx
import psutil
import pytest

from tests.chaos.checks import finished, record, speaks_again
from tests.chaos.harness import WORKERS, ChaosGraph
from tests.chaos.results import Row
from tests.chaos.viewers import Audience
from tests.graph.processes import command_lines
from tests.graph.requests import wait_until

pytestmark = pytest.mark.ray

TEXT = "This sentence is being spoken while a replica is killed. " * 2  # 9 s
TOLERATED_S = {1: 8.0, 2: 0.5}  # of stream, by number of replicas
AGAIN_S = 5.0  # from the death of an owner until the session speaks again
SOAK = pytest.mark.soak


def speak_and_kill(graph: ChaosGraph, audience: Audience, row: Row, name: str, stage: str, count: int) -> list[str]:
    """Watched sessions speak; one replica of the stage is killed. Returns the sessions whose utterance failed."""
    ids = [f"{name}-{k}" for k in range(2 if stage == "Enhance" else 4)]  # two cores enhance no more in real time
    audience.open(*ids)
    asked = {session_id: audience.speak(session_id, TEXT, enhance=stage == "Enhance") for session_id in ids}
    time.sleep(2.0)
    pid, killed_s = graph.kill(stage)
    row.saw(recovery_s=graph.wait_until_replaced(stage, pid, killed_s, count))
    answers = finished(asked)
    record(row, audience, answers, killed_s - 0.5, time.monotonic())
    return [session_id for session_id, answer in answers.items() if answer.status != 200]


@pytest.mark.promise(
    "kill -9 of {stage}, replicas: {count}", "no frame lost; stream stops ≤ 8 s with one, 0.5 s with two"
)
@pytest.mark.parametrize("count", [2, pytest.param(1, marks=SOAK)])
@pytest.mark.parametrize("stage", ["LipSync", *(pytest.param(s, marks=SOAK) for s in WORKERS if s != "LipSync")])
def test_a_killed_worker_costs_no_frame(
    graph: ChaosGraph, audience: Audience, row: Row, name: str, stage: str, count: int
) -> None:
    with graph.scaled(**{stage: count}):
        assert speak_and_kill(graph, audience, row, name, stage, count) == []
    assert row.seen["lost_frames"] == 0
    assert max(row.seen["longest_gap_s"], row.seen["longest_pause_s"]) <= TOLERATED_S[count], row.seen


@pytest.mark.promise(
    "kill -9 of Stitch, replicas: {count}",
    "utterances there end with an error; their sessions speak again within 5 s; picture stops ≤ 0.5 s with two",
)
@pytest.mark.parametrize("count", [pytest.param(2, marks=SOAK), pytest.param(1, marks=SOAK)])
def test_a_killed_owner_gives_its_sessions_to_another(
    graph: ChaosGraph, audience: Audience, row: Row, name: str, count: int
) -> None:
    with graph.scaled(Stitch=count):
        failed = speak_and_kill(graph, audience, row, name, "Stitch", count)
        assert len(failed) <= 4 // count  # only the sessions of the killed replica, which has its share of them
        assert row.seen["longest_gap_s"] <= TOLERATED_S[count], row.seen
        pid, killed_s = graph.kill("Stitch")  # a second time, while nobody speaks
        speaks_again(row, audience, audience.viewers, killed_s, AGAIN_S if count == 2 else TOLERATED_S[1])
        assert row.seen["lost_frames"] == 0
        graph.wait_until_replaced("Stitch", pid, killed_s, count)


@pytest.mark.promise(
    "kill -9 of Ingress, replicas: {count}",
    "viewers that connect again see the session within 0.5 s with two, 8 s with one; files hold what was spoken",
)
@pytest.mark.parametrize("count", [pytest.param(2, marks=SOAK), pytest.param(1, marks=SOAK)])
def test_a_killed_ingress(graph: ChaosGraph, audience: Audience, row: Row, name: str, count: int) -> None:
    with graph.scaled(Ingress=count):
        failed = speak_and_kill(graph, audience, row, name, "Ingress", count)
        assert row.seen["lost_frames"] == 0
        assert row.seen["longest_gap_s"] <= TOLERATED_S[count] + 0.5, row.seen  # 0.5 s: the viewer connects again
        speaks_again(row, audience, failed, time.monotonic(), AGAIN_S)


@pytest.mark.soak
@pytest.mark.promise(
    "kill -9 of {stage}, one replica", "speech and viewers do not notice; the stage answers again within 20 s"
)
@pytest.mark.parametrize(("stage", "path"), [("Avatars", "/avatars"), ("Chat", "/chat/nobody")])
def test_a_killed_side_stage_is_not_noticed(
    graph: ChaosGraph, audience: Audience, row: Row, name: str, stage: str, path: str
) -> None:
    assert speak_and_kill(graph, audience, row, name, stage, 1) == []
    assert row.seen["lost_frames"] == 0
    assert max(row.seen["longest_gap_s"], row.seen["longest_pause_s"]) <= TOLERATED_S[2], row.seen
    assert row.seen["recovery_s"] <= 20
    wait_until(lambda: audience.api.get(path).status_code in (200, 404), f"{path} answers", 20)


@pytest.mark.soak
@pytest.mark.promise("kill -9 of {process}", "sessions speak on; viewers see a picture again within {limit_s:g} s")
@pytest.mark.parametrize(
    ("process", "limit_s"), [("ServeController", 0.5), ("DirectoryActor", 0.5), ("ProxyActor", 15.0)]
)
def test_a_killed_process_beside_the_replicas(
    graph: ChaosGraph, audience: Audience, row: Row, name: str, process: str, limit_s: float
) -> None:
    ids = [f"{name}-{k}" for k in range(2)]
    audience.open(*ids)
    asked = {session_id: audience.speak(session_id, TEXT) for session_id in ids}
    time.sleep(2.0)
    psutil.Process(next(pid for pid, title in command_lines().items() if process in title)).kill()
    killed_s = time.monotonic()
    answers = finished(asked)

    def reachable() -> bool:
        try:
            return httpx.get(f"{graph.url}/healthz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(reachable, "the server answers", 60)
    time.sleep(2.0)
    record(row, audience, answers, killed_s - 0.5, time.monotonic())
    assert row.seen["longest_gap_s"] <= limit_s, row.seen
    if process != "ProxyActor":  # which carries their requests
        assert (row.seen["failed_utterances"], row.seen["lost_frames"]) == (0, 0)
    speaks_again(row, audience, ids, time.monotonic(), AGAIN_S)


@pytest.mark.soak
@pytest.mark.promise(
    "kill -9 of {stage} while a chat job runs",
    "the job ends as done; where Chat itself is killed in mid-answer, as failed, which keeps what was spoken",
)
@pytest.mark.parametrize("stage", ["Ingress", "Chat", *WORKERS])
def test_a_chat_job_outlives_a_replica(graph: ChaosGraph, audience: Audience, row: Row, name: str, stage: str) -> None:
    audience.open(name)
    body = {"message": "Tell me a long story.", "session_id": name}
    job = audience.api.post("/chat", json=body).raise_for_status().json()["job_id"]
    wait_until(lambda: audience.api.get(f"/sessions/{name}").json()["frames"], "the answer is shown")
    pid, killed_s = graph.kill(stage)
    row.saw(recovery_s=graph.wait_until_replaced(stage, pid, killed_s))

    def status() -> dict[str, Any] | None:
        with contextlib.suppress(httpx.TransportError):
            answer = audience.api.get(f"/status/{job}")
            return dict(answer.json()) if answer.status_code == 200 else None
        return None

    def ended() -> dict[str, Any] | None:
        facts = status()
        return facts if facts is not None and facts["status"] in ("done", "failed") else None

    facts = wait_until(ended, "the job ends", 120, every_s=0.2)
    row.note(f"the job was {facts['status']}: {(facts['error'] or {}).get('message', 'no error')}")
    assert facts["status"] == ("failed" if stage == "Chat" else "done"), facts
    assert bool(facts["error"]) == (stage == "Chat") and facts["reply"], facts
    assert audience.file_frames(name) > 0
