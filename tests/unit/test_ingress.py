"""The ingress without Ray: ranges of a growing file, limits of bodies, what errors become, what is cancelled."""

import asyncio
import contextlib
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.testclient import TestClient

from deployments import http, ingress
from deployments.failures import known_error
from deployments.http import BoundedJson, api, file_range
from deployments.ingress import Ingress
from deployments.requests import SpeakEvent
from deployments.views import faststart
from models import errors
from models.errors import AvatarNotFound, BusyError, StageError, TextError
from models.stitch.session import SessionFile
from models.stitch.sidecar import sidecar_path
from tests.unit.live_material import SPEC, fragments, levels, shown


class Events:
    """A streaming response: yields `items`, raising those that are errors."""

    def __init__(self, items) -> None:
        self.items, self.cancelled = list(items), False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True


class Turns(list):
    """Answers of a method, one a call."""


class Handle:
    """A deployment: `answers` says what each method gives; `asked` and `made` remember."""

    def __init__(self, **answers) -> None:
        self.answers, self.asked, self.made = answers, [], []

    def options(self, **options):
        return self

    def __getattr__(self, name: str):
        return SimpleNamespace(remote=lambda *arguments: self._call(name, arguments))

    def _call(self, name: str, arguments: tuple):
        self.asked.append((name, arguments))
        answer = self.answers[name]
        if isinstance(answer, Turns):
            answer = answer.pop(0)
        if isinstance(answer, list):
            self.made.append(Events(answer))
            return self.made[-1]

        async def give():
            if isinstance(answer, Exception):
                raise answer
            return answer

        return give()


SUMMARY = {"session_id": "default", "frames": 25}
SPOKEN = [SpeakEvent(b"init"), SpeakEvent(b"one", 4), SpeakEvent(b"two", 8), SpeakEvent(summary=SUMMARY)]


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(stitch=…, avatars=…, config=…) → a client of the routes, bound to an ingress over fake handles."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setattr(BoundedJson, "max_bytes", BoundedJson.max_bytes)

    def start(stitch=None, avatars=None, config=None, tts=None, chat=None) -> TestClient:
        plain = next(kind for kind in Ingress.__mro__ if "_answer" in vars(kind))  # without Serve's wrapping
        served = plain(stitch or Handle(), avatars or Handle(), tts or Handle(), chat or Handle())
        asyncio.run(served.reconfigure(config or {}))
        monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=served))
        return TestClient(api, raise_server_exceptions=False)

    return start


def error_of(answer) -> dict:
    assert answer.json().keys() == {"error"} and "Traceback" not in answer.text
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "remedy"} and error["message"].endswith(".")
    return error


# --- the growing file


@pytest.fixture
def grown(tmp_path) -> Path:
    """A file whose first 1000 bytes are whole fragments; what follows is half of one."""
    path = tmp_path / "video.mp4"
    path.write_bytes(bytes(k % 251 for k in range(1000)) + b"HALF" * 10)
    return path


def ranged(path: Path, wanted: str, **options):
    return file_range(path.open("rb"), 1000, "tag", {"range": wanted} if wanted else {}, **options)


async def body_of(answer) -> bytes:
    return b"".join([part async for part in answer.body_iterator]) if hasattr(answer, "body_iterator") else answer.body


@pytest.mark.parametrize(
    ("wanted", "begin", "end"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=100-199", 100, 200),
        ("bytes=999-999", 999, 1000),
        ("bytes=900-", 900, 1000),
        ("bytes=900-5000", 900, 1000),  # the end of what is whole, not of the file
        ("bytes=-100", 900, 1000),
        ("bytes=-5000", 0, 1000),
        (" bytes=0-0 ", 0, 1),
    ],
)
async def test_a_range_holds_whole_fragments_bytes_and_no_others(grown, wanted, begin, end):
    answer = ranged(grown, wanted)
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/1000"
    assert answer.headers["content-length"] == str(end - begin)
    assert await body_of(answer) == grown.read_bytes()[begin:end]


