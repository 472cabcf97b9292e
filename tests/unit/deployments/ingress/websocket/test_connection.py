"""The WebSocket of a session: commands are checked, events and the live stream are sent, nothing is left at its end."""

import asyncio
import json
import time
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from deployments.common.messages import ChatRequest, SpeakEvent
from deployments.ingress.app import api
from deployments.ingress.websocket import audio_upload, connection
from deployments.ingress.websocket.protocol import CLOSE_CODES, Event
from models.errors import SessionNotFound, TextError
from models.live.cues import Caption
from models.types import Word
from tests.support.ingress import EndlessStitch, Handle, make_replica
from tests.support.uploads import left_uploads

SUMMARY = {"session_id": "alice", "frames": 25}


class Viewer:
    """A viewer with endless live fragments. fragments_sent: how many were read from it."""

    def __init__(self) -> None:
        self.timeline = SimpleNamespace(init=b"init")
        self.fragments_sent, self.closed = 0, False
        self.messages: list[tuple[str, dict]] = []  # for the next fragment
        self.ending: str | None = None

    async def muxed(self):
        while self.ending is None:
            self.fragments_sent += 1
            yield None, b"fragment"
            await asyncio.sleep(0.001)

    def take_messages(self) -> list[tuple[str, dict]]:
        messages, self.messages = self.messages, []
        return messages

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(stitch=…, chat=…) → (client, ingress)."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))

    def start(stitch=None, chat=None):
        replica = make_replica(monkeypatch, stitch or Handle(session={}), chat=chat or Handle(interrupt=0))
        return TestClient(api, raise_server_exceptions=False), replica

    return start


def events_of(socket, count: int) -> list[dict]:
    return [socket.receive_json() for _ in range(count)]


def test_an_unknown_session_is_reported_and_the_connection_closed(serve):
    client, _ = serve(Handle(session=SessionNotFound("There is none.", "Open it.")))
    with client.websocket_connect("/sessions/nobody/ws") as socket:
        failed = socket.receive_json()
        assert (failed["type"], failed["error"]["code"]) == ("failed", "session_not_found")
        assert socket.receive()["code"] == 4404
    with client.websocket_connect("/sessions/A/ws") as socket:
        assert socket.receive_json()["error"]["code"] == "bad_id"
        assert socket.receive()["code"] == 4422


def test_a_text_is_spoken_and_its_summary_returned_with_its_id(serve):
    stitch = Handle(session={}, speak=[SpeakEvent(summary=SUMMARY)])
    client, _ = serve(stitch)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        assert socket.receive_json() == {"type": "ready", "session_id": "alice"}
        socket.send_json({"type": "speak", "text": "Hello.", "speed": 1.2, "id": "a"})
        assert events_of(socket, 2) == [
            {"type": "started", "id": "a"},
            {"type": "done", "id": "a", "summary": SUMMARY},
        ]
    (request,) = next(arguments for name, arguments in stitch.calls if name == "speak")
    assert (request.session_id, request.text, request.speed, request.deliver) == ("alice", "Hello.", 1.2, False)


def test_a_text_that_is_being_written_is_spoken_sentence_by_sentence(serve):
    stitch = Handle(session={}, speak=[SpeakEvent(summary=SUMMARY)], feed=None)
    client, _ = serve(stitch)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        for text in ("Hel", "lo there. ", "And "):
            socket.send_json({"type": "text", "text": text, "id": "t"})
        assert socket.receive_json()["type"] == "started"
        socket.send_json({"type": "text", "text": "more.", "last": True, "id": "t"})
        done = socket.receive_json()
        assert (done["type"], done["id"]) == ("done", "t")
        _wait(lambda: stitch.calls[-1][1][-1] is True)  # the end of the text
    fed = [arguments[2:] for name, arguments in stitch.calls if name == "feed"]
    assert fed == [(["Hello there."], False), (["And more."], False), ([], True)]


