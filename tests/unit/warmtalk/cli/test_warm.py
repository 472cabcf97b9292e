"""The compile step of set-up: it runs the engines of the config once, with a progress bar."""

import io
from typing import Any

import pytest
from rich.console import Console

from warmtalk.cli import warm


class Engine:
    """Records the shapes that it ran on."""

    def __init__(self) -> None:
        self.ran: list[tuple[int, ...]] = []

    def generate(self, latents: Any, windows: Any) -> None:
        self.ran += [latents.shape, windows.shape]

    def restore(self, faces: Any) -> None:
        self.ran.append(faces.shape)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Engine]:
    made = {"lips": Engine(), "faces": Engine()}
    monkeypatch.setattr(warm.lipsync, "load_engine", lambda config: made["lips"])
    monkeypatch.setattr(warm.enhance, "load_engine", lambda name, options: made["faces"])
    return made


def test_both_networks_run_once_with_the_shapes_of_the_stages(engines):
    warm.warm("demo", Console(file=io.StringIO()))
    assert engines["lips"].ran == [(8, 8, 32, 32), (8, 50, 384)]  # batch_size of the config
    assert engines["faces"].ran == [(1, 256, 256, 3)]


def test_the_bar_counts_the_steps(engines):
    shown = io.StringIO()
    warm.warm("demo", Console(file=shown, force_terminal=True, width=120))
    assert "compiling lip sync" in shown.getvalue() and "4/4" in shown.getvalue()
    assert "models ready in" in shown.getvalue()