@pytest.mark.parametrize("wanted", ["", "bytes=-", "bytes=0-1,5-6", "frames=0-9", "bytes=a-b", f"bytes={'9' * 5000}-"])
async def test_what_is_no_single_range_gets_the_whole(grown, wanted):
    answer = ranged(grown, wanted)
    assert (answer.status_code, answer.headers["content-length"]) == (200, "1000")
    assert answer.headers["accept-ranges"] == "bytes"
    assert await body_of(answer) == grown.read_bytes()[:1000]


@pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=1000-1010", "bytes=-0", "bytes=200-100"])
def test_a_range_behind_the_end_is_416_and_says_where_the_end_is(grown, wanted):
    answer = ranged(grown, wanted)
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */1000")


def session_of(path: Path, generation: str = "first", **options) -> Handle:
    facts = {"video_path": str(path), "size": 1000, "video_tag": f"{generation}-{path.stat().st_ino:x}"}
    return Handle(session={**facts, **options})


def test_a_sessions_video_is_as_long_as_stitch_says(serve, grown):
    client = serve(session_of(grown))
    assert client.get("/sessions/alice/video.mp4").content == grown.read_bytes()[:1000]
    part = client.get("/sessions/alice/video.mp4", headers={"Range": "bytes=990-"})
    assert (part.status_code, part.content) == (206, grown.read_bytes()[990:1000])


def test_a_sidecar_is_sent_up_to_its_last_whole_line(serve, grown):
    client = serve(session_of(grown))
    assert client.get("/sessions/alice/sidecar.jsonl").content == b""
    sidecar_path(grown).write_bytes(b'{"type":"video"}\n{"type":"fra')
    answer = client.get("/sessions/alice/sidecar.jsonl")
    assert (answer.status_code, answer.content) == (200, b'{"type":"video"}\n')


def test_ranges_of_a_growing_video_have_one_tag_and_fit_together(serve, grown):
    first = serve(session_of(grown, size=600)).get("/sessions/alice/video.mp4", headers={"Range": "bytes=0-499"})
    wanted = {"Range": "bytes=500-", "If-Range": first.headers["etag"]}
    second = serve(session_of(grown)).get("/sessions/alice/video.mp4", headers=wanted)
    assert second.status_code == 206 and second.headers["etag"] == first.headers["etag"]
    assert first.content + second.content == grown.read_bytes()[:1000]


def test_a_range_of_a_video_that_was_reset_is_answered_with_the_whole_new_one(serve, grown):
    before = serve(session_of(grown)).get("/sessions/alice/video.mp4").headers["etag"]
    after = serve(session_of(grown, "second"))
    for known in (before, "W/" + before, "Mon, 23 Nov 2026 04:00:00 GMT"):
        answer = after.get("/sessions/alice/video.mp4", headers={"Range": "bytes=500-", "If-Range": known})
        assert (answer.status_code, len(answer.content)) == (200, 1000), known
        assert answer.headers["etag"] != before


def test_a_known_tag_does_not_hide_what_was_added(serve, grown):
    client = serve(session_of(grown))
    tag = client.get("/sessions/alice/video.mp4").headers["etag"]
    again = client.get("/sessions/alice/video.mp4", headers={"If-None-Match": tag})
    assert (again.status_code, len(again.content)) == (200, 1000)


