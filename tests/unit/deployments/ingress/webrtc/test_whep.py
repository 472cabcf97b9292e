"""WHEP over the routes: statuses, headers, and what ends a connection."""

import asyncio
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from configs.schema import IceServer, IngressConfig
from deployments.ingress.app import api
from deployments.ingress.webrtc import whep
from deployments.ingress.webrtc.whep import Whep, ice_link
from models.errors import NotFoundError, SessionNotFound
from models.live.timeline import IdleGrid, encode_idle, split_fragment
from models.media.encode import UtteranceEncoder
from tests.support.ingress import Handle, error_of, make_replica
from tests.support.live import AVATAR, RATE, SIDE, SPEC, FakeStitch
from tests.unit.deployments.ingress.webrtc.test_peers import Client

SDP = {"Content-Type": "application/sdp"}
TURN = {"urls": ["stun:stun.example", "turn:turn.example:3478?transport=udp"], "username": 'a"b', "credential": "c"}
LINKS = (
    '<stun:stun.example>; rel="ice-server", <turn:turn.example:3478?transport=udp>; rel="ice-server"; '
    'username="a\\"b"; credential="c"; credential-type="password"'
)


class LiveStitch(Handle):
    """Stitch with sessions that can be watched."""

    def __init__(self, source: FakeStitch) -> None:
        super().__init__()
        self.live = SimpleNamespace(remote=source.subscribe)


