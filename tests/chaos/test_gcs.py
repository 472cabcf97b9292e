"""The GCS of a cluster is killed during speech. With Redis, Ray's GCS fault tolerance, it comes back as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checks import finished, record, speaks_again
from tests.chaos.cluster import Nodes
from tests.chaos.harness import ChaosGraph
from tests.chaos.results import Row
from tests.chaos.viewers import Audience
from tests.graph.processes import free_port
from tests.graph.requests import wait_until

REDIS = shutil.which("redis-server")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.soak,
    pytest.mark.skipif(REDIS is None, reason="needs redis-server: apt-get install redis-server"),
]

OUTAGE_S, GAP_S = 15.0, 1.0
TEXT = "This sentence is being spoken while the GCS of the cluster is down. " * 4  # 22 s
RECONNECT_S = 600  # as KubeRay sets it


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Redis with a password, named to the nodes that start next."""
    assert REDIS is not None
    port, password = free_port(), "of-the-test"
    options = ["--port", str(port), "--bind", "127.0.0.1", "--requirepass", password, "--save", "", "--dir"]
    process = subprocess.Popen([REDIS, *options, str(tmp_path)], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("RAY_REDIS_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_REDIS_PASSWORD", password)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", str(RECONNECT_S))
    yield
    process.terminate()
    process.wait(10)


@pytest.mark.promise(
    "kill -9 of the GCS for 15 s under 4 watched, speaking sessions, with Redis",
    "no frame lost, picture and speech stop ≤ 1 s, also of a session opened meanwhile; "
    "afterwards a killed replica is replaced",
)
def test_speech_goes_on_without_the_gcs(redis: None, tmp_path: Path, row: Row, name: str) -> None:
    nodes: list[Nodes] = []

    def start() -> dict[str, Any]:
        nodes.append(Nodes(1, redis_password=os.environ["RAY_REDIS_PASSWORD"]))
        return nodes[0].arguments

    graph = ChaosGraph(tmp_path, start)
    audience = Audience(graph.url)
    try:
        ids = [f"{name}-{k}" for k in range(4)]
        audience.open(*ids)
        asked = {session_id: audience.speak(session_id, TEXT, enhance=session_id == ids[0]) for session_id in ids}
        time.sleep(2.0)
        killed_s = time.monotonic()
        nodes[0].kill_gcs()
        time.sleep(2.0)
        late = f"{name}-late"
        audience.open(late)
        asked[late] = audience.speak(late, "This session was opened while the GCS was down.")
        time.sleep(max(0.0, killed_s + OUTAGE_S - time.monotonic()))
        nodes[0].start_gcs()
        answers = finished(asked)
        record(row, audience, answers, killed_s, time.monotonic())
        row.saw(new_session_s=answers[late].answered_s - answers[late].sent_s)
        assert (row.seen["lost_frames"], row.seen["failed_utterances"]) == (0, 0), row.notes
        assert max(row.seen["longest_gap_s"], row.seen["longest_pause_s"]) <= GAP_S, row.seen
        pid, lost_s = graph.kill("LipSync")
        row.saw(recovery_s=graph.wait_until_replaced("LipSync", pid, lost_s))
        speaks_again(row, audience, [*ids, late], time.monotonic(), 5.0)
        wait_until(lambda: audience.api.get("/healthz").status_code == 200, "the graph is healthy")
    finally:
        audience.close()
        graph.stop()
        nodes[0].stop()
