"""The commands without a graph: help with examples, options, errors with a remedy, and a server of a few lines."""

import json
import shlex
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import typer
from typer.testing import CliRunner

from models.errors import AvatarNotFound
from tests.support.paths import ROOT
from warmtalk.cli import app as cli
from warmtalk.cli.ports import ServerRunningError
from warmtalk.cli.say import check_before_start, next_steps
from warmtalk.cli.tables import report_row

COMMANDS = sorted(typer.main.get_command(cli.app).commands)


@pytest.fixture(autouse=True)
def no_graph(monkeypatch, tmp_path):
    """A command that starts a graph fails; results go to the test's folder."""

    def refuse(*arguments, **options):
        raise AssertionError("a graph was started")

    monkeypatch.setattr("warmtalk.cli.local_graph.LocalGraph.start", refuse)
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert not isinstance(result.exception, AssertionError), result.exception
    return result


def refused(*arguments: str) -> str:
    """The output of a command that exits with status 1, an error and a remedy."""
    result = run(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), (result.exit_code, result.exception)
    assert "Traceback" not in result.output and "→" in result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_that_parses(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    epilog = typer.main.get_command(cli.app).commands[command].epilog
    assert f"`warmtalk {command}" in epilog and "Example" in result.output
    words = shlex.split(epilog.split("`")[1])[2:]
    typer.main.get_command(cli.app).commands[command].make_context(command, words)


@pytest.mark.parametrize("command", [["load", "--server"], ["profile", "--address"]])
def test_a_server_that_does_not_run_is_an_error_with_a_remedy(command, tmp_path):
    assert "The server cannot be reached" in refused(*command, "http://127.0.0.1:1")
    assert "is a folder" in refused("load", "--server", "http://127.0.0.1:1", "-o", str(tmp_path))


@pytest.mark.parametrize("arguments", [["say"], ["say", "  "]])
def test_say_without_a_text_lists_the_ways_to_give_one(arguments):
    assert "bad_input There is nothing to say. → Give a text, `-` to read standard input, --file" in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hello.", "--audio", "a.wav"], "A text and --audio exclude each other. → Give only one of them."),
        (["Hello.", "--file", "a.txt"], "A text and --file exclude each other."),
        (["--file", "a.txt", "--audio", "a.wav"], "--file and --audio exclude each other."),
        (["--audio", "a.wav", "--voice", "emma"], "--voice and --audio exclude each other."),
        (["--audio", "a.wav", "--speed", "1.5"], "--speed and --audio exclude each other."),
    ],
)
def test_options_that_exclude_each_other_are_named(arguments, message):
    assert message in refused("say", *arguments)


def test_say_reads_standard_input_or_a_file(tmp_path):
    (tmp_path / "speech.txt").write_bytes("\ufeffGrüße aus einer Datei.\n".encode())
    with serving() as (url, requests):
        typed = CliRunner().invoke(cli.app, ["say", "-", "-o", "a.mp4", "--server", url], input="Typed text.\n")
        assert typed.exit_code == 0, typed.output
        assert run("say", "--file", "speech.txt", "-o", "b.mp4", "--server", url).exit_code == 0
        spoken = [json.loads(body)["text"] for path, body in requests if path == "/speak"]
    assert spoken == ["Typed text.\n", "Grüße aus einer Datei.\n"]


def test_an_empty_missing_or_binary_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "sound.wav").write_bytes(b"RIFF\xff\xfe")
    assert "empty.txt is empty: there is nothing to say." in refused("say", "--file", "empty.txt")
    assert "Text file not found: gone.txt." in refused("say", "--file", "gone.txt")
    assert "sound.wav is not UTF-8 text. → Use --audio" in refused("say", "--file", "sound.wav")
    result = CliRunner().invoke(cli.app, ["say", "-"], input="")
    assert result.exit_code == 1 and "Standard input is empty" in result.output


def test_a_missing_or_empty_recording_is_named(tmp_path):
    assert "Input audio not found: gone.wav." in refused("say", "--audio", "gone.wav")
    (tmp_path / "empty.wav").touch()
    assert "empty.wav is empty: there is nothing to say." in refused("say", "--audio", "empty.wav")


def test_an_unknown_avatar_or_a_bad_recording_is_refused_before_the_graph_starts(tmp_path):
    said = refused("say", "Hello.", "--avatar-id", "nobody")
    assert "There is no avatar 'nobody'; known avatars: presenter. → Prepare it with" in said
    assert "bad_id" in refused("say", "Hello.", "--avatar-id", "../x")
    (tmp_path / "noise.wav").write_bytes(b"no sound" * 100)
    assert "The data is not audio in a known format" in refused("say", "--audio", "noise.wav")
    write_wav_of(tmp_path / "long.wav", seconds=3)
    (tmp_path / "short.yaml").write_text(
        "applications: [{import_path: 'graph:build_app', deployments: [{name: Stitch, user_config: {max_audio_s: 1}}]}]"
    )
    assert "1 s" in refused("say", "--audio", "long.wav", "--config", "short.yaml")


