"""Recordings over the WebSocket: spoken as they are, or recognized and answered; as files or raw PCM."""

from pathlib import Path

import numpy as np
import pytest

from deployments.common.messages import SpeakEvent
from models.errors import AudioError
from models.recognition.base import Transcript
from models.speech.audio import decode_audio
from tests.support.ingress import SUMMARY, Handle
from tests.support.uploads import left_uploads
from tests.unit.deployments.ingress.websocket.test_connection import events_of


class Stamped:
    def __init__(self, text: str) -> None:
        self.value = Transcript(text, "en", 1.0)


def recognizing(text: str = "Who are you?") -> Handle:
    return Handle(transcribe=Stamped(text))


def answering() -> Handle:
    return Handle(start={"job_id": "j"}, status={"status": "done", "reply": "I am."}, interrupt=0)


@pytest.fixture
def socket_of(serve):
    def connect(**handles):
        handles.setdefault(
            "stitch",
            Handle(session={}, interrupt={"interrupted": 0}, interrupt_nowait=0, speak=[SpeakEvent(summary=SUMMARY)]),
        )
        return serve(**handles).websocket_connect("/sessions/alice/ws")

    return connect


def test_a_recording_is_recognized_reported_and_answered(socket_of):
    recognize, chat = recognizing(), answering()
    with socket_of(recognize=recognize, chat=chat) as socket:
        socket.receive_json()
        for part, last in ((b"RIFF", False), (b"more", True)):
            socket.send_json({"type": "audio", "last": last, "mode": "chat", "language": "en", "id": "a"})
            socket.send_bytes(part)
        events = events_of(socket, 3)
    assert events[0] == {"type": "heard", "id": "a", "text": "Who are you?", "language": "en"}
    assert [(event["type"], event["id"]) for event in events[1:]] == [("started", "a"), ("done", "a")]
    assert events[2]["job"]["reply"] == "I am."
    (name, (path, *options)) = recognize.calls[0]
    assert (name, options, recognize.uploads) == ("transcribe", ["en", "transcribe"], [b"RIFFmore"])
    assert Path(path).name == "The upload" and left_uploads() == []
    request = chat.calls[0][1][0]
    assert (request.message, request.session_id) == ("Who are you?", "alice")


def test_silence_is_reported_and_not_answered(socket_of):
    chat = answering()
    with socket_of(recognize=recognizing(""), chat=chat) as socket:
        socket.receive_json()
        socket.send_json({"type": "audio", "mode": "chat"})
        socket.send_bytes(b"RIFF")
        assert socket.receive_json() == {"type": "heard", "text": "", "language": "en"}
        socket.send_json({"type": "interrupt"})
        assert socket.receive_json()["type"] == "interrupted"
    assert [name for name, _ in chat.calls] == ["interrupt"]


def test_by_default_a_recording_is_spoken_and_not_recognized(socket_of):
    stitch, recognize = Handle(session={}, speak=[SpeakEvent(summary=SUMMARY)]), recognizing()
    with socket_of(stitch=stitch, recognize=recognize) as socket:
        socket.receive_json()
        socket.send_json({"type": "audio"})
        socket.send_bytes(b"RIFF")
        assert [event["type"] for event in events_of(socket, 2)] == ["started", "done"]
    assert recognize.calls == [] and stitch.uploads == [b"RIFF"] and left_uploads() == []


def test_without_a_recognize_stage_chat_is_refused_and_the_connection_stays_open(socket_of):
    with socket_of() as socket:
        socket.receive_json()
        socket.send_json({"type": "audio", "mode": "chat", "id": "a"})
        failed = socket.receive_json()
        assert (failed["type"], failed["id"], failed["error"]["code"]) == ("failed", "a", "not_configured")
        assert failed["error"]["message"] == "This server has no speech recognition."
        socket.send_bytes(b"RIFF")  # was on its way
        socket.send_json({"type": "audio", "id": "b"})
        socket.send_bytes(b"RIFF")
        assert [(event["type"], event["id"]) for event in events_of(socket, 2)] == [("started", "b"), ("done", "b")]


def test_a_recognition_error_is_reported_with_its_code(socket_of):
    with socket_of(recognize=Handle(transcribe=AudioError("The audio is empty.", "Send some."))) as socket:
        socket.receive_json()
        socket.send_json({"type": "audio", "mode": "chat", "id": "x"})
        socket.send_bytes(b"")
        failed = socket.receive_json()
        assert (failed["type"], failed["id"], failed["error"]["code"]) == ("failed", "x", "bad_audio")


@pytest.mark.parametrize("mode", ["chat", "repeat"])
def test_raw_pcm_is_accepted(socket_of, mode):
    stitch, recognize = Handle(session={}, speak=[SpeakEvent(summary=SUMMARY)]), recognizing("")
    samples = (8000 * np.sin(np.arange(4800) / 5)).astype("<i2")
    with socket_of(stitch=stitch, recognize=recognize) as socket:
        socket.receive_json()
        data = samples.tobytes()
        for part, last in ((data[:3001], False), (data[3001:] + b"\0", True)):
            socket.send_json({"type": "audio", "mode": mode, "pcm_hz": 48_000, "last": last})
            socket.send_bytes(part)
        socket.receive_json()
    (given,) = recognize.uploads if mode == "chat" else stitch.uploads
    sound, rate_hz = decode_audio(given)
    assert rate_hz == 48_000 and np.abs(sound * 32768 - samples).max() <= 1


@pytest.mark.parametrize("wrong", [{"mode": "sing"}, {"pcm_hz": 5}, {"language": "English"}])
def test_invalid_audio_options_are_refused(socket_of, wrong):
    with socket_of(recognize=recognizing()) as socket:
        socket.receive_json()
        socket.send_json({"type": "audio", **wrong})
        assert socket.receive_json()["error"]["code"] == "bad_input"
