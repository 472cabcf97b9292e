"""What a real graph refuses, with which errors: requests, recordings, uploads that break off."""

import json
import socket
import time

import psutil
import pytest

from tests.graph.media import silence, wav
from tests.graph.processes import command_lines
from tests.graph.requests import error_of, speak, wait_until

pytestmark = pytest.mark.ray


def test_an_upload_without_a_face_is_refused_and_leaves_nothing(client):
    answer = client.post("/avatars", params={"avatar_id": "noface"}, content=b"no video at all")
    events = [json.loads(line) for line in answer.text.splitlines()]
    error = events[-1]["error"]
    assert error["code"] == "bad_video"
    assert "noface" not in [facts["avatar_id"] for facts in client.get("/avatars").json()]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"text": ""}, 422, "bad_input"),
        ({"text": "   "}, 422, "bad_input"),
        ({"text": "🎉🎉"}, 422, "bad_text"),
        ({"text": "word " * 1000}, 422, "bad_text"),
        ({"text": "a" * 10_000_000}, 413, "http_413"),
        ({"text": "\x00\x07\x1b"}, 422, "bad_input"),  # nothing remains of it
        ({"text": "مرحبا بالعالم"}, 422, "bad_text"),
        ({"text": "Hello.", "session_id": "../etc"}, 422, "bad_id"),
        ({"text": "Hello.", "avatar_id": "nobody"}, 404, "avatar_not_found"),
        ({"text": "Hello.", "colour": "red"}, 422, "bad_input"),
        ({"text": "Hello.", "speed": 9}, 422, "bad_input"),
        ({}, 422, "bad_input"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_has_a_code_a_sentence_and_a_remedy(client, body, status, code, stream):
    answer = client.post("/speak", json={**body, "session_id": body.get("session_id", "bad"), "stream": stream})
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["message"].endswith(".") and error["remedy"]


def test_a_bad_request_leaves_no_session_behind(client):
    client.post("/speak", json={"text": "🎉🎉", "session_id": "untouched"})
    facts = client.get("/sessions/untouched")
    assert facts.status_code == 404 or facts.json()["frames"] == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "bad_input"),
        (b"not a sound file", "bad_audio"),
        (wav(1.0)[:60], "bad_audio"),
        (silence(0), "bad_audio"),
        (silence(3600), "bad_audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), "bad_audio"),
    ],
    ids=["none", "text", "cut", "zero", "hour", "picture"],
)
def test_a_bad_recording_is_refused_with_an_error(client, data, code):
    answer = client.post("/speak/audio", params={"session_id": "bad"}, content=data)
    assert (answer.status_code, error_of(answer)["code"]) == (422, code)


def test_characters_that_cannot_be_spoken_are_left_out(client):
    said = speak(client, "Hello \u202e\x07 world 🎉 שלום!", session_id="odd")
    assert said["frames"] > 15
    half_a_pair = rb'{"text": "Hello \ud800 world!", "session_id": "odd"}'
    answer = client.post("/speak", content=half_a_pair, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 and answer.json()["frames"] > 15, answer.text


@pytest.mark.parametrize("path", ["/speak/audio?session_id=half", "/avatars?avatar_id=half"])
def test_an_upload_that_breaks_off_leaves_nothing(client, graph, path):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection((graph.host, graph.port), 10) as connection:
        connection.sendall(head.encode() + b"RIFF" + bytes(1000))
        time.sleep(0.3)  # the server has begun to read
    uploads = graph.home / "results" / "uploads"
    wait_until(lambda: list(uploads.rglob("The upload")) == [], "the upload is removed")
    assert "half" not in client.get("/sessions").json()
    assert "half" not in [facts["avatar_id"] for facts in client.get("/avatars").json()]


def test_malformed_json_is_refused_with_an_error(client):
    answer = client.post("/speak", content=b"{not json", headers={"Content-Type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_input")


def test_an_unknown_session_and_an_unknown_path_are_404(client):
    answer = client.get("/sessions/nobody/video.mp4")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "session_not_found")
    assert error_of(client.get("/nowhere"))["code"] == "http_404"


def test_no_port_is_open_to_other_machines(client):
    """A client that reaches a port of Ray or of a replica can run any code."""
    processes = {psutil.Process().pid: "this process", **command_lines()}
    addresses = {
        (c.laddr.ip, processes[c.pid])
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.pid in processes
    }
    open_ones = {(ip, name) for ip, name in addresses if not ip.removeprefix("::ffff:").startswith("127.")}
    assert len(addresses) > 10 and open_ones == set()
