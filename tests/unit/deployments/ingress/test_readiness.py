"""GET /readyz: which stages can serve, in bounded time, whatever Serve's controller does."""

import threading
import time
from types import SimpleNamespace

import pytest
from ray.serve.schema import DeploymentStatusOverview, ReplicaState

from deployments.ingress import readiness
from deployments.ingress.readiness import MAX_REASON_CHARS, ReadinessProbe, deployments_of_this_app

RUNNING = {ReplicaState.RUNNING: 1}


def deployment(states=None, message: str = "") -> DeploymentStatusOverview:
    return DeploymentStatusOverview(
        status="HEALTHY" if states == RUNNING else "UNHEALTHY",
        status_trigger="CONFIG_UPDATE_COMPLETED",
        replica_states=states or {},
        message=message,
    )


def graph(**changed) -> dict[str, DeploymentStatusOverview]:
    """The stages of an application in which all replicas run, except for the changed ones."""
    stages = ("TTS", "AudioFeatures", "LipSync", "Enhance", "Stitch", "Avatars", "Chat", "Ingress")
    return {stage: deployment(RUNNING) for stage in stages} | changed


@pytest.fixture
def ready(serve):
    """ready(read) → a client whose ingress reads the state of the stages with `read`."""

    def start(read):
        client = serve()
        client.replica._readiness = ReadinessProbe(read)
        return client

    return start


def test_a_server_whose_stages_all_run_is_ready(ready):
    answer = ready(graph).get("/readyz")
    body = answer.json()
    assert (answer.status_code, body["ready"], answer.headers["cache-control"]) == (200, True, "no-store")
    assert [stage["stage"] for stage in body["stages"]] == [stage for stage in graph() if stage != "Ingress"]
    assert body["stages"][2] == {
        "stage": "LipSync", "ready": True, "required": True, "replicas": {"RUNNING": 1}, "reason": None,
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["TTS", "AudioFeatures", "LipSync", "Enhance", "Stitch"])
def test_without_a_stage_that_speech_needs_it_is_not(ready, stage):
    states = {ReplicaState.STARTING: 1, ReplicaState.STOPPING: 1}
    client = ready(lambda: graph(**{stage: deployment(states, "A replica's health check failed.\nTraceback …")}))
    answer = client.get("/readyz")
    assert answer.status_code == client.head("/readyz").status_code == 503
    failed = [found for found in answer.json()["stages"] if not found["ready"]]
    assert failed == [
        {
            "stage": stage,
            "ready": False,
            "required": True,
            "replicas": {"STARTING": 1, "STOPPING": 1},
            "reason": "Its replica is starting. A replica's health check failed.",
        }
    ]


@pytest.mark.parametrize("stage", ["Avatars", "Chat", "Recognize"])
def test_a_stage_that_speech_does_not_need_is_only_reported(ready, stage):
    answer = ready(lambda: graph(**{stage: deployment()})).get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    failed = next(found for found in answer.json()["stages"] if found["stage"] == stage)
    assert (failed["ready"], failed["required"], failed["reason"]) == (False, False, "It has no replica.")


def test_one_of_several_replicas_is_enough(ready):
    states = {ReplicaState.RUNNING: 1, ReplicaState.STOPPING: 3}
    assert ready(lambda: graph(LipSync=deployment(states))).get("/readyz").status_code == 200


def test_a_long_message_is_cut_short(ready):
    client = ready(lambda: graph(TTS=deployment(message="x" * 5000)))
    assert len(client.get("/readyz").json()["stages"][0]["reason"]) == MAX_REASON_CHARS


def test_a_controller_that_fails_is_not_ready(ready):
    def fail():
        raise ConnectionError

    answer = ready(fail).get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "age_s": None, "stages": []})


async def test_a_controller_that_hangs_delays_nobody_and_is_asked_once(monkeypatch):
    monkeypatch.setattr(readiness, "ANSWER_S", 0.05)
    gate, asked = threading.Event(), []

    def read():
        asked.append(1)
        if len(asked) > 1:
            gate.wait(30)
        return graph()

    probe = ReadinessProbe(read)
    first = await probe.report()
    began_s = time.monotonic()
    later = [await probe.report() for _ in range(3)]
    assert time.monotonic() - began_s < 1
    assert first.ready and all(report.ready for report in later)  # replicas go on serving without the controller
    assert len(asked) == 2
    monkeypatch.setattr(readiness, "VALID_S", 0.0)
    assert (await probe.report()).ready is False
    gate.set()


def test_the_state_is_that_of_this_application(monkeypatch):
    mine = graph()
    status = SimpleNamespace(applications={"talk": SimpleNamespace(deployments=mine), "other": None})
    monkeypatch.setattr(readiness.serve, "status", lambda: status)
    with pytest.raises(ConnectionError):  # outside of Ray, and none is started
        deployments_of_this_app()
    monkeypatch.setattr(readiness.ray, "is_initialized", lambda: True)
    for name, found in (("talk", mine), ("gone", {})):
        monkeypatch.setattr(readiness.serve, "get_replica_context", lambda name=name: SimpleNamespace(app_name=name))
        assert deployments_of_this_app() == found