def test_an_endless_text_is_cut_off_at_the_limit_and_not_kept_in_memory(serve, monkeypatch):
    written, made = connection._TextInput, []
    monkeypatch.setattr(connection, "_TextInput", lambda *given: made.append(written(*given)) or made[-1])
    stitch = EndlessStitch()
    client, _ = serve(stitch)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        for _ in range(30):  # 600 000 characters, while it speaks
            socket.send_json({"type": "text", "text": "Hello there. Yes! No. " * 1000, "id": "t"})
        socket.send_json({"type": "nonsense"})
        assert [event["type"] for event in events_of(socket, 2)] == [
            "started",
            "failed",
        ]
        _wait(lambda: made[0].parts.empty())
        fed = "".join(part for name, arguments in stitch.calls if name == "feed" for part in arguments[2])
        assert 70_000 < len(fed) <= connection.MAX_CHARS and made[0].chars < connection.MAX_CHARS + 22_000


def test_a_text_that_is_too_long_fails_after_its_beginning_was_spoken(serve, monkeypatch):
    monkeypatch.setattr(connection, "MAX_CHARS", 20)
    client, _ = serve(Handle(session={}, speak=[SpeakEvent(summary=SUMMARY)], feed=None))
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        for text in ("Hello there. ", "And so on. ", "And on."):
            socket.send_json({"type": "text", "text": text, "id": "t"})
        events = events_of(socket, 3)
    assert [event["type"] for event in events] == ["started", "done", "failed"]
    assert (events[2]["id"], events[2]["error"]["code"]) == ("t", "bad_text")


def test_a_message_beyond_its_limit_is_refused(serve):
    stitch = Handle(session={})
    client, _ = serve(stitch)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "text", "text": "word " * 100_000})
        assert socket.receive_json()["error"]["message"] == "The message exceeds 256 KB."
        assert [name for name, _ in stitch.calls] == ["session"]


def test_the_close_reason_fits_into_its_frame(serve):
    client, _ = serve()
    with client.websocket_connect(f"/sessions/{quote('💥' * 60)}/ws") as socket:
        assert socket.receive_json()["error"]["code"] == "bad_id"
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    assert closed.value.code == 4422 and 60 < len(closed.value.reason.encode()) <= 123


def test_a_recording_in_parts_is_spoken(serve):
    stitch = Handle(session={}, speak=[SpeakEvent(summary=SUMMARY)])
    client, _ = serve(stitch)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_bytes(b"unannounced")
        assert socket.receive_json()["error"]["code"] == "bad_input"
        for part, last in ((b"RIFF", False), (b"more", True)):
            socket.send_json({"type": "audio", "last": last})
            socket.send_bytes(part)
        assert [event["type"] for event in events_of(socket, 2)] == ["started", "done"]
    (request,) = next(arguments for name, arguments in stitch.calls if name == "speak")
    assert stitch.uploads == [b"RIFFmore"] and request.text == ""
    assert left_uploads() == []


def test_a_recording_beyond_its_limit_is_refused(serve, monkeypatch):
    monkeypatch.setattr(audio_upload, "MAX_BYTES", 10)
    client, _ = serve()
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "audio", "last": False})
        socket.send_bytes(b"x" * 11)
        assert "exceeds" in socket.receive_json()["error"]["message"]


@pytest.mark.parametrize(
    "message",
    [
        "{not json",
        "",
        "[]",
        '{"type": "dance"}',
        '{"type": "speak"}',
        '{"type": "speak", "text": 5}',
        '{"type": "speak", "text": "a", "colour": "red"}',
        '{"type": "speak", "text": "a", "speed": 9}',
        '{"type": "played", "pieces": -1}',
        '{"text": "no type"}',
    ],
)
def test_an_invalid_message_is_refused_and_the_connection_stays_open(serve, message):
    client, _ = serve(Handle(session={}, interrupt={"interrupted": 0}, interrupt_nowait=0))
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_text(message)
        failed = socket.receive_json()
        assert (failed["type"], failed["error"]["code"]) == ("failed", "bad_input")
        assert failed["error"]["remedy"] == "See GET /ws.json for the messages."
        socket.send_json({"type": "interrupt"})
        assert socket.receive_json()["type"] == "interrupted"


