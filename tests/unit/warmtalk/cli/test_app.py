"""The command line without a graph: every command shows an example, an error is a sentence and exit status 1."""

import json
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from warmtalk.cli import app as cli

COMMANDS = sorted(typer.main.get_command(cli.app).commands)


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch, tmp_path):
    """A command that reaches for Ray fails; results belong to the test."""

    def refuse(*arguments, **options):
        raise AssertionError("a graph was started")

    monkeypatch.setattr("launch.LocalGraph.start", refuse)
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert not isinstance(result.exception, AssertionError), result.exception
    return result


def refused(*arguments: str) -> str:
    """What a command says that ends with exit status 1; never a stack trace."""
    result = run(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), (result.exit_code, result.exception)
    assert "Traceback" not in result.output and "→" in result.output
    return " ".join(result.output.split())


def test_the_commands_are_those_of_the_manual():
    assert {"say", "serve", "prepare", "profile", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example_that_parses(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    epilog = typer.main.get_command(cli.app).commands[command].epilog
    assert f"`warmtalk {command}" in epilog and "Example" in result.output
    words = shlex.split(epilog.split("`")[1])[2:]
    typer.main.get_command(cli.app).commands[command].make_context(command, words)


@pytest.mark.parametrize("arguments", [["say"], ["say", "  "], ["say", "Hello.", "--audio", "a.wav"]])
def test_nothing_to_say_is_refused_before_a_graph_is_started(arguments):
    assert "bad_input There is nothing to say. → Give a text, or a recording" in refused(*arguments)


def test_a_missing_recording_is_named():
    assert "Input audio not found: gone.wav." in refused("say", "--audio", "gone.wav")


def test_a_missing_video_is_named():
    assert "Input video not found: gone.mp4." in refused("prepare", "gone.mp4", "--avatar-id", "me")


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    assert f"{tmp_path} is a folder." in refused("say", "Hello.", "-o", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "file file: File exists. → Check the path" in refused("say", "Hello.", "-o", "file/out.mp4")


def test_a_bad_config_is_a_sentence(tmp_path):
    assert "There is no config file 'dmo'" in refused("serve", "--config", "dmo")
    (tmp_path / "x.yaml").write_text("applications: [{deployments: [{name: TTS, user_config: {spede: 1}}]}]")
    assert "unknown key 'spede': did you mean 'speed'?" in refused("say", "Hello.", "--config", "x.yaml")


def test_brackets_in_a_message_are_text():
    assert "Input video not found: a[/b]c[red].mp4." in refused("prepare", "a[/b]c[red].mp4", "--avatar-id", "me")


@pytest.mark.parametrize("server", ["http://127.0.0.1:9", "127.0.0.1:9", "http://["])
def test_a_server_that_does_not_answer_is_a_sentence(server):
    assert "unreachable The server does not answer" in refused("say", "Hello.", "--server", server)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_port_that_is_none_is_refused(port):
    result = run("serve", "--port", port)
    assert result.exit_code == 2 and "--port" in result.output


# --- against a server that is a few lines long


class Server(BaseHTTPRequestHandler):
    """Answers /speak with `parts`, breaking off where `breaks`; remembers the requests."""

    status, breaks, ended = 200, False, True
    sidecar: dict = {"type": "video"}  # noqa: RUF012
    parts = (b"first", b"second")
    requests: list[tuple[str, bytes]] = []  # noqa: RUF012
    protocol_version = "HTTP/1.1"
    wants = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding"):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        type(self).requests.append((self.path, body))
        if self.wants and self.headers.get("Authorization") != f"Bearer {self.wants}":
            return self.answer(
                401, {"error": {"code": "unauthorized", "message": "It wants a key.", "remedy": "Set it."}}
            )
        if self.status != 200:
            return self.answer(self.status, {"error": {"code": "busy", "message": "All busy.", "remedy": "Wait."}})
        if self.path.startswith("/avatars"):
            return self.answer(200, {"report": {"avatar_id": "me", "frames": 3, "warnings": ["[0] is tiny"]}})
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in self.parts:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if not self.breaks:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = self.breaks

    def do_GET(self) -> None:
        if self.path.endswith("sidecar.jsonl"):
            return self.answer(200 if self.sidecar else 404, self.sidecar)
        summary = {"frames": 25, "duration_s": 1.0, "ttff_ms": 300.0, "rtf": 0.9, "stages": {}}
        line = {"end_s": 1.0 if self.ended else None}
        self.answer(200, {"last": summary if self.ended else None, "utterances": [line]})

    def do_DELETE(self) -> None:
        type(self).requests.append((f"DELETE {self.path}", b""))
        self.answer(200, {"removed": True})

    def answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        pass


@contextmanager
def serving(**behaviour) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    handler = type("Handler", (Server,), {**behaviour, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_said_becomes_a_file(tmp_path):
    with serving() as (url, requests):
        result = run("say", "Hello.", "-o", "deep/[1] out.mp4", "--server", url)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "deep" / "[1] out.mp4").read_bytes() == b"firstsecond"
    assert json.loads(requests[0][1]).keys() == {"text", "session_id", "stream"}
    assert "25 frames, TTFF 300 ms" in result.output and "[1] out.mp4" in result.output


def test_who_says_it_and_how_fast_can_be_chosen():
    chosen = ["--voice", "emma", "--speed", "1.25", "--avatar-id", "me", "--no-enhance"]
    with serving() as (url, requests):
        assert run("say", "Hello.", "-o", "out.mp4", "--server", url, *chosen).exit_code == 0
    asked = json.loads(requests[0][1])
    assert {key: asked[key] for key in ("voice", "speed", "avatar_id", "enhance")} == {
        "voice": "emma",
        "speed": 1.25,
        "avatar_id": "me",
        "enhance": False,
    }
    assert run("say", "Hello.", "--speed", "3").exit_code == 2


def test_a_server_that_wants_a_key_is_sent_the_environments(tmp_path, monkeypatch):
    monkeypatch.delenv("WARMTALK_API_KEY", raising=False)
    with serving(wants="0123456789abcdef") as (url, _):
        assert "It wants a key." in refused("say", "Hello.", "-o", "out.mp4", "--server", url)
        monkeypatch.setenv("WARMTALK_API_KEY", "0123456789abcdef")
        assert run("say", "Hello.", "-o", "out.mp4", "--server", url).exit_code == 0
        (tmp_path / "me.mp4").write_bytes(b"video")
        assert run("prepare", "me.mp4", "--avatar-id", "me", "--server", url).exit_code == 0


def test_a_video_has_its_own_sidecar_beside_it_or_none(tmp_path):
    (tmp_path / "out.sidecar.jsonl").write_bytes(b"of another video")
    with serving(sidecar={}) as (url, _):
        assert run("say", "Hello.", "-o", "out.mp4", "--server", url).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    with serving() as (url, _):
        assert run("say", "Hello.", "-o", "out.mp4", "--server", url).exit_code == 0
    assert (tmp_path / "out.sidecar.jsonl").read_bytes() == b'{"type": "video"}\n'


@pytest.mark.parametrize("behaviour", [{"breaks": True}, {"ended": False}, {"status": 429}])
def test_a_file_is_never_half_written(tmp_path, behaviour):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"what was there")
    with serving(**behaviour) as (url, requests):
        said = refused("say", "Hello.", "-o", str(output), "--server", url)
    assert output.read_bytes() == b"what was there"
    session_id = json.loads(requests[0][1])["session_id"]
    assert requests[-1][0] == f"DELETE /sessions/{session_id}"  # nor is anything left at the server
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert ("busy All busy. → Wait." in said) == ("status" in behaviour)


def test_preparing_on_a_server_sends_the_options_that_were_given(tmp_path):
    (tmp_path / "me.mp4").write_bytes(b"video")
    more = ("--geometry", "box", "--smoothing", "one_euro", "--no-affine-tracking", "--scale-lock", "--no-subpixel")
    with serving() as (url, requests):
        result = run("prepare", "me.mp4", "--avatar-id", "me", "--server", url, "--fps", "30", "--bbox-shift=-3", *more)
    assert result.exit_code == 0, result.output
    ((path, body),) = requests
    assert body == b"video"
    query = dict(pair.split("=") for pair in path.partition("?")[2].split("&"))
    assert query == {
        **{"avatar_id": "me", "force": "false", "fps": "30", "bbox_shift": "-3", "geometry": "box"},
        **{"smoothing": "one_euro", "affine_tracking_enabled": "false"},
        **{"scale_lock_enabled": "true", "subpixel_enabled": "false"},
    }
    assert "[0] is tiny" in result.output


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "profile.json"
    cli._write_whole(path, b"{}")
    assert path.read_bytes() == b"{}" and [p.name for p in path.parent.iterdir()] == ["profile.json"]
    monkeypatch.setattr(Path, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        cli._write_whole(path, b"{1}")
    assert path.read_bytes() == b"{}" and [p.name for p in path.parent.iterdir()] == ["profile.json"]