def test_head_is_get_without_its_body(serve, grown):
    client = serve(session_of(grown))
    for wanted in ({}, {"Range": "bytes=100-199"}, {"Range": "bytes=2000-"}):
        get, head = (client.request(m, "/sessions/alice/video.mp4", headers=wanted) for m in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("etag", "content-length", "content-range", "accept-ranges", "content-type"):
            assert head.headers.get(name) == get.headers.get(name), name


def test_a_video_that_is_reset_while_it_is_opened_is_asked_for_again(serve, grown, tmp_path):
    stale = {"video_path": str(grown), "size": 700, "video_tag": "first-0"}  # of a file that is no longer there
    fresh = session_of(grown, "second").answers["session"]
    stitch = Handle(session=Turns([stale, fresh]))
    answer = serve(stitch).get("/sessions/alice/video.mp4")
    assert (len(answer.content), answer.headers["etag"]) == (1000, f'"{fresh["video_tag"]}"')
    answer = serve(Handle(session=stale)).get("/sessions/alice/video.mp4")
    assert (answer.status_code, error_of(answer)["code"]) == (429, "busy")


# --- speaking


def test_the_summary_is_the_answer(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    answer = serve(stitch).post("/speak", json={"text": "Hello."})
    assert (answer.status_code, answer.json()) == (200, SUMMARY)
    (_, (request,)) = stitch.asked[0]
    assert (request.session_id, request.text, request.deliver) == ("default", "Hello.", False)


def test_a_stream_is_the_bytes_and_ends_with_its_call(serve):
    stitch = Handle(speak=SPOKEN)
    answer = serve(stitch).post("/speak", json={"text": "Hello.", "session_id": "alice", "stream": True})
    assert (answer.content, answer.headers["x-warmtalk-session"]) == (b"initonetwo", "alice")
    assert stitch.made[0].cancelled


@pytest.mark.parametrize("items", [[TextError("No words.", "Send some.")], [SPOKEN[0], TextError("No words.", "x")]])
def test_a_stream_that_fails_before_its_first_fragment_is_a_status_and_is_cancelled(serve, items):
    stitch = Handle(speak=items)
    answer = serve(stitch).post("/speak", json={"text": "…", "stream": True})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_text")
    assert stitch.made[0].cancelled


def test_an_utterance_without_a_summary_is_an_error(serve):
    answer = serve(Handle(speak=[])).post("/speak", json={"text": "Hello."})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "stage_failed")


@pytest.mark.parametrize("field", ["session_id", "avatar_id"])
@pytest.mark.parametrize("value", ["../etc", "A", "", "a/b", "a" * 65])
def test_an_id_that_could_be_a_path_never_leaves_the_ingress(serve, field, value):
    stitch = Handle()
    answer = serve(stitch).post("/speak", json={"text": "Hello.", field: value})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_id")
    assert stitch.asked == []


# --- bodies have limits


def test_an_upload_beyond_its_limit_is_refused(serve, tmp_path):
    stitch, avatars = Handle(), Handle()
    client = serve(stitch, avatars, {"max_upload_mb": 0.5})
    for path, query in (("/speak/audio", {}), ("/avatars", {"avatar_id": "me"})):
        answer = client.post(path, params=query, content=b"x" * (2**19 + 1))
        assert (answer.status_code, error_of(answer)["message"]) == (413, "The upload exceeds 0.5 MB.")
    assert stitch.asked == avatars.asked == []
    assert list((tmp_path / "results" / "uploads").iterdir()) == []


def test_an_upload_of_the_limit_is_taken(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    answer = serve(stitch, config={"max_upload_mb": 0.5}).post("/speak/audio", content=b"x" * 2**19)
    assert answer.status_code == 200 and len(stitch.asked[0][1][0].audio) == 2**19


@pytest.mark.parametrize("path", ["/speak", "/speak/audio", "/avatars?avatar_id=me", "/sessions/alice/say"])
def test_a_request_that_is_half_sent_and_held_open_is_given_up(serve, monkeypatch, tmp_path, path):
    monkeypatch.setattr(http, "PAUSE_S", 0.1)
    stitch, avatars = Handle(speak=[], feed=None), Handle()
    serve(stitch, avatars)
    status, body = asyncio.run(half_sent(path, b'{"text": "Hel'))
    assert status == 408 and json.loads(body)["error"]["message"] == "Nothing more of the request came for 0.1 s."
    assert avatars.asked == [] and all(stream.cancelled for stream in stitch.made)
    assert not list((tmp_path / "results" / "uploads").glob("*"))


def test_a_client_that_leaves_half_way_leaves_no_file(serve, tmp_path):
    avatars = Handle()
    serve(avatars=avatars)
    asyncio.run(half_sent("/avatars?avatar_id=me", b"RIFF", leaves=True))
    assert avatars.asked == [] and list((tmp_path / "results" / "uploads").iterdir()) == []


def test_so_many_files_are_received_at_a_time(serve, monkeypatch):
    monkeypatch.setattr(http, "PAUSE_S", 0.5)
    serve(Handle(), config={"max_uploads": 2})

    async def several():
        return await asyncio.gather(*(half_sent("/speak/audio", b"RIFF") for _ in range(5)))

    assert sorted(status for status, _ in asyncio.run(several())) == [408, 408, 429, 429, 429]
    assert [status for status, _ in asyncio.run(several())].count(408) == 2  # the places are free again


async def half_sent(path: str, data: bytes, leaves: bool = False, method: str = "POST") -> tuple[int, bytes]:
    """(status, body) of a request whose body breaks off: the client leaves, or says nothing more."""
    path, _, query = path.partition("?")
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("here", 80), "client": None}
    coming = [{"type": "http.request", "body": data, "more_body": True}]
    coming += [{"type": "http.disconnect"}] if leaves else []
    sent: list[dict] = []

    async def receive():
        return coming.pop(0) if coming else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    with contextlib.suppress(Exception):  # of a client that has left, nobody is told
        await api(scope, receive, send)
    return sent[0]["status"] if sent else 0, b"".join(message.get("body", b"") for message in sent)


def test_json_beyond_its_limit_is_refused_while_it_comes(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    client = serve(stitch, config={"max_json_kb": 4})
    answer = client.post("/speak", json={"text": "a" * 4096})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "http_413")
    assert error_of(answer)["message"] == "The request exceeds 4 KB." and error_of(answer)["remedy"]
    assert client.post("/speak", json={"text": "a" * 4000}).status_code == 200
    assert len(stitch.asked) == 1


def test_an_empty_upload_is_refused(serve):
    client = serve()
    for path in ("/speak/audio", "/avatars?avatar_id=me"):
        assert error_of(client.post(path))["message"] == "The request has no body."


# --- chat


def test_a_message_is_handed_to_chat_and_its_job_is_the_answer(serve):
    started = {"job_id": "j1", "session_id": "alice"}
    chat = Handle(start=started, status={"status": "thinking"}, messages=({"role": "user", "content": "Hi"},))
    client = serve(chat=chat)
    answer = client.post("/chat", json={"message": "Hi", "session_id": "alice", "voice": "nova", "speed": 1.5})
    assert (answer.status_code, answer.json()) == (200, started)
    (_, (request,)) = chat.asked[0]
    assert (request.message, request.session_id, request.voice, request.speed) == ("Hi", "alice", "nova", 1.5)
    assert client.get("/status/j1").json() == {"status": "thinking"}
    assert client.get("/chat/alice").json() == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", b"{"),
        ("/chat", b"[]"),
        ("/chat", b""),
        ("/chat", b'{"message": 1}'),
        ("/chat", b'{"text": "Hi"}'),
        ("/chat", b'{"message": "Hi", "speed": 9}'),
        ("/chat", b"\xff\xfe"),
        ("/speak", b"{"),
        ("/speak", b"null"),
        ("/speak", b'{"text": ["Hi"]}'),
        ("/speak", b'{"text": "Hi", "enhanse": true}'),
    ],
)
def test_malformed_json_is_a_sentence(serve, path, body):
    chat, stitch = Handle(), Handle()
    answer = serve(stitch, chat=chat).post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and error_of(answer)["code"] == "bad_input"
    assert chat.asked == stitch.asked == []


