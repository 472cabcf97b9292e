"""What goes wrong while it starts, or ends it then: it says why, is gone in 8 s, and leaves no process behind."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from models.errors import StageError
from tests.graph.conftest import STOP_S, Server, free_port
from warmtalk.cli.local_graph import LocalGraph

pytestmark = pytest.mark.ray


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    if server.process.poll() is None:
        server.kill()


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
        "Run: warmtalk prepare me.mp4 --avatar-id me --force"
    )
    end_s = time.monotonic() + STOP_S
    while processes_here() - before and time.monotonic() < end_s:
        time.sleep(0.1)
    assert processes_here() - before == set()
