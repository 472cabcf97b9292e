"""Pages of other origins may read, but not change anything, neither by a form nor by a WebSocket."""

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from deployments.ingress.security.origins import is_same_origin
from tests.support.ingress import SUMMARY, Handle, SpeakEvent, error_of

OTHER = {"origin": "https://evil.example"}


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"host": "127.0.0.1:8000"}, True),  # not a browser
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, True),
        ({"host": "Talk.example", "origin": "https://talk.example"}, True),
        ({"host": "talk.example:443", "origin": "https://talk.example"}, True),
        ({"host": "stage:8000", "x-forwarded-host": "talk.example", "origin": "https://talk.example"}, True),
        ({"host": "a:80", "x-forwarded-host": "b.example, c.example", "origin": "http://c.example"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://localhost:8000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "null"}, False),  # a sandboxed frame
        ({"host": "", "origin": "null"}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000.evil.example"}, False),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site"}, False),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, True),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "none"}, True),  # typed by the user
    ],
)
def test_a_request_comes_from_the_own_page_or_from_another_origin(headers, own):
    assert is_same_origin(headers) is own


def test_single_origins_or_all_can_be_allowed():
    headers = {"host": "here", **OTHER}
    assert is_same_origin(headers, ["https://evil.example"]) and is_same_origin(headers, ["*"])
    assert not is_same_origin(headers, ["https://other.example"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/speak"),
        ("POST", "/speak/audio"),
        ("POST", "/avatars?avatar_id=me"),
        ("POST", "/sessions/alice/say"),
        ("POST", "/sessions/alice/interrupt"),
        ("DELETE", "/sessions/alice"),
        ("GET", "/reset"),
    ],
)
def test_a_changing_request_is_refused_before_any_stage_is_called(serve, method, path):
    stitch, avatars, chat = Handle(), Handle(), Handle()
    answer = serve(stitch, avatars, chat=chat).request(method, path, headers=OTHER)
    assert (answer.status_code, error_of(answer)["code"]) == (403, "cross_origin")
    assert stitch.calls == avatars.calls == chat.calls == []


def test_an_image_on_another_page_cannot_reset_a_session(serve):
    stitch = Handle()
    answer = serve(stitch).get("/reset", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403 and stitch.calls == []


def test_other_pages_may_read_and_the_own_page_may_do_everything(serve):
    stitch = Handle(sessions=("alice",), speak=[SpeakEvent(summary=SUMMARY)])
    client = serve(stitch)
    assert client.get("/sessions", headers=OTHER).status_code == 200
    own = {"origin": "http://testserver"}
    assert client.post("/speak", json={"text": "Hello."}, headers=own).status_code == 200


def test_a_websocket_from_another_origin_is_refused_unless_allowed(serve):
    stitch = Handle(session={})
    client: TestClient = serve(stitch)
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/sessions/alice/ws", headers=OTHER):
        pass
    assert refused.value.code == 1008 and stitch.calls == []
    client = serve(stitch, config={"allowed_origins": ["https://evil.example"]})
    with client.websocket_connect("/sessions/alice/ws", headers=OTHER) as socket:
        assert socket.receive_json()["type"] == "ready"