@pytest.mark.parametrize(("path", "key"), [("/chat", "message"), ("/speak", "text"), ("/v1/audio/speech", "input")])
def test_ten_megabytes_of_text_are_refused_before_they_fill_the_memory(serve, path, key):
    chat, stitch, tts = Handle(), Handle(), Handle()
    answer = serve(stitch, chat=chat, tts=tts).post(path, json={key: "word " * 2_000_000})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "http_413")
    assert chat.asked == stitch.asked == tts.asked == []


@pytest.mark.parametrize("field", ["session_id", "avatar_id"])
def test_a_chats_ids_never_leave_the_ingress(serve, field):
    chat = Handle()
    answer = serve(chat=chat).post("/chat", json={"message": "Hi", field: "../etc"})
    assert (answer.status_code, error_of(answer)["code"], chat.asked) == (422, "bad_id", [])


def test_a_full_chat_is_429(serve):
    answer = serve(chat=Handle(start=BusyError("Too many.", "Wait."))).post("/chat", json={"message": "Hi"})
    assert (answer.status_code, answer.headers["retry-after"], error_of(answer)["code"]) == (429, "2", "busy")


def test_a_session_that_is_reset_or_removed_is_forgotten_by_chat(serve):
    chat = Handle(forget=None)
    client = serve(Handle(reset={"reset": True}, remove={"removed": True}), chat=chat)
    client.get("/reset?session_id=alice")
    client.delete("/sessions/bob")
    assert chat.asked == [("forget", ("alice",)), ("forget", ("bob",))]


