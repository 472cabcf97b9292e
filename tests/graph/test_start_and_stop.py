"""A server that starts, fails to start, loses its power and stops. Each needs processes of its own."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from configs.serve_file import FOLDER, deployment_of
from models.errors import StageError
from tests.graph.media import assert_without_gaps, decode, video_of
from tests.graph.processes import STOP_S, Server, command_lines, free_port, set_traps
from tests.graph.requests import speak, wait_until
from tests.support.wheel import Environment, build_wheel
from warmtalk.cli import CODE
from warmtalk.cli.local_graph import LocalGraph

pytestmark = pytest.mark.ray

LONG = "This sentence is a rather long one, which goes on and on until somebody switches the power off. " * 2


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    if server.process.poll() is None:
        server.kill()


def test_sigint_during_the_start_stops_every_process(starting: Server) -> None:
    starting.wait(lambda: any("ServeController" in " ".join(p.cmdline()) for p in starting.tree()), "Serve starts")
    assert starting.interrupt() < STOP_S
    assert starting.process.returncode == 130 and "Traceback" not in starting.log.read_text()


def test_a_stage_that_cannot_start_is_reported_and_leaves_no_process(tmp_path: Path) -> None:
    before = command_lines().keys()

    def without_its_avatar(config: dict[str, Any]) -> None:
        for deployment in config["applications"][0]["deployments"]:  # the other stages need no process here
            if deployment["name"] != "Avatars":
                deployment.pop("num_replicas", None)
                deployment["autoscaling_config"] = {"min_replicas": 0, "max_replicas": 1}
        deployment_of(config, "Avatars")["user_config"] = {
            "video_path": "me.mp4",
            "avatar_id": "me",
            "preparation": False,
        }

    (tmp_path / "me.mp4").write_bytes(b"a video that nobody has prepared")
    with pytest.raises(StageError) as caught:
        LocalGraph("demo", free_port(), tmp_path, without_its_avatar).start()
    assert caught.value.message == (
        "The application 'warmtalk' did not start: The avatar 'me' is missing or outdated. "
        "Run: warmtalk prepare me.mp4 --avatar-id me --force"
    )
    wait_until(lambda: not command_lines().keys() - before, "all processes have ended", STOP_S)


# --- one server of the installed wheel for the rest, which ends with a power cut, starts again, and is stopped


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("wheel")
    made = Environment(folder / "venv", build_wheel(folder))
    made.borrow()
    return made


@pytest.fixture(scope="module")
def server(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """demo.yaml, with Enhance left out by `args` alone, and without recorded pauses."""
    folder = tmp_path_factory.mktemp("server")
    config = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    config["applications"][0]["args"]["enhance"] = False
    deployment_of(config, "Stitch")["user_config"]["recorded_pause_ms"] = 0
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    server = Server(folder, str(folder / "config.yaml"), environment.folder / "bin" / "warmtalk")
    server.wait(server.answers, "the server answers")
    yield server
    if server.process.poll() is None:
        server.kill()


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def test_without_the_enhance_stage_a_request_for_enhancement_is_served_plain(client: httpx.Client) -> None:
    answer = speak(client, "No restoration here.", session_id="plain", enhance=True)
    assert answer["stages"].keys() == {"TTS", "AudioFeatures", "LipSync", "Stitch"}
    assert len(video_of(client, "plain").frames) == answer["frames"]


def test_say_of_the_installed_wheel_writes_a_video_from_any_folder(server: Server, environment: Environment) -> None:
    arguments = ["say", "Hello.", "-o", "x.mp4", "--server", server.url]
    done = environment.result(arguments, cwd=server.folder, program="warmtalk")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_video_of_the_presenter(server.folder / "x.mp4")


@pytest.mark.full  # starts another graph
def test_say_of_the_installed_wheel_starts_and_stops_a_graph_of_its_own(
    environment: Environment, tmp_path: Path
) -> None:
    set_traps(tmp_path)
    done = environment.result(
        ["say", "Hello.", "-o", "x.mp4", "--port", str(free_port())],
        cwd=tmp_path,
        program="warmtalk",
        WARMTALK_CACHE=str(CODE / ".cache"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Try next: warmtalk serve" in done.stdout
    assert_video_of_the_presenter(tmp_path / "x.mp4")


def assert_video_of_the_presenter(path: Path) -> None:
    video = decode(path.read_bytes())
    assert len(video.frames) >= 10 and video.frames[0].shape == (512, 512, 3)
    assert abs(video.duration_s - len(video.sound) / video.rate) < 0.1


def test_everything_said_survives_a_power_cut_and_the_session_goes_on(server: Server, client: httpx.Client) -> None:
    said = speak(client, "This was said before.", session_id="lasting")
    job = client.post("/chat", json={"message": "Thanks!", "session_id": "chatting"}).json()["job_id"]
    done = wait_until(lambda: ended(client, job), "the chat answers")
    assert done["status"] == "done"
    captions, messages = client.get("/sessions/lasting/captions.vtt").text, client.get("/chat/chatting").json()
    story = {"message": "Tell me a long story.", "session_id": "chatting"}
    open_job = client.post("/chat", json=story).json()["job_id"]
    shown = cut_the_power_while_it_speaks(server, client, "lasting", said["frames"])
    server.start()
    server.wait(server.answers, "the server answers again")
    assert client.get(f"/status/{job}").json() == done
    assert client.get("/chat/chatting").json()[: len(messages)] == messages
    half = wait_until(lambda: ended(client, open_job), "the interrupted answer ends", timeout_s=30)  # after its lease
    assert half["status"] == "done" or half["error"]["message"]
    facts = client.get("/sessions/lasting").json()
    assert facts["frames"] >= said["frames"] + shown and shown > 0
    left = video_of(client, "lasting")
    assert len(left.frames) == facts["frames"]
    assert client.get("/sessions/lasting/captions.vtt").text.startswith(captions.rstrip())
    more = speak(client, "And this afterwards.", session_id="lasting")
    whole = video_of(client, "lasting")
    assert len(whole.frames) == facts["frames"] + more["frames"]
    assert (whole.frames[: len(left.frames)] == left.frames).all()
    assert_without_gaps(whole)
    lines = client.get("/sessions/lasting").json()["utterances"]
    assert [line["text"] for line in lines] == ["This was said before.", LONG, "And this afterwards."]
    assert lines[1]["end_s"] is None and lines[2]["start_s"] == pytest.approx(facts["frames"] / 25, abs=1e-3)
    assert "And this afterwards." in client.get("/sessions/lasting/captions.vtt").text


def ended(client: httpx.Client, job_id: str) -> dict[str, Any] | None:
    """The status of a chat job, once it is done or has failed."""
    status = client.get(f"/status/{job_id}").json()
    return status if status["status"] in ("done", "failed") else None


def cut_the_power_while_it_speaks(server: Server, client: httpx.Client, session_id: str, before: int) -> int:
    """Kill every process while an utterance grows, and leave half a fragment; return the utterance's frames so far."""

    def say() -> None:
        try:
            httpx.post(f"{server.url}/speak", json={"text": LONG, "session_id": session_id}, timeout=120)
        except httpx.TransportError:
            return  # the connection ends with the server

    def frames() -> int:
        return int(client.get(f"/sessions/{session_id}").json()["frames"])

    speaking = threading.Thread(target=say)
    speaking.start()
    wait_until(lambda: frames() >= before + 18, "the utterance grows")
    shown = frames() - before
    server.kill()
    speaking.join(30)
    folder = server.folder / "results" / "sessions" / session_id
    with (folder / "full_session.mp4").open("ab") as file:  # bytes of the file whose index line was not written
        file.write(struct.pack(">I4s", 4000, b"moof") + os.urandom(500))
    with (folder / "index.jsonl").open("ab") as file:
        file.write(b'{"type": "fragment", "at"')
    return shown


def test_sigint_stops_the_server_and_its_ray_within_eight_seconds(server: Server, client: httpx.Client) -> None:
    answer = speak(client, "Hello.", session_id="last")
    assert Path(answer["video_path"]).is_relative_to(server.folder / "results" / "sessions")
    assert server.interrupt() < STOP_S
    assert server.process.returncode == 0
    log = server.log.read_text()
    assert server.url in log and "Traceback" not in log
