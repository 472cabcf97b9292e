"""What the ingress refuses before any stage is asked: bodies that are too large, broken off, or not what was meant."""

import asyncio
import json

import pytest

from deployments.common.messages import SpeakEvent
from deployments.ingress import responses as http
from tests.support.ingress import SUMMARY, Handle, error_of, half_sent


@pytest.mark.parametrize("field", ["session_id", "avatar_id"])
@pytest.mark.parametrize("value", ["../etc", "A", "", "a/b", "a" * 65])
def test_an_id_that_could_be_a_path_never_leaves_the_ingress(serve, field, value):
    stitch = Handle()
    answer = serve(stitch).post("/speak", json={"text": "Hello.", field: value})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_id")
    assert stitch.asked == []


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("/speak/audio?sesion_id=alice", "Did you mean 'session_id'? It has session_id, avatar_id"),
        ("/avatars?avatar_id=me&bbox_shft=3", "Did you mean 'bbox_shift'?"),
        ("/sessions/alice/say?speeed=1.5", "Did you mean 'speed'?"),
        ("/speak?stream=true", "It has none."),  # there it belongs into the body
    ],
)
def test_an_option_that_is_misspelt_is_refused_and_not_passed_over(serve, address, near):
    """It would speak into another session, or prepare another way, and nobody would know."""
    stitch, avatars = Handle(), Handle()
    answer = serve(stitch, avatars).post(address, content=b'{"text": "Hello."}')
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_input")
    assert near in error_of(answer)["remedy"] and "has no option" in error_of(answer)["message"]
    assert stitch.asked == avatars.asked == []


def test_what_only_asks_may_be_told_apart_by_a_number(serve):
    """As pages do, so that a browser does not take an old answer."""
    assert serve(Handle(stats={})).get("/healthz?t=17").status_code == 200


def test_an_upload_beyond_its_limit_is_refused(serve, tmp_path):
    stitch, avatars = Handle(), Handle()
    client = serve(stitch, avatars, {"max_upload_mb": 0.5})
    for path, query in (("/speak/audio", {}), ("/avatars", {"avatar_id": "me"})):
        answer = client.post(path, params=query, content=b"x" * (2**19 + 1))
        assert (answer.status_code, error_of(answer)["message"]) == (413, "The upload exceeds 0.5 MB.")
    assert stitch.asked == avatars.asked == []
    assert list((tmp_path / "results" / "uploads").iterdir()) == []


def test_an_upload_of_the_limit_is_taken(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    answer = serve(stitch, config={"max_upload_mb": 0.5}).post("/speak/audio", content=b"x" * 2**19)
    assert answer.status_code == 200 and len(stitch.asked[0][1][0].audio) == 2**19


@pytest.mark.parametrize("path", ["/speak", "/speak/audio", "/avatars?avatar_id=me", "/sessions/alice/say"])
def test_a_request_that_is_half_sent_and_held_open_is_given_up(serve, monkeypatch, tmp_path, path):
    monkeypatch.setattr(http, "PAUSE_S", 0.1)
    stitch, avatars = Handle(speak=[], feed=None), Handle()
    serve(stitch, avatars)
    status, body = asyncio.run(half_sent(path, b'{"text": "Hel'))
    assert status == 408 and json.loads(body)["error"]["message"] == "Nothing more of the request came for 0.1 s."
    assert avatars.asked == [] and all(stream.cancelled for stream in stitch.made)
    assert not list((tmp_path / "results" / "uploads").glob("*"))


@pytest.mark.parametrize("path", ["/speak", "/speak/audio", "/avatars?avatar_id=me"])
def test_a_request_that_comes_byte_by_byte_is_given_up(serve, monkeypatch, tmp_path, path):
    """Eight of them would take all places of uploads, for days."""
    monkeypatch.setattr(http, "PAUSE_S", 0.3)
    serve(Handle(speak=[]), Handle())
    status, body = asyncio.run(half_sent(path, b" ", drips_s=0.05))
    assert (status, json.loads(body)["error"]["message"]) == (408, "The request comes at less than 8 KB/s.")
    assert not list((tmp_path / "results" / "uploads").glob("*"))


def test_a_text_that_is_being_written_may_come_as_slowly_as_it_likes(serve, monkeypatch):
    monkeypatch.setattr(http, "PAUSE_S", 0.3)
    serve(Handle(speak=[SpeakEvent(summary=SUMMARY)], feed=None))
    assert asyncio.run(half_sent("/sessions/alice/say", b"a ", drips_s=0.05, drips=12))[0] == 200


def test_a_client_that_leaves_half_way_leaves_no_file(serve, tmp_path):
    avatars = Handle()
    serve(avatars=avatars)
    asyncio.run(half_sent("/avatars?avatar_id=me", b"RIFF", leaves=True))
    assert avatars.asked == [] and list((tmp_path / "results" / "uploads").iterdir()) == []


def test_so_many_files_are_received_at_a_time(serve, monkeypatch):
    monkeypatch.setattr(http, "PAUSE_S", 0.5)
    serve(Handle(), config={"max_uploads": 2})

    async def several():
        return await asyncio.gather(*(half_sent("/speak/audio", b"RIFF") for _ in range(5)))

    assert sorted(status for status, _ in asyncio.run(several())) == [408, 408, 429, 429, 429]
    assert [status for status, _ in asyncio.run(several())].count(408) == 2  # the places are free again


def test_json_beyond_its_limit_is_refused_while_it_comes(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    client = serve(stitch, config={"max_json_kb": 4})
    answer = client.post("/speak", json={"text": "a" * 4096})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "http_413")
    assert error_of(answer)["message"] == "The request exceeds 4 KB." and error_of(answer)["remedy"]
    assert client.post("/speak", json={"text": "a" * 4000}).status_code == 200
    assert len(stitch.asked) == 1


def test_an_empty_upload_is_refused(serve):
    client = serve()
    for path in ("/speak/audio", "/avatars?avatar_id=me"):
        assert error_of(client.post(path))["message"] == "The request has no body."


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", b"{"),
        ("/chat", b"[]"),
        ("/chat", b""),
        ("/chat", b'{"message": 1}'),
        ("/chat", b'{"text": "Hi"}'),
        ("/chat", b'{"message": "Hi", "speed": 9}'),
        ("/chat", b"\xff\xfe"),
        ("/speak", b"{"),
        ("/speak", b"null"),
        ("/speak", b'{"text": ["Hi"]}'),
        ("/speak", b'{"text": "Hi", "enhanse": true}'),
    ],
)
def test_malformed_json_is_a_sentence(serve, path, body):
    chat, stitch = Handle(), Handle()
    answer = serve(stitch, chat=chat).post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and error_of(answer)["code"] == "bad_input"
    assert chat.asked == stitch.asked == []


@pytest.mark.parametrize(("path", "key"), [("/chat", "message"), ("/speak", "text"), ("/v1/audio/speech", "input")])
def test_ten_megabytes_of_text_are_refused_before_they_fill_the_memory(serve, path, key):
    chat, stitch, tts = Handle(), Handle(), Handle()
    answer = serve(stitch, chat=chat, tts=tts).post(path, json={key: "word " * 2_000_000})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "http_413")
    assert chat.asked == stitch.asked == tts.asked == []


@pytest.mark.parametrize("field", ["session_id", "avatar_id"])
def test_a_chats_ids_never_leave_the_ingress(serve, field):
    chat = Handle()
    answer = serve(chat=chat).post("/chat", json={"message": "Hi", field: "../etc"})
    assert (answer.status_code, error_of(answer)["code"], chat.asked) == (422, "bad_id", [])
