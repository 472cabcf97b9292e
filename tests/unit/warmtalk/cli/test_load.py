"""`warmtalk load` against a server of a few lines: what it sends, counts and reports."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
import websockets.asyncio.server as websockets

from models.errors import ConfigError, ExistsError
from tests.support.live import SPEC, fragments
from warmtalk.cli.load import command
from warmtalk.cli.load.report import busy_over_time, errors, figures, page, stage_figures
from warmtalk.cli.load.runner import Load, Run, Stay, Turn
from warmtalk.cli.load.scenario import SHIPPED, Scenario, read_scenario
from warmtalk.cli.load.viewers import FrameCounter, late_frames

QUICK = {"duration_s": 0.6, "sessions": 3, "arrivals_per_s": 50, "stay_s": 5, "pause_s": 0.01, "texts": ["Hi."]}


@pytest.fixture(scope="module")
def video() -> list[bytes]:
    """Fragments of 16 frames."""
    return [piece.data for piece in fragments(np.full((16, SPEC.height, SPEC.width, 3), 90, np.uint8))]


class Stream(httpx.AsyncByteStream):
    def __init__(self, parts: list[bytes], hold: bool) -> None:
        self.parts, self.hold = parts, hold

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part
        if self.hold:
            await asyncio.sleep(60)


class Server:
    """Refuses each fifth utterance. calls: (method, path, body)."""

    def __init__(self, video: list[bytes], state: dict | None = None) -> None:
        self.video, self.state, self.calls, self.spoken, self.hold = video, state, [], 0, True

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        self.calls.append((request.method, request.url.path, body))
        if request.url.path == "/admin/state":
            return httpx.Response(200, json=self.state) if self.state else httpx.Response(403)
        if request.url.path.endswith("live.mp4"):
            return httpx.Response(200, stream=Stream(self.video, self.hold))
        if request.url.path == "/speak":
            return await self.speak(body)
        return httpx.Response(200, json={})

    async def speak(self, body: dict) -> httpx.Response:
        self.spoken += 1
        if self.spoken % 5 == 0:
            error = {"error": {"code": "busy", "message": "The server is overloaded."}}
            return httpx.Response(429, json=error, headers={"retry-after": "0.05"})
        await asyncio.sleep(0.02)
        if body.get("stream"):
            return httpx.Response(200, stream=Stream(self.video, hold=False))
        return httpx.Response(200, json={"ttff_ms": 40.0, "frames": 16, "live": {"holds": 0, "held_s": 0.0}})


def play(server: Server, **changes: object) -> Run:
    scenario = Scenario(**({**QUICK, "watch": {"fmp4": 1}} | changes))
    load = Load("http://server", scenario, transport=httpx.MockTransport(server))
    return asyncio.run(load.play())


def test_watched_sessions_speak_in_turns_and_are_deleted(video):
    server = Server(video)
    found = figures(play(server))
    opened = {body["session_id"] for method, path, body in server.calls if (method, path) == ("POST", "/sessions")}
    deleted = {path.rsplit("/", 1)[1] for method, path, _ in server.calls if method == "DELETE"}
    assert opened == deleted and found["sessions at a time"] == 3
    assert found["utterances"] > found["sessions"] and found["TTFF p50, ms"] == 40
    assert found["refused (429)"] == server.spoken // 5 > 0 == found["failed"]
    assert found["sessions held"] < found["sessions"]  # those that were refused are not


def test_unwatched_sessions_measure_the_first_fragment_of_their_own_stream(video):
    server = Server(video)
    run = play(server, watch={"none": 1})
    spoken = [turn for turn in run.turns if turn.status == 200]
    assert {turn.frames for turn in spoken} == {16} and all(turn.ttff_ms >= 20 for turn in spoken)
    assert not any(path.endswith("live.mp4") for _, path, _ in server.calls)


def test_shares_of_enhancement_and_interruption_are_sent(video):
    server = Server(video)
    play(server, enhance=1.0, interrupt=1.0, avatars=["me"])
    spoken = [body for _, path, body in server.calls if path == "/speak"]
    assert all(body["enhance"] and body["avatar_id"] == "me" for body in spoken)
    scenario = read_scenario(None)
    assert 0 < scenario.interrupt < 1 and set(scenario.watch) == {"fmp4", "websocket", "webrtc", "none"}


def test_a_session_that_cannot_be_watched_is_reported_with_the_servers_words():
    async def refuse(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("live.mp4"):
            return httpx.Response(503, json={"error": {"message": "Too many viewers."}})
        return httpx.Response(200, json={})

    load = Load("http://server", Scenario(**QUICK, watch={"fmp4": 1}), transport=httpx.MockTransport(refuse))
    run = asyncio.run(load.play())
    assert {stay.error for stay in run.stays} == {"status 503"} or "Too many viewers" in errors(run)[0][0]
    assert figures(run)["sessions held"] == 0 and figures(run)["failed"] == len(run.stays)


def test_a_session_whose_stream_ends_early_is_not_held(video):
    server = Server(video)
    server.hold = False
    found = play(server)
    assert {stay.error for stay in found.stays} == {"The server ended the stream."}
    assert figures(found)["sessions held"] == 0


def test_refused_websockets_and_dates_in_retry_after_do_not_end_the_load():
    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/speak":
            return httpx.Response(429, headers={"retry-after": "Mon, 30 Nov 2026 21:00:00 GMT"})
        return httpx.Response(200, json={})

    async def run(watch: str) -> Run:
        refuse = {"process_request": lambda connection, request: connection.respond(429, "Too many viewers.")}
        async with websockets.serve(lambda socket: None, "127.0.0.1", 0, **refuse) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            scenario = Scenario(**QUICK | {"duration_s": 0.2}, watch={watch: 1})
            return await Load(url, scenario, transport=httpx.MockTransport(answer)).play()

    stays = asyncio.run(run("websocket")).stays
    assert len(stays) > 1 and all("429" in stay.error for stay in stays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warmtalk.cli.load.runner.RETRY_S", 0.05)
        assert figures(asyncio.run(run("none")))["refused (429)"] > 0


@pytest.mark.parametrize("size", [1, 7, 1000, 10**9])
def test_frames_are_counted_however_the_stream_is_cut(video, size):
    counter, data = FrameCounter(), b"".join(video)
    assert sum(counter.take(data[k : k + size]) for k in range(0, len(data), size)) == 16


def test_a_pause_counts_its_frames_once():
    steady = [k / 25 for k in range(100)]
    assert late_frames(steady, 0.3) == 0
    assert late_frames(steady[:50] + [at + 0.2 for at in steady[50:]], 0.3) == 0  # within the buffer
    assert late_frames(steady[:50] + [at + 1.0 for at in steady[50:]], 0.3) == 1  # the player goes on a second later
    assert late_frames([], 0.3) == 0


REPLICAS = [{"recent": {"span_s": 10.0, "busy_ms": {"sum": busy_ms}}} for busy_ms in (5000.0, 1000.0)]
STATE = {"stages": {"LipSync": {"states": {"RUNNING": 2}, "replicas": REPLICAS}}}


def test_the_report_shows_sessions_refusals_and_the_stages(video, tmp_path, capsys):
    server = Server(video, STATE)
    run = play(server)
    assert stage_figures(run) == {
        "LipSync": {"least": 2, "most": 2, "busy": pytest.approx(0.3), "peak": pytest.approx(0.3)}
    }
    assert busy_over_time(run, "TTS") == []
    command.show(run, tmp_path / "a" / "load.html", tmp_path / "load.json")
    html = (tmp_path / "a" / "load.html").read_text()
    assert html.count("<svg") == 4 and "sessions held" in html and "The server is overloaded." in html
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    facts = json.loads((tmp_path / "load.json").read_text())
    assert facts["figures"]["utterances"] == len(run.turns) and facts["stages"]["LipSync"]["most"] == 2
    assert "LipSync" in capsys.readouterr().out


def test_texts_of_errors_cannot_become_html():
    scenario = Scenario(**QUICK, watch={"fmp4": 1})
    run = Run(scenario, [Turn("a", 0.1, 500, error="<script>alert(1)</script>")], [Stay("a", "fmp4", 0, 1, 0, 0)])
    assert "<script>" not in page(run) and "&lt;script&gt;" in page(run)


@pytest.mark.parametrize(
    ("line", "key"),
    [("sessions: 0", "sessions"), ("watch: {fmp4: 0}", "watch"), ("watch: {smoke: 1}", "watch"), ("speed: 3", "speed")],
)
def test_a_wrong_scenario_names_the_key(tmp_path, line, key):
    path = tmp_path / "mine.yaml"
    command.write_scenario(path)
    with pytest.raises(ExistsError):
        command.write_scenario(path)
    assert read_scenario(path) == read_scenario(SHIPPED)
    name = line.split(":")[0]
    path.write_text(
        "\n".join(row for row in path.read_text().splitlines() if not row.startswith(name + ":")) + f"\n{line}\n"
    )
    with pytest.raises(ConfigError, match=key):
        read_scenario(path)
