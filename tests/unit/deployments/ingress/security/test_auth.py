"""Authentication by header, cookie or token, on every route but the public ones."""

import pytest
from starlette.testclient import TestClient

from deployments.common.messages import SoundPart
from deployments.ingress.app import api
from deployments.ingress.readiness import ReadinessProbe
from deployments.ingress.security.auth import COOKIE
from models.errors import ConfigError
from models.stitch.session import SessionFile
from tests.support.ingress import SUMMARY, Handle, SpeakEvent, error_of, run_now
from tests.support.live import SPEC, fragments, levels

KEY, OTHER = "0123456789abcdef-one", "0123456789abcdef-two"
BEARER = {"Authorization": f"Bearer {KEY}"}
PUBLIC = {"/login", "/healthz", "/readyz"}


@pytest.fixture
def locked(serve, monkeypatch):
    """locked(stitch, …) → a client of a server that requires a key."""
    monkeypatch.setenv("MY_KEYS", f"{KEY} {OTHER}")
    return lambda *stages, **options: serve(*stages, **{"config": {"api_keys_env": "MY_KEYS"}, **options})


def paths() -> list[tuple[str, str]]:
    """(method, path) of every route, with example ids."""
    ids = {"session_id": "alice", "job_id": "j1", "avatar_id": "ann", "peer_id": "p1", "model": "m1"}
    found = [("HEAD", "/sessions/alice/video.mp4"), ("GET", "/docs"), ("GET", "/redoc"), ("GET", "/openapi.json")]
    for path, methods in api.openapi()["paths"].items():
        found += [(method.upper(), path.format(**ids)) for method in methods]
    return found


def test_every_route_but_the_public_ones_requires_a_key(locked):
    stages = [Handle() for _ in range(4)]
    client = locked(stages[0], stages[1], tts=stages[2], chat=stages[3])
    asked = [(method, path) for method, path in paths() if path not in PUBLIC]
    assert len(asked) > 25
    for method, path in asked:
        answer = client.request(method, path)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == 'Bearer realm="warmtalk"'
        if method != "HEAD":
            assert error_of(answer)["code"] == "unauthorized" and "Bearer" in error_of(answer)["remedy"]
    assert [stage.calls for stage in stages] == [[]] * 4


def test_the_page_its_files_and_the_health_check_are_public(locked):
    client = locked(Handle(stats={}))
    client.replica._readiness = ReadinessProbe(dict)
    assert client.get("/readyz").status_code == 503
    for path in ("/", "/web/app.js", "/healthz"):
        assert client.get(path).status_code == 200, path
    assert client.post("/", headers={"origin": "http://testserver"}).status_code == 401
    assert client.get("/web/../sessions").status_code == client.get("/webby").status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", "Bearer ", "Bearer", f"Basic {KEY}", KEY, f"Bearer {KEY} {KEY}",
        "Bearer é",
    ],
)  # fmt: skip
def test_a_wrong_key_is_reported_as_an_invalid_token(locked, header):
    answer = locked().get("/sessions", headers={"Authorization": header.encode("latin-1")})
    assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer realm="warmtalk", error="invalid_token"'
    assert KEY not in answer.text


def test_any_key_gives_access_in_the_authorization_header(locked):
    client = locked(Handle(sessions=("alice",), speak=[SpeakEvent(summary=SUMMARY)]))
    assert client.get("/sessions", headers=BEARER).json() == ["alice"]
    assert client.get("/sessions", headers={"Authorization": f"bearer  {OTHER}"}).status_code == 200
    assert client.post("/speak", json={"text": "Hello."}, headers=BEARER).status_code == 200


def test_openais_clients_send_the_key_as_their_api_key(locked):
    client = locked(tts=Handle(encoded=[SoundPart(b"ID3")]))
    body = {"model": "tts-1", "input": "Hello.", "voice": "default"}
    assert client.post("/v1/audio/speech", json=body, headers=BEARER).content == b"ID3"
    assert client.post("/v1/audio/speech", json=body).status_code == 401


def test_the_key_itself_is_accepted_neither_in_a_url_nor_as_a_cookie(locked):
    client = locked(Handle(sessions=()))
    for name in ("key", "api_key", "token", "access_token", "authorization"):
        assert client.get("/sessions", params={name: KEY}).status_code == 401
    client.cookies.set(COOKIE, KEY)
    assert client.get("/sessions").status_code == 401


# --- the page


def test_login_sets_a_cookie_that_scripts_and_other_sites_cannot_use(locked):
    client = locked(Handle(sessions=("alice",), session={}))
    assert client.post("/login", json={"key": KEY + "x"}).status_code == 401
    answer = client.post("/login", json={"key": KEY})
    kept = answer.headers["set-cookie"]
    assert answer.status_code == 204 and answer.content == b"" and KEY not in kept
    assert "HttpOnly" in kept and "SameSite=strict" in kept and "Path=/" in kept and "Secure" not in kept
    assert f"Max-Age={30 * 86400};" in kept
    assert client.get("/sessions").json() == ["alice"]
    with client.websocket_connect("/sessions/alice/ws") as socket:
        assert socket.receive_json()["type"] == "ready"
    assert client.delete("/login").status_code == 204
    assert client.get("/sessions").status_code == 401


def test_the_cookie_is_secure_over_https_also_behind_a_proxy(locked):
    client = locked()
    for headers in ({"x-forwarded-proto": "https"}, {"x-forwarded-proto": "https, http"}):
        assert "Secure" in client.post("/login", json={"key": KEY}, headers=headers).headers["set-cookie"]
    client.base_url = "https://testserver"
    assert "Secure" in client.post("/login", json={"key": KEY}).headers["set-cookie"]