def test_an_avatars_poster_is_a_picture(serve):
    answer = serve(avatars=Handle(poster=b"jpeg")).get("/avatars/presenter/poster.jpg")
    assert (answer.content, answer.headers["content-type"]) == (b"jpeg", "image/jpeg")
    assert serve(avatars=Handle()).get("/avatars/..A/poster.jpg").status_code == 422


def test_voices_are_the_engines(serve):
    assert serve(tts=Handle(voices=("nova", "onyx"))).get("/voices").json() == ["nova", "onyx"]


# --- preparing


def test_a_preparations_progress_comes_a_line_at_a_time_and_its_upload_goes(serve, tmp_path):
    avatars = Handle(prepare=[{"step": "finding faces", "done": 1, "total": 2}, {"report": {"frames": 2}}])
    answer = serve(avatars=avatars).post(
        "/avatars",
        params={"avatar_id": "me", "fps": 30, "bbox_shift": -3, "geometry": "box", "subpixel_enabled": "false"},
        content=b"video",
    )
    assert [line.split('"')[1] for line in answer.text.splitlines()] == ["step", "report"]
    (_, (source, avatar_id, force, options)) = avatars.asked[0]
    chosen = {key: value for key, value in options.items() if value is not None}
    assert (avatar_id, force) == ("me", False)
    assert chosen == {"fps": 30, "bbox_shift": -3, "geometry": "box", "subpixel_enabled": False}
    assert Path(source).parent == tmp_path / "results" / "uploads" and not Path(source).exists()


@pytest.mark.parametrize("query", [{"fps": 17}, {"bbox_shift": 99}, {"extra_margin": -1}, {"smoothing": "no"}])
def test_a_preparations_options_are_checked(serve, query):
    answer = serve().post("/avatars", params={"avatar_id": "me", **query}, content=b"video")
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_input")


def test_a_preparation_that_fails_at_once_is_a_status_and_one_that_fails_later_a_line(serve, tmp_path):
    exists = errors.ExistsError("There is one.", "Use --force.")
    avatars = Handle(prepare=[exists])
    answer = serve(avatars=avatars).post("/avatars?avatar_id=me", content=b"video")
    assert (answer.status_code, error_of(answer)["code"], avatars.made[0].cancelled) == (409, "exists", True)
    no_face = errors.NoFaceError("No face.", "Use another video.")
    avatars = Handle(prepare=[{"step": "finding faces", "done": 1, "total": 0}, no_face])
    answer = serve(avatars=avatars).post("/avatars?avatar_id=me", content=b"video")
    assert '{"error": {"code": "no_face", "message": "No face."' in answer.text.splitlines()[-1]
    assert list((tmp_path / "results" / "uploads").iterdir()) == []


