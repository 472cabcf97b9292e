"""Tiny queues and no Enhance stage: overload is 429 with Retry-After, and the rest is served as ever; a key."""

import concurrent.futures
import copy
import time
from pathlib import Path

import httpx
import pytest
import yaml

from configs.serve_file import FOLDER, deployment_of
from tests.graph.conftest import decode, free_port
from warmtalk.cli.local_graph import LocalGraph

pytestmark = pytest.mark.ray

KEY = "0123456789abcdef-graph"
TEXT = "This sentence keeps the only replica busy for a while."


def tiny_queues(path: Path) -> str:
    """demo.yaml with one utterance at a time, one more in the queue, and Enhance left out by `args` alone."""
    config = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    config["applications"][0]["args"]["enhance"] = False
    deployment_of(config, "Stitch").update(max_ongoing_requests=1, max_queued_requests=1)
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRAPH_KEYS", KEY)  # where replicas inherit it; no config names it yet
    home = tmp_path_factory.mktemp("home")
    with LocalGraph(tiny_queues(home / "tiny.yaml"), free_port(), home) as running:
        yield running
    patch.undo()


def speak(url: str, number: int, stream: bool) -> httpx.Response:
    body = {"text": TEXT, "session_id": f"crowd-{number}-{stream}".lower(), "stream": stream}
    return httpx.post(f"{url}/speak", json=body, timeout=120)


@pytest.mark.parametrize("stream", [False, True])
def test_a_crowd_is_served_in_part_and_the_rest_told_when_to_come_back(graph, stream):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: speak(graph.url, number, stream), range(8)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 2, statuses
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == "2"
            error = answer.json()["error"]
            assert (error["code"], error["remedy"]) == ("busy", "Try again in a few seconds.")
    refused = statuses.index(429)
    assert (
        httpx.get(f"{graph.url}/sessions/crowd-{refused}-{stream}".lower()).status_code == 404
    )  # refused, and nothing begun
    again = speak(graph.url, refused, stream)
    assert again.status_code == 200


def test_without_the_stage_nothing_waits_for_enhancement_even_when_it_is_asked_for(graph):
    from ray import serve

    assert "Enhance" not in serve.status().applications["warmtalk"].deployments
    body = {"text": "No restoration here.", "session_id": "plain", "enhance": True}
    answer = httpx.post(f"{graph.url}/speak", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["stages"].keys() == {"TTS", "AudioFeatures", "LipSync", "Stitch"}
    video = decode(httpx.get(f"{graph.url}/sessions/plain/video.mp4").content)
    assert len(video.frames) == answer.json()["frames"]


def test_a_long_recording_is_refused_in_words_not_by_a_broken_pipe(graph):
    """140 MB of sound go from the ingress to Stitch in one message."""
    size = 140 * 10**6
    header = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += b"\1\0\2\0" + (48_000).to_bytes(4, "little") + (192_000).to_bytes(4, "little") + b"\4\0\20\0"
    data = header + b"data" + size.to_bytes(4, "little") + bytes(size)
    answer = httpx.post(f"{graph.url}/speak/audio", params={"session_id": "long"}, content=data, timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_audio"), answer.text
    assert httpx.get(f"{graph.url}/sessions/long").status_code == 404


def test_a_key_can_be_wanted_and_given_up_while_the_graph_runs(graph):
    """The routes are frozen when the class is made, and run in another process: what a key closes is closed there."""
    opened, closed = copy.deepcopy(graph.config), copy.deepcopy(graph.config)
    deployment_of(closed, "Ingress")["user_config"] = {"api_keys_env": "GRAPH_KEYS"}
    deployment_of(opened, "Ingress")["user_config"] = {}  # Serve passes over one that is gone, and the key would stay
    with httpx.Client(base_url=graph.url, timeout=60) as client:
        graph.deploy(closed)
        until(lambda: client.get("/sessions").status_code == 401)
        assert client.get("/").status_code == client.get("/healthz").status_code == 200
        assert client.get("/sessions", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.post("/login", json={"key": KEY}).status_code == 204
        assert client.get("/sessions").status_code == 200  # by its cookie
        client.cookies.clear()
        graph.deploy(opened)
        until(lambda: client.get("/sessions").status_code == 200)
        assert client.get("/sessions", headers={"Host": "evil.example"}).status_code == 421


def until(true, seconds: float = 20.0) -> None:
    end_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.1)
