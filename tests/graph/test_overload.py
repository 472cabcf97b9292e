"""Overload gives 429 with Retry-After, a large upload a clear error; a key is required while one is set."""

import concurrent.futures

import httpx
import pytest

from configs.serve_file import deployment_of
from tests.graph.conftest import KEY
from tests.graph.processes import changed, user_config
from tests.graph.requests import TEXT, error_of, speak, wait_until

pytestmark = pytest.mark.ray

LONG = " ".join(f"Sentence number {number} keeps the only place busy." for number in range(1, 16))


def one_at_a_time(config: dict) -> None:
    """One utterance is made, one more may wait in the queue."""
    deployment_of(config, "Stitch").update(max_ongoing_requests=1, max_queued_requests=1)


def test_requests_beyond_the_queue_get_429_and_the_queued_one_is_served(graph, client):
    def ask(number: int) -> httpx.Response:
        body = {"text": TEXT, "session_id": f"crowd-{number}", "stream": number % 2 == 0}
        return client.post("/speak", json=body)

    with changed(graph, one_at_a_time), concurrent.futures.ThreadPoolExecutor(6) as pool:
        busy = {"text": LONG, "session_id": "busy", "stream": True}
        with client.stream("POST", "/speak", json=busy) as running:
            parts = running.iter_raw()
            next(parts)  # the only place is taken until this client leaves
            asked = [pool.submit(ask, number) for number in range(6)]
            wait_until(lambda: sum(future.done() for future in asked) == 5, "five of six are refused")
        answers = [future.result() for future in asked]
        assert sorted(answer.status_code for answer in answers) == [200, 429, 429, 429, 429, 429]
        refused = [number for number, answer in enumerate(answers) if answer.status_code == 429]
        for number in refused:
            assert answers[number].headers["retry-after"] == "2"
            error = error_of(answers[number])
            assert (error["code"], error["remedy"]) == ("busy", "Try again in a few seconds.")
        assert client.get(f"/sessions/crowd-{refused[0]}").status_code == 404  # nothing was begun
        assert ask(refused[0]).status_code == 200


def test_a_recording_of_140_mb_is_refused_with_an_error_not_a_broken_connection(client):
    size = 140 * 10**6
    header = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += b"\1\0\2\0" + (48_000).to_bytes(4, "little") + (192_000).to_bytes(4, "little") + b"\4\0\20\0"
    data = header + b"data" + size.to_bytes(4, "little") + bytes(size)
    answer = client.post("/speak/audio", params={"session_id": "long"}, content=data)
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_audio"), answer.text
    assert client.get("/sessions/long").status_code == 404


def test_a_key_can_be_required_and_dropped_while_the_graph_runs(graph):
    """The routes are fixed when the class is made, and the key is read in the replica."""
    with httpx.Client(base_url=graph.url, timeout=60) as client:
        with changed(graph, user_config("Ingress", api_keys_env="GRAPH_KEYS")):
            wait_until(lambda: client.get("/sessions").status_code == 401, "a key is required")
            assert client.get("/").status_code == client.get("/healthz").status_code == 200
            assert client.get("/sessions", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
            assert client.post("/login", json={"key": KEY}).status_code == 204
            assert client.get("/sessions").status_code == 200  # by its cookie
            client.cookies.clear()
        wait_until(lambda: client.get("/sessions").status_code == 200, "no key is required")
        assert client.get("/sessions", headers={"Host": "evil.example"}).status_code == 421
        assert speak(client, session_id="open-again")["frames"] > 0