def test_an_error_of_speech_is_reported_with_its_code_and_id(serve):
    client, _ = serve(Handle(session={}, speak=[TextError("No words.", "Send some.")]))
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "speak", "text": "🎉", "id": "x"})
        started, failed = events_of(socket, 2)
        assert (started["id"], failed["id"], failed["error"]["code"]) == ("x", "x", "bad_text")


def test_an_interruption_stops_chat_and_speech(serve):
    stitch, chat = Handle(session={}, interrupt={"interrupted": 0}, interrupt_nowait=0), Handle(interrupt=0)
    client, _ = serve(stitch, chat)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "interrupt", "id": "i"})
        assert socket.receive_json() == {"type": "interrupted", "id": "i"}
    assert ("interrupt", ("alice",)) in stitch.calls and chat.calls == [("interrupt", ("alice",))]


def test_each_change_of_a_chat_job_is_reported_until_it_is_done(serve):
    jobs = iter([{"status": "thinking"}, {"status": "speaking"}, {"status": "speaking"}, {"status": "done"}])
    chat = Handle(start={"job_id": "j"}, interrupt=0)
    plain = chat._call

    def call(name, arguments):
        if name == "status":
            chat.answers["status"] = next(jobs)
        return plain(name, arguments)

    chat._call = call
    client, _ = serve(chat=chat)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "chat", "message": "Who are you?", "id": "c", "voice": "nova", "speed": 1.5})
        events = events_of(socket, 4)
    assert [event["type"] for event in events] == ["started", "status", "status", "done"]
    assert events[-1]["job"] == {"status": "done"}
    assert chat.calls[0] == ("start", (ChatRequest("Who are you?", "alice", voice="nova", speed=1.5),))


def test_the_options_of_the_first_part_of_a_text_count(serve):
    stitch = Handle(session={}, speak=[SpeakEvent(summary={"frames": 9})], feed=None)
    client, _ = serve(stitch)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "text", "text": "Hello there. ", "voice": "nova", "strength": 0.8, "enhance": True})
        socket.send_json({"type": "text", "text": "Bye.", "last": True})
        assert [event["type"] for event in events_of(socket, 2)] == ["started", "done"]
    (asked,) = (arguments[0] for name, arguments in stitch.calls if name == "speak")
    assert (asked.voice, asked.strength, asked.enhance) == ("nova", 0.8, True)


def test_the_live_stream_waits_for_a_client_that_reports_what_it_has_played(serve, monkeypatch):
    client, ingress = serve()
    viewer = Viewer()
    monkeypatch.setattr(ingress._hubs, "view", lambda *_: _give(viewer))
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "played", "pieces": 0})
        socket.send_json({"type": "watch"})
        assert socket.receive_bytes() == b"init"
        assert [socket.receive_bytes() for _ in range(connection.MAX_UNPLAYED)] == [
            b"fragment"
        ] * connection.MAX_UNPLAYED
        time.sleep(0.1)
        assert viewer.fragments_sent == connection.MAX_UNPLAYED  # and no more until the client has played some
        socket.send_json({"type": "played", "pieces": 3})
        assert [socket.receive_bytes() for _ in range(3)] == [b"fragment"] * 3
    _wait(lambda: viewer.closed)


def test_running_speech_is_cancelled_at_the_end_of_the_connection(serve):
    stitch = EndlessStitch()
    client, _ = serve(stitch)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "speak", "text": "A long story."})
        assert socket.receive_json()["type"] == "started"
    _wait(lambda: stitch.speeches[0].cancelled)


def test_only_the_chat_answers_of_the_connection_are_interrupted_at_its_end(serve):
    chat = Handle(start={"job_id": "j"}, status={"status": "speaking"}, interrupt=1)
    client, _ = serve(chat=chat)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "chat", "message": "Who are you?", "id": "c"})
        assert [event["type"] for event in events_of(socket, 2)] == ["started", "status"]
    _wait(lambda: ("interrupt", ("alice", "j")) in chat.calls)
    assert [name for name, _ in chat.calls].count("interrupt") == 1


