"""Keys, cookies and tokens: what opens, for how long, and what else of the same kind does not."""

import pytest

from deployments.ingress.security.keys import MAC_CHARS, Keys
from models.errors import ConfigError

ANN, BOB = "ann-0123456789abcdef", "bob-0123456789abcdef"


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def keys(clock) -> Keys:
    return Keys([ANN, BOB], now=lambda: clock[0])


def test_each_key_opens_and_nothing_else_does(keys):
    assert keys.opens(ANN) and keys.opens(BOB)
    for other in ("", ANN[:-1], ANN + "x", ANN.upper(), f"{ANN},{BOB}", "é", "\ud800", "x" * 10_000):
        assert not keys.opens(other), other


def test_without_keys_the_server_is_open_and_no_key_opens():
    assert not Keys() and not Keys().opens("") and not Keys().knows("cookie.9999999999." + "0" * MAC_CHARS)
    with pytest.raises(ConfigError, match="wants no key"):
        Keys().token("alice", "watch", 60)


@pytest.mark.parametrize("value", [f"{ANN},{BOB}", f" {ANN} {BOB} ", f"{ANN}\n{BOB}\n", f"{ANN}, {BOB}"])
def test_keys_come_from_the_environment_however_they_are_parted(monkeypatch, value):
    monkeypatch.setenv("MY_KEYS", value)
    keys = Keys.of_environment("MY_KEYS")
    assert keys.opens(ANN) and keys.opens(BOB) and not keys.opens(value)


@pytest.mark.parametrize("value", [None, "", "  ", ","])
def test_a_variable_that_is_not_set_does_not_leave_the_server_open(monkeypatch, value):
    monkeypatch.delenv("MY_KEYS", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEYS", value)
    with pytest.raises(ConfigError, match="'MY_KEYS', which api_keys_env of Ingress names, is not set") as caught:
        Keys.of_environment("MY_KEYS")
    assert "openssl rand" in caught.value.remedy
    assert not Keys.of_environment(None)


@pytest.mark.parametrize("key", ["hunter2", "0123456789abcde", "0123456789abcdé0", "0123456789abcdef\x7f"])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused_without_being_shown(key):
    with pytest.raises(ConfigError, match="Key 2 of 2") as caught:
        Keys([ANN, key])
    assert key not in str(caught.value)


def test_a_cookie_is_known_until_it_ends_and_holds_no_key(keys, clock):
    cookie = keys.cookie(BOB, 60)
    assert keys.knows(cookie) and ANN not in cookie and BOB not in cookie
    clock[0] += 59
    assert keys.knows(cookie)
    clock[0] += 1
    assert not keys.knows(cookie)


def test_a_cookie_ends_with_the_key_that_it_was_given_for(keys, clock):
    cookie = keys.cookie(BOB, 60)
    now = lambda: clock[0]  # noqa: E731
    assert Keys([BOB], now).knows(cookie) and not Keys([ANN], now).knows(cookie)


def test_what_was_signed_cannot_be_changed(keys):
    kind, end, mac = keys.cookie(ANN, 60).split(".")
    assert not keys.knows(f"{kind}.{int(end) + 1}.{mac}")
    assert not keys.knows(f"{kind}.{end}.{'0' * MAC_CHARS}")
    for other in ("", "cookie", f"{kind}.{end}", f"{kind}.-{end}.{mac}", f"{kind}.{end}.{mac}\n", f"{kind}.٤.{mac}"):
        assert not keys.knows(other), other


def test_a_token_is_good_for_its_session_and_its_scope_only(keys, clock):
    watch, act = keys.token("alice", "watch", 60), keys.token("alice", "act", 60)
    assert keys.admits(watch, "alice", "watch") and not keys.admits(watch, "alice", "act")
    assert keys.admits(act, "alice", "act") and keys.admits(act, "alice", "watch")
    assert not keys.admits(watch, "bob", "watch") and not keys.admits(act, "bob", "act")
    clock[0] += 61
    assert not keys.admits(watch, "alice", "watch")


def test_tokens_and_cookies_are_not_each_other(keys):
    cookie, token = keys.cookie(ANN, 60), keys.token("", "watch", 60)
    assert not keys.knows(token) and not keys.admits(cookie, "", "watch")
    _, end, mac = token.split(".")
    assert not keys.knows(f"cookie.{end}.{mac}") and not keys.admits(f"act.{end}.{mac}", "", "act")