def test_uploads_of_an_ingress_that_died_are_removed_after_a_day(serve, tmp_path):
    folder = tmp_path / "results" / "uploads"
    folder.mkdir(parents=True)
    for name, hours in (("old", 25), ("young", 1)):
        (folder / name).write_bytes(b"video")
        os.utime(folder / name, (time.time() - hours * 3600,) * 2)
    serve(avatars=Handle(prepare=[{"report": {}}])).post("/avatars?avatar_id=me", content=b"video")
    assert [path.name for path in folder.iterdir()] == ["young"]


# --- errors


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (AvatarNotFound("There is none.", "Prepare it."), 404, "avatar_not_found"),
        (RayTaskError("speak", "Traceback …", TextError("No words.", "Send some.")), 422, "bad_text"),
        (RayTaskError("speak", "Traceback …", KeyError("secret path /root")), 502, "stage_failed"),
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), 429, "busy"),
        (DeploymentUnavailableError(SimpleNamespace(name="Stitch", app_name="warmtalk")), 429, "busy"),
        (ValueError("secret path /root"), 502, "stage_failed"),
    ],
)
def test_whatever_is_raised_becomes_a_code_a_sentence_and_a_remedy(serve, raised, status, code):
    answer = serve(Handle(session=raised)).get("/sessions/alice")
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["remedy"] and "secret" not in answer.text and "/root" not in answer.text
    assert answer.headers.get("retry-after") == ("2" if status == 429 else None)


def test_the_known_error_is_the_cause_where_there_is_one():
    cause = TextError("No words.", "Send some.")
    assert known_error(RayTaskError("speak", "…", cause)) is cause
    assert isinstance(known_error(BackPressureError(num_queued_requests=1, max_queued_requests=1)), BusyError)
    assert isinstance(known_error(RuntimeError("bug")), StageError)


def test_unknown_paths_and_methods_are_errors_in_words(serve):
    client = serve()
    for answer, code in ((client.get("/nowhere"), "http_404"), (client.put("/speak"), "http_405")):
        error = answer.json()["error"]
        assert (error["code"], error["remedy"]) == (code, "See /docs for what there is.")


def test_health_asks_stitch(serve):
    assert serve(Handle(stats={})).get("/healthz").json() == {"status": "ok"}
    busy = BackPressureError(num_queued_requests=9, max_queued_requests=9)
    assert serve(Handle(stats=busy)).get("/healthz").status_code == 429


# --- sessions, live


def test_a_session_is_opened_with_an_id_or_without(serve):
    stitch = Handle(create={"session_id": "alice"})
    client = serve(stitch)
    assert client.post("/sessions", json={"session_id": "alice", "avatar_id": "ann"}).status_code == 201
    assert client.post("/sessions").status_code == 201
    (_, named), (_, unnamed) = stitch.asked
    assert named == ("alice", "ann") and len(unnamed[0]) == 32 and unnamed[1] is None
    assert error_of(client.post("/sessions", json={"session_id": "../etc"}))["code"] == "bad_id"
    assert error_of(client.post("/sessions", json={"avatar_id": "../etc"}))["code"] == "bad_id"
    assert error_of(client.post("/sessions", json={"colour": "red"}))["code"] == "bad_input"


