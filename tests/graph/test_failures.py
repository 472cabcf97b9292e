"""A replica is killed, a client goes away, queues are full: the session file stays playable, the service comes back."""

import contextlib
import json
import os
import re
import signal
import threading
import time

import httpx
import numpy as np
import pytest

from models.avatar.prepare import ENCODING, FINDING
from models.avatar.store import AvatarStore
from tests.graph.conftest import clip, decode

pytestmark = pytest.mark.ray

FRAMES = 12  # of a video that is prepared
LONG = " ".join(f"Sentence number {word} goes on for a while." for word in ("one", "two", "three", "four", "five"))


def replica_pids() -> dict[str, int]:
    """Stage → process id of its replica, from the names that Ray gives its worker processes."""
    import psutil

    pids = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:  # it has ended meanwhile
            continue
        if stage := re.search(r"ServeReplica:warmtalk:(\w+)", title):  # behind it, the method that is being run
            pids[stage.group(1)] = process.pid
    return pids


def wait_until_served(client: httpx.Client, session_id: str, timeout_s: float = 60.0) -> dict:
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            answer = client.post("/speak", json={"text": "Back again.", "session_id": session_id})
            if answer.status_code == 200:
                return answer.json()
            last = answer.text
        except httpx.TransportError as error:
            last = repr(error)
        assert time.monotonic() < end_s, last
        time.sleep(0.5)


def kill(stage: str) -> int:
    """Kill the stage's replica; return its process id once that is gone."""
    import psutil

    pid = replica_pids()[stage]
    os.kill(pid, signal.SIGKILL)
    end_s = time.monotonic() + 10
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end_s, f"{stage} ({pid}) outlived its SIGKILL"
            time.sleep(0.02)
    return pid


def speak_and_kill(client: httpx.Client, stage: str, session_id: str) -> tuple[int, bytes, int]:
    """Stream LONG; kill the stage's replica after the first fragments. Returns status, bytes, the killed process."""
    received: list[bytes] = []
    killed = 0
    try:
        body = {"text": LONG, "session_id": session_id, "stream": True, "enhance": stage == "Enhance"}
        with client.stream("POST", "/speak", json=body) as answer:
            for part in answer.iter_raw():
                received.append(part)
                if len(received) == 4:
                    killed = kill(stage)
    except httpx.TransportError:
        pass
    assert killed, "the utterance ended before its fourth part"
    return answer.status_code, b"".join(received), killed


@pytest.fixture(scope="module")
def whole_frames(client) -> int:
    """Of LONG, where nothing is killed."""
    return client.post("/speak", json={"text": LONG, "session_id": "whole"}).json()["frames"]


@pytest.mark.parametrize("stage", ["TTS", "AudioFeatures", "LipSync", "Enhance"])
def test_a_killed_worker_stage_loses_nothing(client, whole_frames, stage):
    session_id = f"kill-{stage.lower()}"
    status, data, killed = speak_and_kill(client, stage, session_id)
    assert status == 200
    assert len(decode(data).frames) == whole_frames
    file = client.get(f"/sessions/{session_id}/video.mp4").content
    assert len(decode(file).frames) == whole_frames
    wait_until_served(client, session_id)
    assert replica_pids()[stage] != killed


@pytest.mark.parametrize("stage", ["Stitch", "Ingress"])
def test_a_killed_owner_leaves_a_playable_file_and_comes_back(client, graph, stage):
    session_id = f"kill-{stage.lower()}"
    _, data, killed = speak_and_kill(client, stage, session_id)
    left = decode((graph.home / "results" / "sessions" / session_id / "full_session.mp4").read_bytes())
    delivered = len(decode(data).frames)
    assert len(left.frames) >= delivered > 0  # all that was delivered is in the file, which plays as it was left
    np.testing.assert_allclose(np.diff(left.times), 0.04, atol=1e-3)
    answer = wait_until_served(client, session_id)
    assert replica_pids()[stage] != killed
    video = decode(client.get(f"/sessions/{session_id}/video.mp4").content)
    assert len(video.frames) >= delivered + answer["frames"]
    np.testing.assert_allclose(np.diff(video.times), 0.04, atol=1e-3)


@pytest.mark.parametrize(("step", "done"), [(FINDING, 3), (ENCODING, FRAMES)])  # in the midst, and while it is written
def test_a_killed_preparation_leaves_an_avatar_whole_or_absent_and_comes_back(client, graph, step, done):
    avatar_id, source = f"killed-at-{done}", clip(FRAMES)
    killed, lines = 0, []
    with (
        contextlib.suppress(httpx.TransportError),
        client.stream("POST", "/avatars", params={"avatar_id": avatar_id}, content=source) as answer,
    ):
        for line in answer.iter_lines():
            lines.append(json.loads(line))
            if not killed and (lines[-1].get("step"), lines[-1].get("done")) == (step, done):
                killed = kill("Avatars")
    assert killed, lines[-1]
    store = AvatarStore(graph.home / "results" / "avatars")
    if store.exists(avatar_id):
        assert len(store.load(avatar_id)) == FRAMES  # every file is there and has its checksum
    end_s = time.monotonic() + 60
    while (again := client.get("/avatars")).status_code != 200:
        assert time.monotonic() < end_s, again.text
        time.sleep(0.5)
    assert (avatar_id in [facts["avatar_id"] for facts in again.json()]) == store.exists(avatar_id)
    assert replica_pids()["Avatars"] != killed
    again = client.post("/avatars", params={"avatar_id": avatar_id, "force": True}, content=source)
    assert json.loads(again.text.splitlines()[-1])["report"]["frames"] == len(store.load(avatar_id)) == FRAMES
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] == []  # no debris


def test_a_client_that_goes_away_ends_the_work(client, graph):
    with client.stream("POST", "/speak", json={"text": LONG * 3, "session_id": "gone", "stream": True}) as answer:
        next(answer.iter_raw())
    time.sleep(1.0)
    before = client.get("/sessions/gone").json()
    time.sleep(1.5)
    after = client.get("/sessions/gone").json()
    assert after["frames"] == before["frames"] < 500
    assert after["utterances"][-1]["end_s"] is None  # the transcript says that it was cut
    assert wait_until_served(client, "gone")["frames"] > 0


def test_utterances_of_one_session_follow_one_another(client):
    texts = ["The first of three.", "The second of them.", "And the third one."]
    answers: dict[str, dict] = {}

    def say(text: str) -> None:
        answers[text] = client.post("/speak", json={"text": text, "session_id": "queue"}).json()

    threads = [threading.Thread(target=say, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    facts = client.get("/sessions/queue").json()
    assert [line["text"] for line in facts["utterances"]] == texts
    assert facts["frames"] == sum(answer["frames"] for answer in answers.values())
    ends = [(line["start_s"], line["end_s"]) for line in facts["utterances"]]
    assert ends[0][1] == ends[1][0] and ends[1][1] == ends[2][0]
