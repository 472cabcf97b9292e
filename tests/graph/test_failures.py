"""Replicas are killed, clients leave: the session file stays playable, and the service recovers."""

import contextlib
import json
import threading
import time

import httpx
import pytest

from models.avatar.prepare import ENCODING, FINDING
from models.avatar.store import AvatarStore
from tests.graph.media import assert_without_gaps, clip, decode, video_of
from tests.graph.processes import kill, replicas
from tests.graph.requests import speak, wait_until

pytestmark = pytest.mark.ray

FRAMES = 4  # of a video that is prepared
LONG = " ".join(f"Sentence number {word} goes on for a while." for word in ("one", "two", "three", "four"))
WORKERS = ("TTS", "AudioFeatures", "LipSync", "Enhance")


def wait_until_served(client: httpx.Client, session_id: str) -> dict:
    def answer() -> dict | None:
        with contextlib.suppress(httpx.TransportError):
            answer = client.post("/speak", json={"text": "Back again.", "session_id": session_id})
            return answer.json() if answer.status_code == 200 else None
        return None

    return wait_until(answer, "speech is served again", every_s=0.3)


def speak_and_kill(client: httpx.Client, session_id: str, at_fragment: dict[int, str]) -> tuple[bytes, dict[str, int]]:
    """Stream LONG with enhancement, and kill a stage's replica as soon as that many fragments were received.

    Returns the received bytes, and stage → process id of each killed replica.
    """
    received, killed = b"", {}
    waiting = sorted(at_fragment.items())
    body = {"text": LONG, "session_id": session_id, "stream": True, "enhance": True}
    with contextlib.suppress(httpx.TransportError), client.stream("POST", "/speak", json=body) as answer:
        assert answer.status_code == 200
        for part in answer.iter_raw():
            received += part
            if waiting and received.count(b"moof") >= waiting[0][0]:
                stage = waiting.pop(0)[1]
                killed[stage] = kill(stage)
    assert not waiting, "the utterance ended too early"
    return received, killed


@pytest.mark.full  # tests/chaos kills them with fast engines
def test_killed_worker_stages_lose_no_frame(client):
    """One utterance during which each of the four stages is killed once."""
    whole = speak(client, LONG, session_id="whole")["frames"]
    data, killed = speak_and_kill(client, "kill-workers", dict(zip((2, 5, 8, 11), WORKERS, strict=True)))
    assert len(decode(data).frames) == whole
    assert len(video_of(client, "kill-workers").frames) == whole
    wait_until_served(client, "kill-workers")
    wait_until(lambda: replicas().keys() >= set(WORKERS), "all stages have replicas")
    assert all(pid not in replicas()[stage] for stage, pid in killed.items())


@pytest.mark.parametrize("stage", ["Stitch", pytest.param("Ingress", marks=pytest.mark.full)])
def test_a_killed_owner_leaves_a_playable_file_and_the_session_goes_on(client, graph, stage):
    session_id = f"kill-{stage.lower()}"
    data, killed = speak_and_kill(client, session_id, {4: stage})
    left = decode((graph.home / "results" / "sessions" / session_id / "full_session.mp4").read_bytes())
    delivered = len(decode(data).frames)
    assert len(left.frames) >= delivered > 0  # everything that was delivered is in the file
    assert_without_gaps(left)
    answer = wait_until_served(client, session_id)
    assert killed[stage] not in replicas()[stage]
    video = video_of(client, session_id)
    assert len(video.frames) >= delivered + answer["frames"]
    assert_without_gaps(video)


@pytest.mark.parametrize(
    ("step", "done"),
    [pytest.param(FINDING, 3, marks=pytest.mark.full), (ENCODING, FRAMES)],  # in the middle; while it is written
)
def test_a_killed_preparation_leaves_an_avatar_complete_or_absent(client, graph, step, done):
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
    listed = wait_until(lambda: (a := client.get("/avatars")).status_code == 200 and a, "avatars are listed").json()
    assert (avatar_id in [facts["avatar_id"] for facts in listed]) == store.exists(avatar_id)
    assert killed not in replicas()["Avatars"]
    again = client.post("/avatars", params={"avatar_id": avatar_id, "force": True}, content=source)
    assert json.loads(again.text.splitlines()[-1])["report"]["frames"] == len(store.load(avatar_id)) == FRAMES
    hidden = [path.name for path in store.root.iterdir() if path.name.startswith(".")]
    assert hidden == [".lock"]  # no temporary folders


def test_a_client_that_leaves_ends_the_work(client):
    def frames() -> int:
        return client.get("/sessions/gone").json()["frames"]

    with client.stream("POST", "/speak", json={"text": LONG * 3, "session_id": "gone", "stream": True}) as answer:
        next(answer.iter_raw())
    last = -1
    while (now := frames()) != last:  # until nothing is added for a second, in which some 50 frames could be made
        last = now
        time.sleep(1.0)
    assert now < 500  # of about 750
    assert client.get("/sessions/gone").json()["utterances"][-1]["end_s"] is None  # the transcript says: incomplete
    assert wait_until_served(client, "gone")["frames"] > 0


def test_utterances_of_one_session_are_made_one_after_another(client):
    texts = ["The first of three.", "The second of them.", "And the third one."]
    answers: dict[str, dict] = {}

    def say(text: str) -> None:
        answers[text] = speak(client, text, session_id="queue")

    client.post("/sessions", json={"session_id": "queue"}).raise_for_status()
    first, *others = [threading.Thread(target=say, args=(text,)) for text in texts]
    first.start()
    wait_until(lambda: client.get("/sessions/queue").json()["utterances"], "the first utterance begins")
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    facts = client.get("/sessions/queue").json()
    said = [line["text"] for line in facts["utterances"]]
    assert said[0] == texts[0] and sorted(said) == sorted(texts)
    assert facts["frames"] == sum(answer["frames"] for answer in answers.values())
    ends = [(line["start_s"], line["end_s"]) for line in facts["utterances"]]
    assert ends[0][1] == ends[1][0] and ends[1][1] == ends[2][0]
