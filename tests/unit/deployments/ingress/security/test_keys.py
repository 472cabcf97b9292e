"""API keys, and the cookies and tokens that are signed with them."""

import pytest

from deployments.ingress.security.keys import Keys
from models.errors import ConfigError

ANN, BOB = "ann-0123456789abcdef", "bob-0123456789abcdef"


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def keys(clock) -> Keys:
    return Keys([ANN, BOB], now=lambda: clock[0])


def test_only_the_keys_themselves_are_valid(keys):
    assert keys.is_valid(ANN) and keys.is_valid(BOB)
    for other in ("", ANN[:-1], ANN + "x", ANN.upper(), f"{ANN},{BOB}", "é", "\ud800", "x" * 10_000):
        assert not keys.is_valid(other), other


def test_without_keys_nothing_is_required_and_nothing_can_be_signed(keys):
    assert not Keys() and not Keys().is_valid("") and not Keys().is_valid_cookie(keys.sign_cookie(ANN, 60))
    with pytest.raises(ConfigError, match="requires no key"):
        Keys().sign_token("alice", "watch", 60)


@pytest.mark.parametrize("value", [f"{ANN},{BOB}", f" {ANN} {BOB} ", f"{ANN}\n{BOB}\n", f"{ANN}, {BOB}"])
def test_keys_in_the_environment_are_separated_by_blanks_commas_or_lines(monkeypatch, value):
    monkeypatch.setenv("MY_KEYS", value)
    keys = Keys.from_environment("MY_KEYS")
    assert keys.is_valid(ANN) and keys.is_valid(BOB) and not keys.is_valid(value)


@pytest.mark.parametrize("value", [None, "", "  ", ","])
def test_a_variable_that_is_not_set_is_an_error_and_does_not_leave_the_server_open(monkeypatch, value):
    monkeypatch.delenv("MY_KEYS", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEYS", value)
    with pytest.raises(ConfigError, match="'MY_KEYS', which api_keys_env of Ingress names, is not set") as caught:
        Keys.from_environment("MY_KEYS")
    assert "openssl rand" in caught.value.remedy
    assert not Keys.from_environment(None)


@pytest.mark.parametrize("key", ["hunter2", "0123456789abcde", "0123456789abcdé0", "0123456789abcdef\x7f"])
def test_a_short_or_unsendable_key_is_refused_without_showing_it(key):
    with pytest.raises(ConfigError, match="Key 2 of 2") as caught:
        Keys([ANN, key])
    assert key not in str(caught.value)


def test_a_cookie_is_valid_until_it_expires_and_does_not_hold_the_key(keys, clock):
    cookie = keys.sign_cookie(BOB, 60)
    assert keys.is_valid_cookie(cookie) and ANN not in cookie and BOB not in cookie
    clock[0] += 59
    assert keys.is_valid_cookie(cookie)
    clock[0] += 1
    assert not keys.is_valid_cookie(cookie)


def test_a_cookie_is_valid_only_while_its_key_exists(keys, clock):
    cookie = keys.sign_cookie(BOB, 60)
    now = lambda: clock[0]  # noqa: E731
    assert Keys([BOB], now).is_valid_cookie(cookie) and not Keys([ANN], now).is_valid_cookie(cookie)
    assert Keys([BOB, ANN], now).is_valid_cookie(cookie)


def test_a_changed_cookie_is_not_valid(keys):
    cookie = keys.sign_cookie(ANN, 60)
    payload, signature = cookie.rsplit(".", 1)
    for k in range(len(cookie)):
        flipped = "A" if cookie[k] != "A" else "B"
        # the last character of a base64 signature has unused bits: itsdangerous compares the decoded bytes
        assert k == len(cookie) - 1 or not keys.is_valid_cookie(cookie[:k] + flipped + cookie[k + 1 :]), k
    later = keys.sign_cookie(ANN, 3600).rsplit(".", 1)[0]
    for other in ("", payload, f"{payload}.", f"{later}.{signature}", f"{payload}.{signature}x", f"{cookie}\n", "é.ü"):
        assert not keys.is_valid_cookie(other), other


def test_a_token_is_valid_for_its_session_and_scope_until_it_expires(keys, clock):
    watch, act = keys.sign_token("alice", "watch", 60), keys.sign_token("alice", "act", 60)
    assert keys.is_valid_token(watch, "alice", "watch") and not keys.is_valid_token(watch, "alice", "act")
    assert keys.is_valid_token(act, "alice", "act") and keys.is_valid_token(act, "alice", "watch")
    assert not keys.is_valid_token(watch, "bob", "watch") and not keys.is_valid_token(act, "bob", "act")
    clock[0] += 61
    assert not keys.is_valid_token(watch, "alice", "watch")


def test_cookies_and_tokens_cannot_replace_each_other(keys):
    cookie, watch, act = keys.sign_cookie(ANN, 60), keys.sign_token("", "watch", 60), keys.sign_token("", "act", 60)
    assert not keys.is_valid_cookie(watch) and not keys.is_valid_cookie(act)
    assert not keys.is_valid_token(cookie, "", "watch") and not keys.is_valid_token(watch, "", "act")
