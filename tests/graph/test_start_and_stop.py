"""`warmtalk serve` as a process of its own: it serves, stops within 8 s of SIGINT, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from launch import CODE, LocalGraph
from models.errors import StageError
from tests.graph.conftest import free_port

pytestmark = pytest.mark.ray

STOP_S = 8.0


class Server:
    """`warmtalk serve` in a folder that is not the repository's and has a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder / "my folder", free_port()
        self.folder.mkdir()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WARMTALK_", "RAY_"))}
        environment |= {"PYTHONPATH": str(CODE), "WARMTALK_CACHE": str(CODE / ".cache")}
        command = [sys.executable, "-m", "cli", "serve", "--port", str(self.port)]
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, condition, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=5).status_code == 200
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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    if server.process.poll() is None:
        for process in [*server.tree(), server.process]:
            process.kill()


def test_sigint_stops_the_server_and_its_ray_within_eight_seconds(server):
    server.wait(server.answers, 120)
    answer = httpx.post(f"http://127.0.0.1:{server.port}/speak", json={"text": "Hello."}, timeout=60)
    assert Path(answer.json()["video_path"]).is_relative_to(server.folder / "results" / "sessions")
    assert server.interrupt() < STOP_S
    assert server.process.returncode == 0
    log = server.log.read_text()
    assert f"http://127.0.0.1:{server.port}" in log and "Traceback" not in log


def test_sigint_while_it_starts_stops_it_as_fast(server):
    server.wait(lambda: any("raylet" in " ".join(process.cmdline()) for process in server.tree()), 60)
    time.sleep(2.0)
    assert server.interrupt() < STOP_S
    assert server.process.returncode == 130 and "Traceback" not in server.log.read_text()


def processes_here() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_a_stage_that_cannot_start_says_why_and_leaves_no_process(tmp_path):
    before = processes_here()

    def without_its_avatar(config: dict) -> None:
        for deployment in config["applications"][0]["deployments"]:
            if deployment["name"] == "Avatars":
                deployment["user_config"] = {"video_path": "me.mp4", "avatar_id": "me", "preparation": False}

    (tmp_path / "me.mp4").write_bytes(b"a video that nobody has prepared")
    with pytest.raises(StageError) as caught:
        LocalGraph("demo", free_port(), tmp_path, without_its_avatar).start()
    assert caught.value.message == (
        "The application 'warmtalk' did not start: The avatar 'me' is missing or not of this video. "
        "Run: warmtalk prepare me.mp4 --avatar-id me --fps 25 --bbox-shift 0 --extra-margin 10 --force"
    )
    end_s = time.monotonic() + STOP_S
    while processes_here() - before and time.monotonic() < end_s:
        time.sleep(0.1)
    assert processes_here() - before == set()