@pytest.fixture
async def server(monkeypatch, tmp_path):
    """(client of the routes, ingress replica, fake Stitch) with the idle session `alice`."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    path = tmp_path / "ann.mp4"
    path.write_bytes(encode_idle(AVATAR, SPEC))
    stitch = FakeStitch(path, 100)
    ingress = make_replica(monkeypatch, LiveStitch(stitch))
    monkeypatch.setattr(ingress._whep, "_end_elsewhere", nobody)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://here") as client:
        yield client, ingress, stitch
    await ingress._whep.peers.stop()
    await ingress._hubs.stop()


async def nobody(peer_id: str) -> bool:
    return False


async def offered() -> tuple[Client, str]:
    client = Client()
    return client, await client.offer()


async def test_an_offer_is_answered_and_its_location_ends_the_connection(server):
    http, ingress, _ = server
    client, sdp = await offered()
    answer = await http.post("/sessions/alice/whep", content=sdp, headers=SDP)
    assert answer.status_code == 201 and answer.headers["content-type"] == "application/sdp"
    assert answer.text.startswith("v=0") and "a=sendonly" in answer.text
    place = answer.headers["location"]
    assert place.startswith("/sessions/alice/whep/")
    assert (await ingress.stats()).items() >= {"viewers": 1, "webrtc": 1}.items()
    gone = await http.delete(place)
    assert gone.status_code == 200 and gone.json()["ended"] == place.rpartition("/")[2]
    assert (await ingress.stats()).items() >= {"viewers": 0, "webrtc": 0}.items()
    again = await http.delete(place)
    assert (again.status_code, error_of(again)["code"]) == (404, "not_found")
    await client.close()


async def test_invalid_offers_and_unknown_sessions_are_refused(server):
    http, ingress, stitch = server
    client, sdp = await offered()
    cases = [
        ("alice", "v=0", SDP, 422, "bad_input"),
        ("alice", "{}", {"Content-Type": "application/json"}, 415, "bad_media_type"),
        ("alice", sdp, {}, 415, "bad_media_type"),
        ("a.b", sdp, SDP, 422, "bad_id"),
        ("alice", "v=0\r\n" * 60_000, SDP, 413, "http_413"),
    ]
    for session, body, headers, status, code in cases:
        answer = await http.post(f"/sessions/{session}/whep", content=body, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    stitch.errors.append(SessionNotFound("There is no session 'nobody'.", "Open it."))
    answer = await http.post("/sessions/nobody/whep", content=sdp, headers={"Content-Type": "Application/SDP; a=b"})
    assert (answer.status_code, error_of(answer)["code"]) == (404, "session_not_found")
    assert (await ingress.stats()).items() >= {"viewers": 0, "webrtc": 0}.items()
    await client.close()


@pytest.mark.parametrize("limit", [{"max_webrtc_viewers": 1}, {"max_viewers": 1}])
async def test_one_viewer_too_many_is_429_with_retry_after(server, limit):
    http, ingress, _ = server
    await ingress.reconfigure(limit)
    (one, first), (two, second) = await offered(), await offered()
    place = (await http.post("/sessions/alice/whep", content=first, headers=SDP)).headers["location"]
    refused = await http.post("/sessions/alice/whep", content=second, headers=SDP)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "busy") and refused.headers["retry-after"] == "2"
    await http.delete(place)
    assert (await http.post("/sessions/alice/whep", content=second, headers=SDP)).status_code == 201
    await asyncio.gather(one.close(), two.close())


async def test_without_webrtc_options_and_post_say_so(server, monkeypatch):
    http, ingress, _ = server
    await ingress.reconfigure({"max_webrtc_viewers": 0})
    answer = await http.options("/sessions/alice/whep")
    assert (answer.status_code, answer.headers["allow"]) == (204, "OPTIONS") and "accept-post" not in answer.headers
    answer = await http.post("/sessions/alice/whep")
    assert (answer.status_code, error_of(answer)["code"]) == (501, "not_configured")
    await ingress.reconfigure({})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (await http.options("/sessions/alice/whep")).headers["allow"] == "OPTIONS"
    answer = await http.post("/sessions/alice/whep")
    assert answer.status_code == 501 and "pip install 'warmtalk[webrtc]'" in error_of(answer)["remedy"]


async def test_options_list_the_ice_servers(server):
    http, ingress, _ = server
    answer = await http.options("/sessions/alice/whep")
    assert (answer.status_code, answer.headers["accept-post"], answer.headers["allow"]) == (
        204,
        "application/sdp",
        "OPTIONS, POST",
    )
    assert "link" not in answer.headers
    await ingress.reconfigure({"ice_servers": [TURN]})
    assert (await http.options("/sessions/alice/whep")).headers["link"] == LINKS


def test_the_link_of_a_stun_server_has_no_password():
    assert ice_link(IceServer(**TURN), "stun:stun.example") == '<stun:stun.example>; rel="ice-server"'


@pytest.mark.parametrize(
    ("server", "wrong"),
    [
        ({"urls": ["http://stun.example"]}, "is not a stun:"),
        ({"urls": ["stun:a.example>; rel=x"]}, "is not a stun:"),
        ({"urls": ["turn:turn.example"]}, "needs username and credential"),
        ({"urls": []}, "at least 1"),
        ({"url": "stun:stun.example"}, "did you mean 'urls'"),
    ],
)
def test_an_invalid_ice_server_is_a_config_error(server, wrong):
    with pytest.raises(ValidationError, match=wrong):
        IngressConfig(ice_servers=[server])


async def test_patch_is_405(server):
    http, _, _ = server
    answer = await http.patch("/sessions/alice/whep/abc", content="a=candidate")
    assert answer.status_code == 405 and answer.headers["allow"] == "OPTIONS, DELETE"
    assert "all candidates" in error_of(answer)["remedy"]


async def test_pages_of_allowed_origins_can_play_and_read_the_location(server):
    http, ingress, _ = server
    page = {"Origin": "https://player.example"}
    asks = {**page, "Access-Control-Request-Method": "POST"}
    client, sdp = await offered()
    assert "access-control-allow-origin" not in (await http.options("/sessions/alice/whep", headers=asks)).headers
    assert (await http.post("/sessions/alice/whep", content=sdp, headers={**SDP, **page})).status_code == 403
    await ingress.reconfigure({"allowed_origins": ["https://player.example"]})
    preflight = await http.options("/sessions/alice/whep", headers=asks)
    assert preflight.headers["access-control-allow-origin"] == "https://player.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    answer = await http.post("/sessions/alice/whep", content=sdp, headers={**SDP, **page})
    assert answer.status_code == 201 and "Location" in answer.headers["access-control-expose-headers"]
    wrong = await http.post("/sessions/alice/whep", content=sdp, headers=page)
    assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (415, "https://player.example")
    await client.close()


async def test_a_connection_of_another_replica_can_be_ended(server, monkeypatch):
    http, ingress, _ = server
    asked = []

    async def other(peer_id: str) -> bool:
        asked.append(peer_id)
        return peer_id == "theirs"

    monkeypatch.setattr(ingress._whep, "_end_elsewhere", other)
    assert (await http.delete("/sessions/alice/whep/theirs")).status_code == 200
    assert (await http.delete("/sessions/alice/whep/nobodys")).status_code == 404
    assert asked == ["theirs", "nobodys"] and not await ingress.end_peer("nobodys")


async def test_all_replicas_are_asked_to_end_a_connection(monkeypatch):
    async def results_async(return_exceptions: bool) -> list:
        return answers

    asked = []
    handle = SimpleNamespace(broadcast=lambda *call: asked.append(call) or SimpleNamespace(results_async=results_async))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(deployment="Ingress", app_name="app"))
    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda name, app: handle)
    for given, had in ([False, True], True), ([False, RuntimeError()], False):
        answers = given
        assert await whep.end_on_other_replica("abc") is had
    assert asked == [("end_peer", "abc")] * 2


async def test_an_unknown_connection_is_not_found():
    with pytest.raises(NotFoundError):
        await Whep(None, IngressConfig, nobody).end("abc")


@pytest.mark.full
async def test_pictures_arrive_in_time_and_in_sync_with_the_sound(server):
    """Glass to glass on one machine, in real time: from when a frame is due to its pixels at the client."""
    from benchmarks.webrtc import Player, lateness_s, sound_after_picture_s

    http, ingress, stitch = server
    player = await Player(http, "alice").play()
    await player.seen(25)
    watcher = await ingress._hubs.view("alice")
    watched, came_s = [watcher.timeline.init], []

    async def watch() -> None:
        async for piece, data in watcher.muxed():
            watched.append(data)
            came_s.extend([time.time()] * piece.frames)

    watching = asyncio.create_task(watch())
    place = IdleGrid.of(len(AVATAR), SPEC.fps).ceil(stitch.clock.position(time.time() + 0.5))
    random = np.random.default_rng(0)
    faces = random.integers(40, 200, (40, 4, 4, 3), np.uint8).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    noise = (0.3 * random.standard_normal(40 * RATE // 25)).clip(-1, 1).astype(np.float32)
    said = UtteranceEncoder(SPEC)
    file = said.push(faces, noise, last=True)
    for fragment in file:
        for piece in split_fragment(
            fragment, place + fragment.video_start // SPEC.frame_ticks, 1, fragment.video_start == 0
        ):
            stitch.send(piece)
    await asyncio.sleep(2.8)
    got = await player.stop()
    watcher.close()
    await watching
    late_s = lateness_s(got, b"".join(watched), came_s)
    assert len(late_s) > 40 and 0.05 < np.percentile(late_s, 25) < 0.2, np.percentile(late_s, (5, 25, 50, 95))
    assert abs(sound_after_picture_s(got, said.init_segment + b"".join(f.data for f in file))) < 0.08
