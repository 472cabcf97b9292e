"""A real local Ray with the embedded default, shared by the modules of DEMO; the others start one of their own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import psutil
import pytest

from tests.browser import chromium as browser
from tests.browser.chromium import chromium, tab
from tests.support.paths import ROOT
from warmtalk.cli.local_graph import CODE, LocalGraph

__all__ = ["chromium", "tab"]

# share a graph, in this order: the last two kill what the others would ask
DEMO = ("test_sessions_live", "test_speak", "test_speech_api", "test_refusals", "test_page_live", "test_failures")
EMBEDDED = ROOT / "models" / "embedded"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Shared:
    """The graph that modules share which follow on each other: to start and to stop one takes half a minute."""

    def __init__(self) -> None:
        self.running: LocalGraph | None = None

    def get(self, home: Path) -> LocalGraph:
        if self.running is None:
            graph = LocalGraph("demo", port=free_port(), home=home)
            graph.__enter__()
            self.running = graph
        return self.running

    def stop(self) -> None:
        if self.running is not None:
            running, self.running = self.running, None
            running.__exit__(None, None, None)


SHARED = Shared()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules of DEMO behind all others of this folder, in that order."""
    here = [k for k, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    rank = {name: k for k, name in enumerate(DEMO)}
    ordered = sorted((items[k] for k in here), key=lambda item: rank.get(item.path.stem, -1))
    for k, item in zip(here, ordered, strict=True):
        items[k] = item


@pytest.hookimpl(trylast=True)  # behind the fixtures of the module, some of which ask the graph
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or "shared_graph" not in getattr(nextitem, "fixturenames", ()):
        SHARED.stop()
    if nextitem is None or nextitem.path != item.path:
        browser.SHARED.stop()


def pytest_sessionfinish() -> None:
    SHARED.stop()


@pytest.fixture(scope="module")
def shared_graph(tmp_path_factory: pytest.TempPathFactory) -> LocalGraph:
    return SHARED.get(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def graph(shared_graph: LocalGraph) -> LocalGraph:
    """Modules that want another one have a fixture of this name."""
    return shared_graph


@pytest.fixture(scope="module")
def client(graph: LocalGraph) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=graph.url, timeout=120) as client:
        yield client


@dataclass
class Video:
    """A decoded MP4: RGB frames `(n, h, w, 3)`, times in s, mono sound."""

    frames: Any
    times: Any
    sound: Any
    rate: int
    codecs: tuple[str, str]

    @property
    def duration_s(self) -> float:
        return len(self.frames) / 25


def decode(data: bytes) -> Video:
    with av.open(io.BytesIO(data)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        frames, times, sound = [], [], []
        for frame in container.decode(video, audio):
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
                times.append(frame.time)
            else:
                sound.append(frame.to_ndarray().mean(0))
        codecs = (video.codec_context.name, audio.codec_context.name)
        return Video(np.stack(frames), np.array(times), np.concatenate(sound), audio.rate, codecs)


def clip(frames: int) -> bytes:
    """The first frames of the presenter's idle video, as a file of their own."""
    source = EMBEDDED / "presenter" / "presenter.mp4"
    buffer = io.BytesIO()
    with av.open(str(source)) as given, av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, width=512, height=512, pix_fmt="yuv420p")
        for _, frame in zip(range(frames), given.decode(video=0), strict=False):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


STOP_S = 8.0


class Server:
    """`warmtalk serve` as a process of its own, in a folder outside the repository that has a space in its name."""

    def __init__(self, folder: Path, config: str = "demo", environment: dict[str, str] | None = None) -> None:
        """environment: variables of its processes, besides those that are here."""
        self.folder, self.port, self.config = folder / "my folder", free_port(), config
        self.environment = environment or {}
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WARMTALK_", "RAY_"))}
        environment |= {"PYTHONPATH": str(CODE), "WARMTALK_CACHE": str(CODE / ".cache")}
        environment |= self.environment
        command = [sys.executable, "-m", "cli", "serve", "--port", str(self.port), "--config", self.config]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def interrupt(self) -> float:
        """Seconds from SIGINT until the process and all that it had started are gone."""
        tree, begin_s = self.tree(), time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60)
        gone, alive = psutil.wait_procs(tree, timeout=max(0.1, STOP_S - (time.monotonic() - begin_s)))
        assert not alive, [process.cmdline() for process in alive]
        assert len(gone) == len(tree) > 2
        return time.monotonic() - begin_s

    def kill(self) -> None:
        """End everything at once, as a power cut does."""
        doomed = [psutil.Process(self.process.pid), *self.tree()]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)
        psutil.wait_procs(doomed, timeout=30)