def test_the_number_of_running_commands_is_limited(serve, monkeypatch):
    monkeypatch.setattr(connection, "MAX_COMMANDS", 2)
    stitch = EndlessStitch()
    client, _ = serve(stitch)
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        for k in range(3):
            socket.send_json({"type": "speak", "text": "Hm.", "id": str(k)})
        events = {(event["id"], event["type"]) for event in events_of(socket, 3)}
    assert events == {("0", "started"), ("1", "started"), ("2", "failed")}


def test_the_schema_names_every_message(serve):
    schema = serve()[0].get("/ws.json").json()
    kinds = {"speak", "text", "audio", "chat", "interrupt", "watch", "played"}
    assert set(schema["send"]["discriminator"]["mapping"]) == kinds
    assert "summary" in schema["receive"]["properties"] and json.dumps(schema)


async def _give(value):
    return value


def _wait(true, seconds: float = 30.0) -> None:
    end_s = time.time() + seconds
    while not true():
        assert time.time() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize("why", CLOSE_CODES)
def test_the_end_of_the_stream_is_reported_and_sets_the_close_code(serve, monkeypatch, why):
    client, ingress = serve()
    viewer = Viewer()
    monkeypatch.setattr(ingress._hubs, "view", lambda *_: _give(viewer))
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "watch"})
        assert socket.receive_bytes() == b"init"
        viewer.ending = why
        while "text" not in (message := socket.receive()):
            assert message["bytes"] == b"fragment"
        ended = json.loads(message["text"])
        assert Event(**ended).reason == why and ended == {"type": "ended", "session_id": "alice", "reason": why}
        closed = socket.receive()
    assert (closed["type"], closed["code"], closed["reason"]) == ("websocket.close", *CLOSE_CODES[why])
    code = closed["code"]
    assert code in (1000, 1001, 1013) or 4000 <= code < 5000  # RFC 6455, 7.4: what an application may send
    assert len(closed["reason"].encode()) <= 123
    _wait(lambda: viewer.closed)


def test_a_connection_that_stops_watching_stays_open(serve, monkeypatch):
    client, ingress = serve(Handle(session={}, interrupt={"interrupted": 0}, interrupt_nowait=0))
    viewer = Viewer()
    monkeypatch.setattr(ingress._hubs, "view", lambda *_: _give(viewer))
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "watch"})
        assert socket.receive_bytes() == b"init"
        socket.send_json({"type": "watch", "on": False})
        _wait(lambda: viewer.closed)
        socket.send_json({"type": "interrupt", "id": "i"})
        while "text" not in (message := socket.receive()):
            pass
        assert json.loads(message["text"]) == {"type": "interrupted", "id": "i"}


def test_captions_and_progress_are_sent_before_their_fragment(serve, monkeypatch):
    client, ingress = serve()
    viewer = Viewer()
    caption = Caption(1, "Hello there.", 0.3, 1.2, (Word("Hello", 0.3, 0.7), Word("there.", 0.7, 1.2))).as_json()
    making = {"frames": 8, "shown_frames": 4, "duration_s": 0.32, "ttff_ms": 480.0, "spoken_chars": 3}
    making |= {"stages": {"TTS": {"busy_ms": 9.0}}}
    viewer.messages = [("caption", caption), ("making", making)]
    monkeypatch.setattr(ingress._hubs, "view", lambda *_: _give(viewer))
    with client.websocket_connect("/sessions/alice/ws") as socket:
        socket.receive_json()
        socket.send_json({"type": "watch"})
        assert socket.receive_bytes() == b"init"
        assert events_of(socket, 2) == [{"type": "caption", "caption": caption}, {"type": "making", "making": making}]
        assert socket.receive_bytes() == b"fragment"