def test_an_avatar_that_is_prepared_at_the_start_may_be_missing_before(monkeypatch, tmp_path):
    (tmp_path / "me.yaml").write_text(
        "applications: [{import_path: 'graph:build_app', deployments: "
        "[{name: Avatars, user_config: {avatar_id: me, video_path: me.mp4}}]}]"
    )
    check_before_start(str(tmp_path / "me.yaml"), "me", None)
    with pytest.raises(AvatarNotFound):
        check_before_start(str(tmp_path / "me.yaml"), "you", None)


def write_wav_of(path, seconds: float) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(b"\x01\x10" * round(16_000 * seconds))


def test_a_port_beside_the_url_of_a_server_is_refused():
    said = refused("say", "Hello.", "--server", "http://127.0.0.1:8000", "--port", "8001")
    assert "--server and --port exclude each other. → Leave --port out" in said


@pytest.mark.parametrize(
    ("name", "found"), [("x.webm", "not .webm"), ("x", "and has no suffix"), ("x.mov", "not .mov")]
)
def test_say_writes_mp4_only(name, found):
    assert f"The video {name} is written as .mp4, {found}. → Use -o x.mp4" in refused("say", "Hello.", "-o", name)


def test_say_offers_the_server_that_runs_already(monkeypatch):
    def start(self, progress=None):
        raise ServerRunningError("http://127.0.0.1:8000")

    monkeypatch.setattr("warmtalk.cli.local_graph.LocalGraph.start", start)
    said = refused("say", "Hello.")
    assert "A WarmTalk server is already running at http://127.0.0.1:8000." in said
    assert "→ Add `--server http://127.0.0.1:8000` to use it" in said
    assert "→ Open http://127.0.0.1:8000, or pass --port" in refused("serve")
    assert "→ Add `--address http://127.0.0.1:8000` to read what it records" in refused("profile")


def test_a_missing_package_is_named(monkeypatch):
    def main(*arguments):
        raise ModuleNotFoundError("No module named 'cv2'", name="cv2")

    monkeypatch.setattr("warmtalk.cli.doctor.main", main)
    assert "missing_package The package 'opencv-python-headless' is not installed. → Run" in refused("doctor")


def test_a_missing_video_is_named():
    assert "Input video not found: gone.mp4." in refused("prepare", "gone.mp4", "--avatar-id", "me")


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    assert "out.mp4 is a folder." in refused("profile", "--json", "out.mp4")
    assert "out.mp4 is a folder." in refused("say", "Hello.", "-o", "out.mp4")
    (tmp_path / "file").write_text("")
    assert "file file: File exists. → Check the path" in refused("say", "Hello.", "-o", "file/out.mp4")


def test_an_invalid_config_is_explained(tmp_path):
    assert "There is no config file 'dmo'" in refused("serve", "--config", "dmo")
    (tmp_path / "x.yaml").write_text("applications: [{deployments: [{name: TTS, user_config: {spede: 1}}]}]")
    assert "unknown key 'spede': did you mean 'speed'?" in refused("say", "Hello.", "--config", "x.yaml")
    said = refused("prepare", __file__, "--avatar-id", "me", "--set", "spede=1")
    assert "unknown key 'spede'" in said and "→ Correct the config file or the --set options." in said


def test_brackets_in_a_message_are_printed_as_they_are():
    assert "Input video not found: a[/b]c[red].mp4." in refused("prepare", "a[/b]c[red].mp4", "--avatar-id", "me")


@pytest.mark.parametrize("server", ["http://127.0.0.1:9", "127.0.0.1:9"])
def test_an_unreachable_server_is_reported(server, tmp_path):
    for arguments in (["say", "Hello."], ["prepare", __file__, "--avatar-id", "me"]):
        said = refused(*arguments, "--server", server)
        assert "unreachable The server cannot be reached" in said and "→ Check the address given with --server" in said
        assert ".." not in said


def test_a_server_address_that_is_not_a_url_is_reported():
    assert "bad_url The address of the server is not a URL" in refused("say", "Hello.", "--server", "http://host:port")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_an_invalid_port_is_refused(port):
    result = run("serve", "--port", port)
    assert result.exit_code == 2 and "--port" in result.output


# --- with a server


SHEET = f"/{'long' * 30}/contact.png"