def test_an_unknown_session_cannot_be_watched_or_interrupted(serve):
    missing = errors.SessionNotFound("There is no session 'nobody'.", "Open it.")
    stitch = Handle(live=[missing], session=missing)
    client = serve(stitch)
    for answer in (client.get("/sessions/nobody/live.mp4"), client.post("/sessions/nobody/interrupt")):
        assert (answer.status_code, error_of(answer)["code"]) == (404, "session_not_found")
    assert error_of(client.get("/sessions/A/live.mp4"))["code"] == "bad_id"
    assert stitch.made[0].cancelled


def test_an_interruption_reaches_the_chat_and_the_speech(serve):
    stitch, chat = Handle(session={}, interrupt={"session_id": "alice", "interrupted": 1}), Handle(interrupt=1)
    answer = serve(stitch, chat=chat).post("/sessions/alice/interrupt")
    assert answer.json() == {"session_id": "alice", "interrupted": 1}
    assert chat.asked == [("interrupt", ("alice",))] and stitch.asked[-1] == ("interrupt", ("alice",))


@pytest.fixture
def filmed(tmp_path) -> SessionFile:
    """The session `alice` with 30 frames."""
    session = SessionFile(tmp_path / "results" / "sessions" / "alice", SPEC)
    session.start_utterance("Words.")
    session.say("Words.", 0)
    for fragment in fragments(levels(30)):
        session.append(fragment)
    session.end_utterance()
    return session


def test_a_session_has_captions_a_playlist_and_a_download(serve, filmed, tmp_path):
    client = serve(Handle(session={"video_path": str(filmed.path)}))
    vtt = client.get("/sessions/alice/captions.vtt")
    assert vtt.headers["content-type"].startswith("text/vtt") and "00:00:01.200\nWords." in vtt.text
    playlist = client.get("/sessions/alice/index.m3u8")
    assert playlist.headers["content-type"] == "application/vnd.apple.mpegurl" and "#EXTINF:1.20000," in playlist.text
    whole = client.get("/sessions/alice/download.mp4")
    assert whole.headers["content-disposition"] == 'attachment; filename="alice.mp4"'
    assert len(whole.content) == int(whole.headers["content-length"]) and whole.content[4:8] == b"ftyp"
    assert shown(whole.content)[1] == pytest.approx([20 + 4 * k for k in range(30)], abs=2)
    assert list((tmp_path / "results" / "uploads").iterdir()) == []


def test_a_download_that_nobody_waits_for_leaves_no_file(serve, filmed, tmp_path, monkeypatch):
    begun = threading.Event()

    def slowly(facts, folder):
        begun.set()
        time.sleep(0.2)
        return faststart(facts, folder)

    monkeypatch.setattr(ingress, "faststart", slowly)

    async def leave():
        task = asyncio.create_task(half_sent("/sessions/alice/download.mp4", b"", method="GET"))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0.5)

    serve(Handle(session={"video_path": str(filmed.path)}))
    asyncio.run(leave())
    assert list((tmp_path / "results" / "uploads").iterdir()) == []


def test_a_session_is_closed_for_good(serve):
    stitch = Handle(close={"session_id": "alice", "closed": True})
    assert serve(stitch).post("/sessions/alice/close").json() == {"session_id": "alice", "closed": True}
    gone = Handle(close=errors.SessionNotFound("There is none.", "Open it."))
    assert serve(gone).post("/sessions/alice/close").status_code == 404


def test_a_text_that_is_being_written_is_spoken_as_it_comes(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)], feed=None)
    written = "Hello there. It is é fine".encode()
    body = (written[k : k + 3] for k in range(0, len(written), 3))  # cuts a letter in two
    answer = serve(stitch).post("/sessions/alice/say?voice=nova", content=body)
    assert answer.json() == SUMMARY
    assert [a[2:] for name, a in stitch.asked if name == "feed"] == [
        (["Hello there."], False),
        (["It is é fine"], False),
        ([], True),
    ]
    (request,) = next(arguments for name, arguments in stitch.asked if name == "speak")
    assert (request.session_id, request.voice, request.text) == ("alice", "nova", "") and request.growing
