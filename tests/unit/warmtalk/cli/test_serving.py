"""A command's graph is stopped when the command is terminated, without Ray's own report of the signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.serving import started_graph


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records that the graph was stopped. A start calls `ray.init`, which replaces the handler as Ray's does."""
    stopped: list[str] = []

    def init(**arguments: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: stopped.append("Ray's stack"))

    for name in ("WARMTALK_HOME", "PYTHONPATH"):  # a start sets them
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(LocalGraph, "start", lambda self, progress: self._start_ray())
    monkeypatch.setattr(LocalGraph, "stop", lambda self: stopped.append("stopped"))
    return stopped


def test_sigterm_stops_the_graph_of_a_command(ended: list[str]) -> None:
    with pytest.raises(SystemExit) as caught, started_graph("demo", None):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM and ended == ["stopped"]


def test_a_command_that_handles_sigterm_itself_keeps_its_handler(ended: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: ended.append("handled"))
    with started_graph("demo", None):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == ["handled", "stopped"]