class Server(BaseHTTPRequestHandler):
    """Answers /speak with `parts`, without an end if `breaks`; records the requests."""

    status, breaks, ended = 200, False, True
    warnings: list[str] = []  # noqa: RUF012
    sidecar: dict = {"type": "video"}  # noqa: RUF012
    parts = (b"first", b"second")
    requests: list[tuple[str, bytes]] = []  # noqa: RUF012
    protocol_version = "HTTP/1.1"
    key = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding"):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        type(self).requests.append((self.path, body))
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            return self.answer(
                401, {"error": {"code": "unauthorized", "message": "An API key is required.", "remedy": "Set it."}}
            )
        if self.status != 200:
            return self.answer(self.status, {"error": {"code": "busy", "message": "All busy.", "remedy": "Wait."}})
        if self.path.startswith("/avatars"):
            report = {"avatar_id": "me", "contact_sheet": SHEET, "warnings": ["[0] is tiny"]}
            return self.answer(200, {"report": report})
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
        summary["warnings"] = self.warnings
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


def test_say_writes_the_video_and_prints_a_summary(tmp_path):
    with serving() as (url, requests):
        result = run("say", "Hello.", "-o", "deep/[1] out.mp4", "--server", url)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "deep" / "[1] out.mp4").read_bytes() == b"firstsecond"
    assert json.loads(requests[0][1]).keys() == {"text", "session_id", "stream"}
    assert "25 frames, TTFF 300 ms" in result.output and "[1] out.mp4" in result.output
    assert f"Try next: open {url} in a browser" in result.output  # no `make` where there is no Makefile


def test_say_prints_what_was_not_spoken():
    with serving(warnings=['Skipped "[1] 你好": it is unreadable.']) as (url, _):
        result = run("say", "Hello.", "-o", "out.mp4", "--server", url)
    assert result.exit_code == 0 and 'warning Skipped "[1] 你好": it is unreadable.' in result.output


def test_say_sends_the_chosen_options():
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


def test_the_api_key_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("WARMTALK_API_KEY", raising=False)
    with serving(key="0123456789abcdef") as (url, _):
        assert "An API key is required." in refused("say", "Hello.", "-o", "out.mp4", "--server", url)
        monkeypatch.setenv("WARMTALK_API_KEY", "0123456789abcdef")
        assert run("say", "Hello.", "-o", "out.mp4", "--server", url).exit_code == 0
        (tmp_path / "me.mp4").write_bytes(b"video")
        assert run("prepare", "me.mp4", "--avatar-id", "me", "--server", url).exit_code == 0


def test_a_video_gets_its_own_sidecar_or_none(tmp_path):
    (tmp_path / "out.sidecar.jsonl").write_bytes(b"of another video")
    with serving(sidecar={}) as (url, _):
        assert run("say", "Hello.", "-o", "out.mp4", "--server", url).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    with serving() as (url, _):
        assert run("say", "Hello.", "-o", "out.mp4", "--server", url).exit_code == 0
    assert (tmp_path / "out.sidecar.jsonl").read_bytes() == b'{"type": "video"}\n'


@pytest.mark.parametrize("behaviour", [{"breaks": True}, {"ended": False}, {"status": 429}])
def test_say_writes_the_whole_video_or_nothing(tmp_path, behaviour):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"what was there")
    with serving(**behaviour) as (url, requests):
        said = refused("say", "Hello.", "-o", str(output), "--server", url)
    assert output.read_bytes() == b"what was there"
    session_id = json.loads(requests[0][1])["session_id"]
    assert requests[-1][0] == f"DELETE /sessions/{session_id}"  # and nothing is left on the server
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert ("busy All busy. → Wait." in said) == ("status" in behaviour)


def test_prepare_on_a_server_sends_the_given_options(tmp_path):
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
    assert "[0] is tiny" in result.output and f"contact sheet: {SHEET}\n" in result.output


def test_the_next_steps_work_where_they_are_printed(tmp_path, monkeypatch):
    assert "make" not in next_steps(None) and "warmtalk serve" in next_steps(None)
    monkeypatch.chdir(ROOT)
    assert "make demo" in next_steps(None)
    assert next_steps("http://host:8000") == "Try next: open http://host:8000 in a browser and talk."


def test_a_report_shows_values_and_no_python_tuples():
    assert report_row("face_px", (131, 133, 136)) == ("face px (min / median / max)", "131 / 133 / 136")
    assert report_row("bbox_shift_range", [-9, 4]) == ("bbox shift range (from / to)", "-9 / 4")
    assert report_row("cuts", []) == ("cuts", "none") and report_row("cuts", [12, 50]) == ("cuts", "12, 50")
    assert report_row("tracked", 0.984) == ("tracked frames", "98%")
    assert report_row("video_copied", True) == ("video copied", "yes")
    assert report_row("seconds", 12.3456) == ("prepared in", "12.3 s")
