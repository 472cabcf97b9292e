"""A text with parts that the voice cannot read: each way to send it speaks the rest and gives the same warnings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.whole_server import whole_server

MIXED = (
    "Hello there.\n\n你好吗？今天天气很好。\n\n```\nx = 1\n```\n\n★ ★\n\nIt is Tolstoy (Толстой)."
    "\n\n---\n\nGood bye. 😀"
)
SPOKEN = ["Hello there.", "It is Tolstoy.", "Good bye."]
WARNINGS = {
    'Skipped "你好吗?" and 1 more passage: each is written in Chinese script, which the voice cannot read.',
    'Skipped "``` x = 1 ```": it is a block of code, which is not spoken.',
    'Skipped "★ ★": it has no letter or digit, so there is nothing to speak.',
    'Skipped "(Толстой).": it is written in Cyrillic script, which the voice cannot read.',
}
UNREADABLE = "你好吗？\n\n```\nx = 1\n```\n\n★ ★"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        home: Path = tmp_path_factory.mktemp("home")
        with whole_server(monkeypatch, home) as started:
            yield started


def by_speak(client: TestClient, text: str) -> dict[str, Any]:
    return client.post("/speak", json={"text": text, "session_id": "mixed"}).json()


def by_say(client: TestClient, text: str) -> dict[str, Any]:
    return client.post("/sessions/mixed/say", content=text.encode()).json()


def by_stream(client: TestClient, text: str) -> dict[str, Any]:
    answer = client.post("/speak", json={"text": text, "session_id": "mixed", "stream": True})
    return answer.json() if answer.status_code != 200 else client.get("/sessions/mixed").json()["last"]


def by_socket(client: TestClient, text: str, *commands: dict[str, Any]) -> dict[str, Any]:
    client.post("/sessions", json={"session_id": "mixed"})
    with client.websocket_connect("/sessions/mixed/ws") as socket:
        for command in commands or ({"type": "speak", "text": text},):
            socket.send_json(command)
        while (event := socket.receive_json())["type"] not in ("done", "failed"):
            pass
    return {"error": event["error"]} if event["type"] == "failed" else event["summary"]


def by_socket_in_parts(client: TestClient, text: str) -> dict[str, Any]:
    letters = [{"type": "text", "text": c} for c in text]
    return by_socket(client, text, *letters, {"type": "text", "last": True})


WAYS = [by_speak, by_say, by_stream, by_socket, by_socket_in_parts]


@pytest.mark.parametrize("way", WAYS)
def test_the_rest_is_spoken_with_warnings(client: TestClient, way: Any) -> None:
    summary = way(client, MIXED)
    assert {warning.replace("？", "?") for warning in summary["warnings"]} == WARNINGS
    utterance = client.get("/sessions/mixed").json()["utterances"][-1]
    assert [sentence["text"] for sentence in utterance["sentences"]] == SPOKEN
    client.delete("/sessions/mixed")


@pytest.mark.parametrize("way", WAYS)
def test_a_text_of_which_nothing_can_be_read_is_refused_with_the_reason(client: TestClient, way: Any) -> None:
    error = way(client, UNREADABLE)["error"]
    assert error["code"] == "bad_text"
    assert error["message"] == "The text is written in Chinese script, which the voice cannot read."
    client.delete("/sessions/mixed")


def test_a_sound_alone_has_the_warnings_in_a_header(client: TestClient) -> None:
    answer = client.post("/v1/audio/speech", json={"input": MIXED, "response_format": "wav"})
    assert answer.status_code == 200 and set(json.loads(answer.headers["X-WarmTalk-Warnings"])) == WARNINGS
    plain = client.post("/v1/audio/speech", json={"input": "Hello.", "response_format": "wav"})
    assert "X-WarmTalk-Warnings" not in plain.headers
    refused = client.post("/v1/audio/speech", json={"input": UNREADABLE})
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "bad_text"
