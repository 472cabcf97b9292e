"""Bad input on every route: the response has a status, a code, a message and a remedy, and is never a 500.

The stages are real, except for their models (tests/support/whole_server.py). Timeouts: test_body_timeouts.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import wave
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from deployments.ingress import body_limit
from deployments.ingress.app import api
from tests.support.ingress import error_of, finish_background, send_partly
from tests.support.uploads import left_uploads
from tests.support.whole_server import whole_server

JSON = {"Content-Type": "application/json"}
TEXTS = {"/speak": "text", "/chat": "message", "/v1/audio/speech": "input"}  # routes of a JSON body, and its text


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch, whole_server(patch, tmp_path_factory.mktemp("home")) as client:
        assert client.post("/speak", json={"text": "Hello there.", "session_id": "alice"}).status_code == 200
        yield client


def refused(answer: Any, status: int, code: str) -> str:
    """The message of the error in a response, which has this status and code, is short, and has a remedy."""
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code), error
    assert error["remedy"].endswith(".") and len(answer.content) < 700
    return str(error["message"])


def wav(seconds: float, rate_hz: int = 8000) -> bytes:
    file = io.BytesIO()
    with contextlib.closing(wave.open(file, "wb")) as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(b"\x10\x20" * int(seconds * rate_hz))
    return file.getvalue()


# --- JSON

MALFORMED = {
    "empty": (b"", "Field required"),
    "cut": (b'{"KEY": "Hi', "not JSON"),
    "bytes": (b"\xff\xfe\x00", "JSON"),
    "a control character in a string": (b'{"KEY": "a\x01b"}', "not JSON"),
    "half a surrogate as a name": (b'{"\\ud800": 1}', "not valid"),
    "a list": (b"[]", "not a JSON object"),
    "a number": (b"1", "not a JSON object"),
    "a number of 5000 digits": (b'{"KEY": "Hi", "speed": ' + b"9" * 5000 + b"}", "cannot be read"),
    "100 000 brackets": (b"[" * 100_000, "cannot be read"),
    "infinity": (b'{"KEY": "Hi", "speed": 1e999}', "less than or equal to 2"),
    "not a number": (b'{"KEY": "Hi", "speed": NaN}', "less than or equal to 2"),
    "a text that is a list": (b'{"KEY": ["Hi"]}', "valid string"),
    "null": (b'{"KEY": null}', "valid string"),
}


@pytest.mark.parametrize("route", TEXTS)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_json_is_refused(client: TestClient, route: str, name: str) -> None:
    body, said = MALFORMED[name]
    answer = client.post(route, content=body.replace(b"KEY", TEXTS[route].encode()), headers=JSON)
    if name == "half a surrogate as a name" and route == "/v1/audio/speech":  # OpenAI's clients may send other fields
        said = "Field required"
    assert said in refused(answer, 422, "bad_input")


@pytest.mark.parametrize("route", ["/speak", "/chat", "/sessions"])
def test_unknown_fields_are_named_briefly(client: TestClient, route: str) -> None:
    answer = client.post(route, json={"k" * 100_000: 1})
    assert "kkk…: Extra inputs are not permitted" in refused(answer, 422, "bad_input")
    many = refused(client.post(route, json={f"k{n}": 1 for n in range(1000)}), 422, "bad_input")
    assert "and 99" in many and many.endswith(" more.")


def test_the_last_of_duplicate_fields_counts(client: TestClient) -> None:
    client.post("/speak", content=b'{"text": "First one.", "text": "Second one.", "session_id": "twice"}', headers=JSON)
    assert [line["text"] for line in client.get("/sessions/twice").json()["utterances"]] == ["Second one."]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
def test_for_another_content_type_the_remedy_names_the_right_one(client: TestClient, kind: str) -> None:
    answer = client.post("/speak", content=b'{"text": "Hi"}', headers={"Content-Type": kind})
    refused(answer, 422, "bad_input")
    assert "Content-Type: application/json" in error_of(answer)["remedy"]


def test_randomly_damaged_bodies_are_answered(client: TestClient) -> None:
    dice, statuses = random.Random(1), set()
    for _ in range(200):
        body = bytearray(b'{"text": "Hello there", "session_id": "alice", "speed": 1.0, "enhance": null}')
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(body))
            body[place : place + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 3))
        answer = client.post(dice.choice([*TEXTS, "/sessions"]), content=bytes(body), headers=JSON)
        statuses.add(answer.status_code)
        if answer.status_code >= 400:
            error_of(answer)
    assert statuses <= {200, 201, 409, 422, 429}, statuses


def test_every_route_answers_random_input(client: TestClient) -> None:
    dice, ids = (
        random.Random(2),
        {"session_id": "nobody", "job_id": "j1", "avatar_id": "nobody", "peer_id": "p1", "model": "m1"},
    )
    kinds = [{}, JSON, {"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Type": b"\xe9"}]
    names = ("speed", "force", "tag", "size", "minutes")
    for path, methods in api.openapi()["paths"].items():
        for method in methods if path != "/readyz" else ():  # 503 without Serve's controller: test_readiness.py
            for headers in kinds:
                query = {name: dice.randbytes(8).decode("latin-1") for name in names}
                content = {} if method in ("get", "head") else {"content": dice.randbytes(300)}
                answer = client.request(method, path.format(**ids), params=query, headers=headers, **content)
                assert answer.status_code < 500 or answer.status_code == 501, (method, path, answer.text)
                if answer.status_code >= 400:
                    error_of(answer)


# --- texts

BAD_TEXTS = {
    "nothing": ("", 422, "(bad_input|bad_text)"),
    "blanks": (" \n\t ", 422, "(bad_input|bad_text)"),
    "control characters": ("\x00\x01\x1b", 422, "(bad_input|bad_text)"),
    "over the cap": ("word " * 3000, 422, "bad_text"),
    "ten megabytes": ("word " * 2_000_000, 413, "http_413"),
}
UNSPOKEN = {"right to left": "שלום עולם", "emoji": "😀😀", "halves of characters": "\udfff\ud800"}


@pytest.mark.parametrize("route", TEXTS)
@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_text_that_cannot_be_spoken_is_refused(client: TestClient, route: str, name: str) -> None:
    text, status, codes = BAD_TEXTS[name]
    answer = client.post(route, content=json.dumps({TEXTS[route]: text}).encode(), headers=JSON)
    code = error_of(answer)["code"]
    assert code in codes and refused(answer, status, code)


@pytest.mark.parametrize("route", ["/speak", "/v1/audio/speech"])
@pytest.mark.parametrize("name", UNSPOKEN)
def test_a_text_without_words_for_the_voice_is_refused(client: TestClient, route: str, name: str) -> None:
    answer = client.post(route, content=json.dumps({TEXTS[route]: UNSPOKEN[name]}).encode(), headers=JSON)
    code = error_of(answer)["code"]
    assert code in ("bad_text", "bad_input") and refused(answer, 422, code)


@pytest.mark.parametrize(("name", "status"), [("right to left", 200), ("emoji", 200), ("halves of characters", 422)])
def test_a_chat_message_may_be_in_any_script_but_must_be_valid_unicode(
    client: TestClient, name: str, status: int
) -> None:
    body = json.dumps({"message": UNSPOKEN[name], "session_id": f"chat-{status}-{len(name)}"}).encode()
    assert client.post("/chat", content=body, headers=JSON).status_code == status


def test_control_characters_are_removed_from_the_transcript(client: TestClient) -> None:
    body = {"text": "Pay\x00 Ann\x08, \u202enot\u202c Bob 😀.", "session_id": "shown"}
    assert client.post("/speak", json=body).status_code == 200
    assert client.get("/sessions/shown").json()["utterances"][0]["text"] == "Pay Ann, not Bob 😀."
    assert "Pay Ann, not Bob" in client.get("/sessions/shown/captions.vtt").text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "bad_text"),
        (b" \n ", 422, "bad_text"),
        (b"\x00\x01\xed\xa0\x80", 422, "bad_text"),  # half a surrogate in UTF-8
        ("😀".encode(), 422, "bad_text"),
        ("שלום עולם".encode(), 422, "bad_text"),
        (b"word " * 2_000_000, 413, "http_413"),
    ],
)
def test_a_text_stream_has_the_same_limits(client: TestClient, body: bytes, status: int, code: str) -> None:
    refused(client.post("/sessions/alice/say", content=body), status, code)


# --- ids and paths

IDS = ["%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%00b", "A", "a" * 5000, "%ff", "%F0%9F%98%80", "a%0d%0aX:y", "a b"]
BY_ID = [
    ("GET", "/sessions/ID"),
    ("DELETE", "/sessions/ID"),
    ("GET", "/sessions/ID/live.mp4"),
    ("GET", "/sessions/ID/video.mp4"),
    ("HEAD", "/sessions/ID/video.mp4"),
    ("GET", "/sessions/ID/download.mp4"),
    ("GET", "/sessions/ID/index.m3u8"),
    ("GET", "/sessions/ID/captions.vtt"),
    ("GET", "/sessions/ID/sidecar.jsonl"),
    ("POST", "/sessions/ID/say"),
    ("POST", "/sessions/ID/close"),
    ("POST", "/sessions/ID/interrupt"),
    ("POST", "/sessions/ID/whep"),
    ("DELETE", "/sessions/alice/whep/ID"),
    ("GET", "/reset?session_id=ID"),
    ("GET", "/status/ID"),
    ("GET", "/chat/ID"),
    ("GET", "/avatars/ID/poster.jpg"),
    ("DELETE", "/avatars/ID"),
    ("POST", "/avatars?avatar_id=ID"),
    ("POST", "/speak/audio?session_id=ID"),
    ("POST", "/speak/audio?avatar_id=ID"),
    ("POST", "/sessions/alice/say?avatar_id=ID"),
    ("GET", "/web/ID"),
]


@pytest.mark.parametrize(("method", "path"), BY_ID)
def test_no_id_in_a_url_leads_out_of_its_folder(client: TestClient, method: str, path: str) -> None:
    for value in IDS:
        content = {"content": b"Hello"} if method == "POST" else {}
        answer = client.request(method, path.replace("ID", value), **content)
        assert answer.status_code in (404, 422), (path, value, answer.text)
        if method != "HEAD":
            assert "root:" not in answer.text and len(answer.content) < 700


@pytest.mark.parametrize("field", ["session_id", "avatar_id"])
@pytest.mark.parametrize("value", ["../etc", "a\u0000", "\ud800", "A", "", "a" * 100_000])
def test_no_id_in_a_body_leads_out_of_its_folder(client: TestClient, field: str, value: str) -> None:
    for route in ("/speak", "/chat", "/sessions"):
        given = {TEXTS.get(route, "avatar_id"): "presenter", field: value}
        refused(client.post(route, content=json.dumps(given).encode(), headers=JSON), 422, "bad_id")


def test_an_unknown_session_is_404(client: TestClient) -> None:
    for rest in ("", "/live.mp4", "/video.mp4", "/index.m3u8", "/captions.vtt", "/download.mp4", "/sidecar.jsonl"):
        said = refused(client.get(f"/sessions/nobody{rest}"), 404, "session_not_found")
        assert said == "There is no session 'nobody'."
    for rest in ("/close", "/interrupt"):
        refused(client.post(f"/sessions/nobody{rest}"), 404, "session_not_found")
    refused(client.get("/status/nobody"), 404, "not_found")
    assert client.delete("/sessions/nobody").json() == {"session_id": "nobody", "removed": False}
    assert client.get("/chat/nobody").json() == []


# --- files

WRONG = {
    "text": b"hello " * 100,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "random bytes": random.Random(1).randbytes(5000),
    "RIFF and no more": b"RIFF" + bytes(100),
    "a playlist of another file": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n",
    "a script that joins other files": b"ffconcat version 1.0\nfile /etc/passwd\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_the_wrong_type_is_refused(client: TestClient, name: str) -> None:
    answer = client.post("/speak/audio?session_id=heard", content=WRONG[name])
    assert "not audio in a known format" in refused(answer, 422, "bad_audio")
    said = refused(client.post("/avatars?avatar_id=me", content=WRONG[name]), 422, "bad_video")
    assert said.startswith("The upload ")


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 ms"), (0.01, "10 ms"), (3700, "longer than 600 s")])
def test_a_recording_that_is_too_short_or_too_long_is_refused(client: TestClient, seconds: float, said: str) -> None:
    answer = client.post("/speak/audio?session_id=heard", content=wav(seconds))
    assert said in refused(answer, 422, "bad_audio")


def test_a_recording_or_an_empty_body_is_not_an_avatar(client: TestClient) -> None:
    said = refused(client.post("/avatars?avatar_id=me", content=wav(1)), 422, "bad_video")
    assert said == "The upload has sound but no picture."
    for path in ("/speak/audio", "/avatars?avatar_id=me"):
        assert refused(client.post(path), 422, "bad_input") == "The request has no body."


def test_a_truncated_recording_is_spoken_up_to_its_end(client: TestClient) -> None:
    answer = client.post("/speak/audio?session_id=heard", content=wav(2)[: 44 + 16_000])
    assert (answer.status_code, answer.json()["duration_s"]) == (200, 1.0)


def test_refused_uploads_leave_nothing(client: TestClient) -> None:
    assert left_uploads() == [] and "me" not in {a["avatar_id"] for a in client.get("/avatars").json()}


@pytest.mark.parametrize(
    "path",
    [
        "/speak/audio?strength=nan",
        "/speak/audio?enhance=perhaps",
        "/sessions/alice/say?speed=1e999",
        "/sessions/alice/say?speed=-1",
        f"/avatars?avatar_id=me&bbox_shift={'9' * 5000}",
        "/avatars?avatar_id=me&fps=26",
        "/avatars",
    ],
)
def test_a_query_option_out_of_range_is_refused(client: TestClient, path: str) -> None:
    assert "not valid" in refused(client.post(path, content=wav(1)), 422, "bad_input")


@pytest.mark.parametrize("sdp", [b"", b"\xff\xfe" * 100, b"m=video \r\n", b"v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n"])
def test_an_invalid_sdp_offer_is_refused(client: TestClient, sdp: bytes) -> None:
    pytest.importorskip("aiortc")
    headers = {"Content-Type": "application/sdp"}
    refused(client.post("/sessions/alice/whep", content=sdp, headers=headers), 422, "bad_input")
    refused(client.post("/sessions/alice/whep", content=b"m=video " * 10**6, headers=headers), 413, "http_413")


@pytest.mark.parametrize(("wanted", "status"), [("bytes=5-2", 416), ("bytes=x-y", 200), ("bytes=9" * 500, 200)])
def test_an_invalid_range_is_the_whole_file_or_416(client: TestClient, wanted: str, status: int) -> None:
    assert client.get("/sessions/alice/video.mp4", headers={"Range": wanted}).status_code == status


# --- the WebSocket

BAD_MESSAGES = {
    "": "EOF",
    "[" * 60_000: "recursion limit",
    '{"type": "speak"}': "Field required",
    '{"type": "nope"}': "'nope'",
    json.dumps({"type": "k" * 100_000}): "kkk…",
    '{"type": "speak", "text": "\\ud800"}': "hex escape",
    '{"type": "speak", "text": "Hi", "speed": NaN}': "less than or equal to 2",
    '{"type": "played", "pieces": ' + "9" * 5000 + "}": "number out of range",
    '{"type": "speak", "text": "Hi", "id": "' + "i" * 65 + '"}': "at most 64",
    '{"type": "chat", "message": ""}': "The message is empty",
    "x" * 300_000: "exceeds 256 KB",
}


def test_each_websocket_message_is_checked_and_the_connection_stays_open(client: TestClient) -> None:
    with client.websocket_connect("/sessions/alice/ws") as socket:
        assert socket.receive_json()["type"] == "ready"
        for message, said in BAD_MESSAGES.items():
            socket.send_text(message)
            event = socket.receive_json()
            assert event["type"] == "failed" and said in event["error"]["message"], (message[:80], event)
            assert len(json.dumps(event)) < 700 and event["error"]["remedy"]
        for text in ("word " * 3000, "שלום עולם", "😀", " "):
            socket.send_json({"type": "speak", "text": text})
            assert socket.receive_json()["type"] == "started"
            assert socket.receive_json()["error"]["code"] in ("bad_text", "bad_input")
        for sound in (b"", b"x", wav(0), os.urandom(100)):
            socket.send_json({"type": "audio"})
            socket.send_bytes(sound)
            assert socket.receive_json()["type"] == "started"
            assert socket.receive_json()["error"]["code"] in ("bad_audio", "bad_input")
        socket.send_json({"type": "speak", "text": "Still here."})
        assert [socket.receive_json()["type"] for _ in range(2)] == ["started", "done"]


# --- incomplete bodies


@pytest.mark.parametrize("path", ["/avatars?avatar_id=me", "/sessions/alice/say"])
@pytest.mark.parametrize("leaves", [False, True])
def test_an_incomplete_body_leaves_nothing_in_the_stages(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, leaves: bool
) -> None:
    """test_body_timeouts.py has the other routes."""
    errors: list[Any] = []
    ingress = client.stages["Ingress"]
    monkeypatch.setattr(body_limit, "IDLE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(ingress, "config", ingress.config.model_copy(update={"writer_timeout_s": 0.05}))
    monkeypatch.setattr("deployments.common.errors.log.error", lambda *message, **more: errors.append(message))
    status, body = client.portal.call(send_partly, path, b'{"', leaves)
    if leaves:
        assert status in (0, 400, 422, 499)  # nobody reads it
    else:
        assert status == 408 and json.loads(body)["error"]["message"].startswith(("Nothing more of", "No further text"))
        client.portal.call(finish_background, ingress)
    assert errors == []
    stitch = client.stages["Stitch"]
    assert len(stitch._text_streams) == len(stitch._interrupts) == 0
    assert left_uploads() == []


# --- limits


def test_the_number_of_sessions_is_limited(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with whole_server(monkeypatch, tmp_path, Stitch={"max_sessions": 19}) as client:
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        answers = [client.post("/sessions", json={"session_id": f"s{k}"}) for k in range(20)]
        assert [answer.status_code for answer in answers] == [201] * 19 + [507]
        assert "" in refused(answers[-1], 507, "quota")
        assert len(os.listdir("/proc/self/fd")) - files <= 19, "more than one open file per session"  # noqa: PTH208
        assert client.delete("/sessions/s1").json()["removed"] is True
