"""Names of the server: its own, those that a config names, and none that a stranger can own."""

import pytest
from starlette.websockets import WebSocketDisconnect

from deployments.ingress.security.allowed_hosts import KnownHosts, known_host
from tests.support.ingress import Handle, error_of


@pytest.fixture(autouse=True)
def automatic(monkeypatch):
    monkeypatch.setattr(KnownHosts, "allowed", ())


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000", "10.1.2.3", "[::1]:8000", "[fe80::1%25eth0]:8000", "localhost", "localhost:8000",
        "LOCALHOST.", "talk.localhost:8000", "gpu-box", "gpu-box:8000", "gpu-box.local",
        "warmtalk-serve-svc.default.svc.cluster.local",
        "warmtalk-serve-svc.default.svc:8000", "ip-10-0-0-1.eu-central-1.compute.internal", "nas.home.arpa", "",
    ],
)  # fmt: skip
def test_a_name_that_no_stranger_can_own_is_the_servers(host):
    assert known_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "evil.example.", "127.0.0.1.evil.example", "localhost.evil.example",
        "local.evil.example", "evil-local.example", "talk.my.site", "notlocalhost.com", "xn--ls8h.la",
    ],
)  # fmt: skip
def test_any_other_name_may_be_a_strangers(host):
    assert not known_host(host)


def test_names_can_be_allowed_one_by_one_or_all_below_one_or_all():
    assert known_host("talk.my.site:443", ["Talk.my.site"]) and not known_host("my.site", ["talk.my.site"])
    assert known_host("a.b.my.site", ["*.my.site"]) and not known_host("my.site", ["*.my.site"])
    assert not known_host("evilmy.site", ["*.my.site"]) and known_host("evil.example", ["*"])
    assert known_host("127.0.0.1", ["talk.my.site"])


def test_a_page_whose_name_was_turned_here_gets_nothing(serve):
    stitch, chat = Handle(), Handle()
    client = serve(stitch, chat=chat)
    rebound = {"host": "evil.example:8000", "origin": "http://evil.example:8000"}  # one origin, to the browser
    for method, path in (("GET", "/sessions"), ("POST", "/speak"), ("GET", "/"), ("GET", "/sessions/healthz")):
        answer = client.request(method, path, headers=rebound)
        assert (answer.status_code, error_of(answer)["code"]) == (421, "unknown_host"), path
    assert error_of(answer)["message"] == "This server does not answer under the name 'evil.example'."
    assert "allowed_hosts of Ingress" in error_of(answer)["remedy"]
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect("/sessions/alice/ws", headers=rebound),
    ):
        pass
    assert refused.value.code == 1008 and stitch.asked == chat.asked == []


def test_a_probe_may_call_it_what_it_likes(serve):
    assert serve(Handle(stats={})).get("/healthz", headers={"host": "probe.example"}).status_code == 200


def test_the_config_says_which_names_are_its_own_and_a_key_makes_names_needless(serve, monkeypatch):
    monkeypatch.setenv("MY_KEYS", "0123456789abcdef")
    named = {"host": "talk.my.site"}
    client = serve(Handle(sessions=()), config={"allowed_hosts": ["talk.my.site"]})
    assert client.get("/sessions", headers=named).status_code == 200
    client = serve(Handle(sessions=()), config={"api_keys_env": "MY_KEYS"})
    assert client.get("/sessions", headers=named).status_code == 401  # and not 421
    client = serve(Handle(sessions=()), config={"api_keys_env": "MY_KEYS", "allowed_hosts": ["other.my.site"]})
    assert client.get("/sessions", headers=named).status_code == 421
