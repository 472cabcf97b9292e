"""The server answers only for its own host names: safe ones, and those in the config."""

import pytest
from starlette.websockets import WebSocketDisconnect

from deployments.ingress.readiness import ReadinessProbe
from deployments.ingress.security.allowed_hosts import is_allowed_host
from tests.support.ingress import Handle, error_of


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000", "10.1.2.3", "[::1]:8000", "[fe80::1%25eth0]:8000", "localhost", "localhost:8000",
        "LOCALHOST.", "talk.localhost:8000", "gpu-box", "gpu-box:8000", "gpu-box.local",
        "warmtalk-serve-svc.default.svc.cluster.local",
        "warmtalk-serve-svc.default.svc:8000", "ip-10-0-0-1.eu-central-1.compute.internal", "nas.home.arpa", "",
    ],
)  # fmt: skip
def test_addresses_and_names_that_no_stranger_can_register_are_allowed(host):
    assert is_allowed_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "evil.example.", "127.0.0.1.evil.example", "localhost.evil.example",
        "local.evil.example", "evil-local.example", "talk.my.site", "notlocalhost.com", "xn--ls8h.la",
    ],
)  # fmt: skip
def test_other_names_are_not_allowed(host):
    assert not is_allowed_host(host)


def test_single_names_all_names_below_one_or_all_can_be_allowed():
    assert is_allowed_host("talk.my.site:443", ["Talk.my.site"]) and not is_allowed_host("my.site", ["talk.my.site"])
    assert is_allowed_host("a.b.my.site", ["*.my.site"]) and not is_allowed_host("my.site", ["*.my.site"])
    assert not is_allowed_host("evilmy.site", ["*.my.site"]) and is_allowed_host("evil.example", ["*"])
    assert is_allowed_host("127.0.0.1", ["talk.my.site"])


def test_a_rebound_host_name_is_refused_before_any_stage_is_called(serve):
    stitch, chat = Handle(), Handle()
    client = serve(stitch, chat=chat)
    rebound = {"host": "evil.example:8000", "origin": "http://evil.example:8000"}  # the same origin for the browser
    for method, path in (("GET", "/sessions"), ("POST", "/speak"), ("GET", "/"), ("GET", "/sessions/healthz")):
        answer = client.request(method, path, headers=rebound)
        assert (answer.status_code, error_of(answer)["code"]) == (421, "unknown_host"), path
    assert error_of(answer)["message"] == "This server does not answer requests for the host 'evil.example'."
    assert "allowed_hosts of Ingress" in error_of(answer)["remedy"]
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect("/sessions/alice/ws", headers=rebound),
    ):
        pass
    assert refused.value.code == 1008 and stitch.calls == chat.calls == []


def test_the_health_check_accepts_any_host(serve):
    client = serve(Handle(stats={}))
    client.replica._readiness = ReadinessProbe(dict)
    assert client.get("/healthz", headers={"host": "probe.example"}).status_code == 200
    assert client.get("/readyz", headers={"host": "probe.example"}).status_code == 503


def test_hosts_are_configured_and_with_keys_any_host_is_allowed(serve, monkeypatch):
    monkeypatch.setenv("MY_KEYS", "0123456789abcdef")
    named = {"host": "talk.my.site"}
    client = serve(Handle(sessions=()), config={"allowed_hosts": ["talk.my.site"]})
    assert client.get("/sessions", headers=named).status_code == 200
    client = serve(Handle(sessions=()), config={"api_keys_env": "MY_KEYS"})
    assert client.get("/sessions", headers=named).status_code == 401  # and not 421
    client = serve(Handle(sessions=()), config={"api_keys_env": "MY_KEYS", "allowed_hosts": ["other.my.site"]})
    assert client.get("/sessions", headers=named).status_code == 421
