"""Requests that the ingress refuses before it calls any stage: too large, malformed, or with unknown options."""

import pytest

from deployments.common.messages import SpeakEvent
from models.recognition.base import Transcript
from tests.support.ingress import SUMMARY, Handle, error_of
from tests.support.small_disk import MountedDisk, mounted_disk
from tests.support.uploads import left_uploads

__all__ = ["mounted_disk"]


@pytest.mark.parametrize("field", ["session_id", "avatar_id"])
@pytest.mark.parametrize("value", ["../etc", "A", "", "a/b", "a" * 65])
def test_an_id_that_could_be_a_path_is_refused(serve, field, value):
    stitch, chat = Handle(), Handle()
    client = serve(stitch, chat=chat)
    for path, text in (("/speak", "text"), ("/chat", "message")):
        answer = client.post(path, json={text: "Hello.", field: value})
        assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_id")
    assert stitch.calls == chat.calls == []


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("/speak/audio?sesion_id=alice", "Did you mean 'session_id'? The options are"),
        ("/avatars?avatar_id=me&bbox_shft=3", "Did you mean 'bbox_shift'?"),
        ("/sessions/alice/say?speeed=1.5", "Did you mean 'speed'?"),
        ("/speak?stream=true", "has no options."),  # there it belongs to the body
    ],
)
def test_a_misspelt_option_of_a_post_is_refused_and_not_ignored(serve, address, near):
    """Otherwise the speech would go to another session in silence, for instance."""
    stitch, avatars = Handle(), Handle()
    answer = serve(stitch, avatars).post(address, content=b'{"text": "Hello."}')
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_input")
    assert near in error_of(answer)["remedy"] and "has no option" in error_of(answer)["message"]
    assert stitch.calls == avatars.calls == []


def test_a_get_may_have_any_query(serve):
    """Pages add a number, so that a browser does not use a cached response."""
    assert serve(Handle(stats={})).get("/healthz?t=17").status_code == 200


def test_an_upload_beyond_its_limit_is_refused(serve):
    stitch, avatars = Handle(), Handle()
    client = serve(stitch, avatars, {"max_upload_mb": 0.5})
    for path, query in (("/speak/audio", {}), ("/avatars", {"avatar_id": "me"})):
        answer = client.post(path, params=query, content=b"x" * (2**19 + 1))
        assert (answer.status_code, error_of(answer)["message"]) == (413, "The upload exceeds 0.5 MB.")
    assert stitch.calls == avatars.calls == []
    assert left_uploads() == []


def test_an_upload_of_exactly_the_limit_is_accepted(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    answer = serve(stitch, config={"max_upload_mb": 0.5}).post("/speak/audio", content=b"x" * 2**19)
    assert answer.status_code == 200 and len(stitch.uploads[0]) == 2**19 and left_uploads() == []


def test_json_beyond_its_limit_is_refused(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    client = serve(stitch, config={"max_json_kb": 4})
    answer = client.post("/speak", json={"text": "a" * 4096})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "http_413")
    assert error_of(answer)["message"] == "The request exceeds 4 KB." and error_of(answer)["remedy"]
    assert client.post("/speak", json={"text": "a" * 4000}).status_code == 200
    assert len(stitch.calls) == 1


def test_an_empty_upload_is_refused(serve):
    client = serve()
    for path in ("/speak/audio", "/avatars?avatar_id=me"):
        assert error_of(client.post(path))["message"] == "The request has no body."


def test_an_upload_may_be_larger_than_json(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    answer = serve(stitch, config={"max_json_kb": 4}).post("/speak/audio", content=b"x" * 10_000)
    assert answer.status_code == 200 and len(stitch.calls) == 1


class Heard:
    value = Transcript("Hello.", "en", 1.0)


@pytest.mark.parametrize("path", ["/speak/audio", "/avatars?avatar_id=me", "/v1/audio/transcriptions"])
def test_an_upload_that_does_not_fit_is_507_and_leaves_nothing(serve, monkeypatch, mounted_disk: MountedDisk, path):
    monkeypatch.setenv("WARMTALK_HOME", str(mounted_disk.root))
    stage = Handle(speak=[SpeakEvent(summary=SUMMARY)], prepare=[{"report": {}}], transcribe=Heard())
    client = serve(stitch=stage, avatars=stage, recognize=stage)

    def send(size: int):
        data = bytes(size)
        body = {"files": {"file": ("a.wav", data)}} if "transcriptions" in path else {"content": data}
        return client.post(path, **body)

    answer = send(6 * 2**20)
    assert (answer.status_code, error_of(answer)["code"]) == (507, "disk_full")
    assert "The disk is full" in error_of(answer)["message"] and stage.calls == [] and left_uploads() == []
    assert send(2**20).status_code == 200 and left_uploads() == []
