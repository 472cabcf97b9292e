"""`warmtalk say` from the installed wheel, on a real Ray, in a folder outside the checkout."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from tests.graph.processes import free_port
from tests.support.paths import ROOT
from tests.support.wheel import Environment, build_wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("wheel")
    made = Environment(folder / "venv", build_wheel(folder))
    made.borrow()
    return made


def test_say_writes_a_video_from_any_folder(environment: Environment, tmp_path: Path) -> None:
    """The working folder has a graph.py and a models/ of its own; Ray's workers must not import them."""
    (tmp_path / "graph.py").write_text("raise RuntimeError('of the working folder')")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('of the working folder')")
    done = environment.result(
        ["say", "Hello.", "-o", "x.mp4", "--port", str(free_port())],
        cwd=tmp_path,
        program="warmtalk",
        WARMTALK_CACHE=str(ROOT / ".cache"),  # compiled models
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with av.open(str(tmp_path / "x.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        seconds = float(container.duration / av.time_base)
    assert len(frames) >= 10 and frames[0].shape == (512, 512, 3)
    assert abs(len(frames) / 25 - seconds) < 0.1
    assert "Try next: warmtalk serve" in done.stdout
