"""POST /v1/audio/transcriptions as OpenAI's clients use it, through Serve's local testing mode, in one process."""

import asyncio
import io
import json
import wave

import pytest
from ray import serve as ray_serve

from deployments.ingress import body_limit
from deployments.recognize import Recognize
from models.errors import BusyError
from models.speech.audio import encode_audio
from tests.support.ingress import Handle, error_of, send_partly
from tests.support.recognizer import DurationRecognizer
from tests.support.whisper import buzz, silence
from tests.unit.deployments.test_recognize import ENGINE, sound

PATH = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def recognize():
    """The stage with a real handle."""
    options = {"engine": ENGINE, "max_audio_s": 60.0}
    bound = ray_serve.deployment(Recognize, name="Recognize").options(user_config=options).bind()
    return ray_serve.run(bound, name="transcriptions", route_prefix=None, _local_testing_mode=True)


@pytest.fixture
def client(serve, recognize):
    DurationRecognizer.calls.clear()
    return serve(recognize=recognize)


def post(client, data: bytes, name: str = "speech.wav", **fields):
    return client.post(PATH, files={"file": (name, data)}, data={"model": "whisper-1", **fields})


def test_a_recording_is_transcribed(client):
    answer = post(client, sound(1.5))
    assert (answer.status_code, answer.json()) == (200, {"text": "15 tenths. <b> & so on."})


@pytest.mark.parametrize("form", ["mp3", "opus", "flac"])
def test_compressed_formats_are_transcribed(client, form):
    assert post(client, sound(2.0, form=form), f"speech.{form}").json()["text"].startswith("20 tenths.")


def test_verbose_json_has_times_and_probabilities(client):
    answer = post(client, sound(1.0), response_format="verbose_json", language="de").json()
    assert (answer["task"], answer["language"], answer["duration"]) == ("transcribe", "de", 1.0)
    assert answer["segments"] == [
        {"id": 0, "start": 0.0, "end": 0.5, "text": "10 tenths.", "avg_logprob": -0.2, "no_speech_prob": 0.01},
        {"id": 1, "start": 0.5, "end": 1.0, "text": "<b> & so on.", "avg_logprob": -0.3, "no_speech_prob": 0.02},
    ]
    assert DurationRecognizer.calls == [(16_000, "de", "transcribe")]


def test_transcripts_as_plain_text_srt_and_webvtt(client):
    text = post(client, sound(1.0), response_format="text")
    assert text.text == "10 tenths. <b> & so on.\n" and text.headers["content-type"].startswith("text/plain")
    subtitles = post(client, sound(1.0), response_format="srt")
    assert subtitles.text == (
        "1\n00:00:00,000 --> 00:00:00,500\n10 tenths.\n\n2\n00:00:00,500 --> 00:00:01,000\n<b> & so on.\n\n"
    )
    captions = post(client, sound(1.0), response_format="vtt")
    assert captions.headers["content-type"].startswith("text/vtt")
    assert captions.text == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.500\n10 tenths.\n\n00:00:00.500 --> 00:00:01.000\n&lt;b&gt; &amp; so on.\n"
    )


