"""Warnings about servers that everybody can reach, and what is printed when a server starts."""

from __future__ import annotations

from typing import Any

import pytest

from configs.exposure import exposure_warning
from warmtalk.cli.local_graph import LocalGraph

KEY = "0123456789abcdef"


def config(host: str | None, keys: str | None = None) -> dict[str, Any]:
    ingress = {"name": "Ingress", "user_config": {"api_keys_env": keys} if keys else None}
    options = {"http_options": {"host": host}} if host else {}
    return {**options, "applications": [{"name": "warmtalk", "deployments": [ingress]}]}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_no_warning_for_a_server_on_a_loopback_address(host: str) -> None:
    assert exposure_warning(config(host)) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gpu-box", None])
def test_a_warning_for_a_server_that_others_can_reach_without_a_key(host: str | None) -> None:
    warning = exposure_warning(config(host))
    assert f"listens on {host or '0.0.0.0'} and requires no API key" in warning and "api_keys_env of Ingress" in warning


def test_a_key_silences_the_warning_and_a_variable_without_a_key_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEYS", KEY)
    assert exposure_warning(config("0.0.0.0", "MY_KEYS")) == ""
    monkeypatch.delenv("MY_KEYS")
    assert "variable MY_KEYS, which api_keys_env of Ingress names, is not set" in exposure_warning(
        config(None, "MY_KEYS")
    )


def test_the_greeting_shows_how_to_send_a_key_when_one_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = LocalGraph("demo", 8123)
    opened, asked = graph.greeting()
    assert "http://127.0.0.1:8123 and talk" in opened and "Authorization" not in asked
    graph = LocalGraph("cluster", 8123)
    assert "requires no API key" in graph.greeting()[-1]
    monkeypatch.setenv("MY_KEYS", f"{KEY}, {KEY}2")
    monkeypatch.delenv("WARMTALK_API_KEY", raising=False)
    graph = LocalGraph("demo", adapt=lambda loaded: loaded.update(config("0.0.0.0", "MY_KEYS")))
    assert len(graph.greeting()) == 2 and '"Authorization: Bearer $WARMTALK_API_KEY"' in graph.greeting()[1]
    graph.use_own_key()
    import os

    assert os.environ.pop("WARMTALK_API_KEY") == KEY