def test_a_page_of_another_origin_cannot_log_in(locked):
    answer = locked().post("/login", json={"key": KEY}, headers={"origin": "https://evil.example"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "cross_origin")


def test_a_malformed_login_is_refused(locked):
    client = locked()
    for body in ({}, {"key": 1}, {"key": KEY, "more": 1}, {"key": "k" * 2000}):
        assert error_of(client.post("/login", json=body))["code"] == "bad_input"


def test_a_server_without_keys_accepts_any_login_and_signs_nothing(serve):
    answer = serve().post("/login", json={"key": "whatever"})
    assert answer.status_code == 204 and "set-cookie" not in answer.headers
    refused = serve().post("/sessions/alice/token")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "bad_config")


# --- WebSockets and tokens


def test_a_websocket_without_a_key_gets_the_reason_before_it_is_closed(locked):
    client: TestClient = locked(stitch := Handle(session={}))
    with client.websocket_connect("/sessions/alice/ws") as socket:
        event = socket.receive_json()
        assert (event["type"], event["error"]["code"]) == ("failed", "unauthorized")
        assert socket.receive()["code"] == 4401
    assert stitch.calls == []
    with client.websocket_connect("/sessions/alice/ws", headers=BEARER) as socket:
        assert socket.receive_json()["type"] == "ready"


def token_of(client, session_id: str = "alice", **options) -> str:
    answer = client.post(f"/sessions/{session_id}/token", params=options, headers=BEARER)
    assert answer.status_code == 201, answer.text
    return answer.json()["token"]


def test_a_watch_token_reads_its_session_and_nothing_else(locked):
    missing = Handle(session={"session_id": "alice"}, sessions=(), interrupt={})
    client = locked(missing, chat=Handle(interrupt=0))
    token = token_of(client)
    assert client.get("/sessions/alice", params={"token": token}).json() == {"session_id": "alice"}
    for method, path in (
        ("GET", "/sessions/bob"),
        ("GET", "/sessions"),
        ("GET", "/sessions/alice/../bob"),
        ("POST", "/sessions/alice/interrupt"),
        ("POST", "/sessions/alice/say"),
        ("POST", "/sessions/alice/token"),
        ("POST", "/sessions/alice/close"),
        ("DELETE", "/sessions/alice"),
        ("POST", "/speak"),
        ("GET", "/chat/alice"),
    ):
        assert client.request(method, path, params={"token": token}).status_code == 401, path
    with client.websocket_connect(f"/sessions/alice/ws?token={token}") as socket:
        assert socket.receive_json()["error"]["code"] == "unauthorized"


def test_an_act_token_speaks_in_its_session_but_cannot_delete_it(locked):
    stitch = Handle(session={}, interrupt={"interrupted": 0}, interrupt_nowait=0)
    client = locked(stitch, chat=Handle(interrupt=0))
    token = token_of(client, act=True)
    with client.websocket_connect(f"/sessions/alice/ws?token={token}") as socket:
        assert socket.receive_json()["type"] == "ready"
    assert client.post(f"/sessions/alice/interrupt?token={token}").json() == {"interrupted": 0}
    assert client.get(f"/sessions/alice?token={token}").status_code == 200
    for method, path in (("DELETE", "/sessions/alice"), ("POST", "/sessions/alice/close"), ("GET", "/sessions/bob")):
        assert client.request(method, path, params={"token": token}).status_code == 401
    with client.websocket_connect(f"/sessions/bob/ws?token={token}") as socket:
        assert socket.receive_json()["error"]["code"] == "unauthorized"


def test_a_token_expires(locked, monkeypatch):
    client = locked(Handle(session={}))
    token = token_of(client, minutes=1)
    assert client.get(f"/sessions/alice?token={token}").status_code == 200
    monkeypatch.setattr(client.replica.settings.keys, "_now", lambda: 1e11)
    assert client.get(f"/sessions/alice?token={token}").status_code == 401
    for minutes in (0, -1, 1e9, "nan"):
        assert client.post(f"/sessions/alice/token?minutes={minutes}", headers=BEARER).status_code == 422
    assert client.post("/sessions/A/token", headers=BEARER).status_code == 422


def test_the_urls_of_a_playlist_carry_its_token(locked, tmp_path):
    session = SessionFile(tmp_path / "results" / "sessions" / "alice", SPEC)
    session.start_utterance("Words.")
    for fragment in fragments(levels(30)):
        session.append(fragment)
    session.end_utterance()
    facts = {"video_path": str(session.path), "video_tag": session.video_tag, "size": session.size}
    client = locked(Handle(session=facts))
    token = token_of(client)
    listed = client.get(f"/sessions/alice/index.m3u8?token={token}").text
    urls = [line for line in listed.splitlines() if line.startswith("video.mp4")]
    assert len(urls) == 1 and f'URI="{urls[0]}"' in listed and urls[0].endswith(f"&token={token}")
    assert client.get(f"/sessions/alice/{urls[0]}").status_code == 200
    assert client.get(f"/sessions/alice/{urls[0].partition('&')[0]}").status_code == 401


def test_a_missing_key_variable_is_a_config_error(serve, monkeypatch):
    monkeypatch.delenv("MY_KEYS", raising=False)
    with pytest.raises(ConfigError, match="MY_KEYS"):
        serve(config={"api_keys_env": "MY_KEYS"})


def test_a_removed_key_and_its_cookies_stop_working_at_once(locked, monkeypatch):
    client = locked(Handle(sessions=()))
    client.post("/login", json={"key": KEY})
    assert client.get("/sessions").status_code == 200
    monkeypatch.setenv("MY_KEYS", OTHER)
    run_now(client.replica.reconfigure({"api_keys_env": "MY_KEYS"}))
    assert client.get("/sessions").status_code == client.get("/sessions", headers=BEARER).status_code == 401