def test_a_stream_is_answered_with_server_sent_events(client):
    """OpenAI's client ignores any other response, and returns nothing."""
    answer = post(client, sound(1.0), stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last = [line.removeprefix("data: ") for line in answer.text.strip().split("\n\n")]
    *deltas, done = [json.loads(event) for event in events]
    assert [event["type"] for event in deltas] == ["transcript.text.delta"] * 2 and last == "[DONE]"
    assert done == {"type": "transcript.text.done", "text": "10 tenths. <b> & so on."}
    assert "".join(event["delta"] for event in deltas) == done["text"]


def test_silence_gives_an_empty_transcript(client):
    data = encode_audio(silence(2.0), 16_000, "wav")
    assert post(client, data).json() == {"text": ""}
    assert post(client, data, response_format="vtt").text == "WEBVTT\n"
    assert post(client, data, response_format="srt").text == ""
    assert post(client, data, response_format="verbose_json").json()["segments"] == []


@pytest.mark.parametrize(
    ("data", "fields", "status", "code", "words"),
    [
        (b"", {}, 422, "bad_audio", "empty"),
        (b"%PDF-1.7" * 100, {}, 422, "bad_audio", "not audio"),
        (sound(0.01), {}, 422, "bad_audio", "too short"),
        (sound(1.0), {"response_format": "ass"}, 422, "bad_input", "no response_format 'ass'"),
        (sound(1.0), {"language": "xx"}, 422, "bad_input", "no language 'xx'"),
    ],
)
def test_unusable_recordings_and_options_are_refused(client, data, fields, status, code, words):
    answer = post(client, data, **fields)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code) and words in error_of(answer)["message"]


def test_a_recording_of_an_hour_is_refused_without_recognition(client):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(b"\x80" * (8000 * 3600))
    answer = post(client, out.getvalue())
    assert answer.status_code == 422 and error_of(answer)["code"] == "bad_audio" and DurationRecognizer.calls == []


def test_a_body_that_is_not_a_form_with_a_file_is_refused(client):
    for answer, words in (
        (client.post(PATH, content=sound(1.0), headers={"content-type": "audio/wav"}), "not a form"),
        (client.post(PATH, json={"file": "abc"}), "not a form"),
        (client.post(PATH, files={"sound": ("a.wav", sound(1.0))}), "no file named `file`"),
        (client.post(PATH, data={"file": "abc"}, files={"other": ("a", b"")}), "no file named `file`"),
        (client.post(PATH, content=b"--x", headers={"content-type": "multipart/form-data"}), "cannot be read"),
        (
            client.post(PATH, content=b"-", headers={"content-type": "multipart/form-data; boundary=x"}),
            "no file named `file`",
        ),
    ):
        assert answer.status_code == 422 and words in error_of(answer)["message"], answer.text
    assert DurationRecognizer.calls == []


def test_a_form_beyond_its_limit_is_refused(serve, recognize):
    client = serve(recognize=recognize, config={"max_upload_mb": 0.1})
    answer = post(client, b"x" * 150_000)
    assert (answer.status_code, error_of(answer)["message"]) == (413, "The upload exceeds 0.1 MB.")


def test_an_incomplete_form_is_refused_and_frees_its_upload_slot(serve, recognize, monkeypatch):
    monkeypatch.setattr(body_limit, "IDLE_TIMEOUT_S", 0.02)
    client = serve(recognize=recognize, config={"max_uploads": 1})
    kind = {"content-type": "multipart/form-data; boundary=x"}
    for _ in range(2):
        status, body = asyncio.run(send_partly(PATH, b"--x\r\n", headers=kind))
        assert status == 408 and "Nothing more" in json.loads(body)["error"]["message"]
    assert post(client, sound(1.0)).status_code == 200


def test_a_busy_stage_is_429(serve):
    answer = post(serve(recognize=Handle(transcribe=BusyError("All replicas are busy.", "Wait."))), sound(1.0))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


def test_without_a_recognize_stage_the_response_is_501(serve):
    client = serve()
    answer = post(client, sound(1.0))
    assert (answer.status_code, error_of(answer)["code"]) == (501, "not_configured")
    assert "recognize: true" in error_of(answer)["remedy"]
    assert client.get("/abilities").json() == {"recognition": False}


def test_with_a_recognize_stage_abilities_and_openapi_say_so(client):
    assert client.get("/abilities").json() == {"recognition": True}
    form = client.get("/openapi.json").json()["paths"][PATH]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file"] and form["schema"]["properties"]["file"]["format"] == "binary"


def test_the_engine_gets_the_samples_unchanged(client):
    data = encode_audio(buzz(3.0), 16_000, "wav")
    post(client, data)
    assert DurationRecognizer.calls == [(48_000, None, "transcribe")]
