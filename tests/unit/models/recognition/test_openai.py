"""models.recognition.openai with a local server: requests, answers, retries and errors."""

import io
import json
import threading
import wave
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from models.errors import AudioError, BusyError, ConfigError, InputError, StageError
from models.recognition.openai import OpenAIRecognizer
from tests.support.whisper import buzz

VERBOSE = {
    "task": "transcribe",
    "language": "german",
    "duration": 1.0,
    "text": " Guten Tag. Ja.",
    "segments": [
        {"id": 0, "start": 0.0, "end": 0.6, "text": " Guten Tag.", "avg_logprob": -0.3, "no_speech_prob": 0.01},
        {"id": 1, "start": 0.6, "end": 1.0, "text": " Ja."},
    ],
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        form = message_from_bytes(b"Content-Type: " + self.headers["content-type"].encode() + b"\r\n\r\n" + body)
        names = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
        fields = {name: part.get_payload(decode=True) for name, part in names.items()}
        self.server.asked.append(SimpleNamespace(path=self.path, headers=dict(self.headers), fields=fields))
        answers = self.server.answers
        status, kind, data, more = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Do not log."""


def answer(value, status: int = 200, kind: str = "application/json", **headers: str):
    return (status, kind, value if isinstance(value, bytes) else json.dumps(value).encode(), headers)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("models.openai_http.BACKOFF_S", 0.01)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.asked, http.answers = True, [], [answer(VERBOSE)]
    http.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def recognizer(server, **options) -> OpenAIRecognizer:
    return OpenAIRecognizer.load(server.url, **options)


def test_a_recording_is_sent_as_wav_and_text_with_times_comes_back(server, monkeypatch):
    monkeypatch.setenv("HEARING_KEY", "secret")
    samples = buzz(1.0)
    transcript = recognizer(server, model="big", api_key_env="HEARING_KEY").transcribe(samples, "de")
    (request,) = server.asked
    assert request.path == "/v1/audio/transcriptions" and request.headers["Authorization"] == "Bearer secret"
    sent = {name: value for name, value in request.fields.items() if name != "file"}
    assert sent == {"model": b"big", "language": b"de", "response_format": b"verbose_json"}
    with wave.open(io.BytesIO(request.fields["file"])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    assert np.abs(heard - samples).max() < 1e-3
    assert (transcript.text, transcript.language, transcript.duration_s) == ("Guten Tag. Ja.", "german", 1.0)
    rows = [(s.text, s.start_s, s.end_s, s.logprob, s.no_speech) for s in transcript.segments]
    assert rows == [("Guten Tag.", 0.0, 0.6, -0.3, 0.01), ("Ja.", 0.6, 1.0, None, None)]


def test_a_server_without_times_gives_the_text_alone(server):
    server.answers = [answer({"text": " Hello. "})]
    transcript = recognizer(server, response_format="json").transcribe(buzz(0.5), "en")
    assert (transcript.text, transcript.language, transcript.segments) == ("Hello.", "en", ())
    assert server.asked[0].fields["response_format"] == b"json" and "Authorization" not in server.asked[0].headers


def test_translations_use_their_own_path_and_no_language(server):
    recognizer(server).transcribe(buzz(0.5), "de", "translate")
    assert server.asked[0].path == "/v1/audio/translations" and "language" not in server.asked[0].fields


def test_temporary_failures_are_retried(server):
    server.answers = [answer({}, 503), answer({}, 429, **{"Retry-After": "0"}), answer(VERBOSE)]
    assert recognizer(server).transcribe(buzz(0.5)).text == "Guten Tag. Ja." and len(server.asked) == 3


@pytest.mark.parametrize(
    ("given", "kind", "words", "tries"),
    [
        (answer({"error": {"message": "full"}}, 429), BusyError, "overloaded: full", 2),
        (answer(b"<h1>", 500, "text/html"), StageError, "failed with 500", 2),
        (answer({"error": {"message": "no key"}}, 401), StageError, r"refused the key \(401\)", 1),
        (answer({"error": {"message": "too long"}}, 413), InputError, "refused the recording: too long", 1),
        (answer({}, 404), StageError, "answered 404", 1),
        (answer(b"<h1>", 200, "text/html"), StageError, "text/html instead of JSON", 1),
        (answer({"words": 5}), StageError, "not in OpenAI's form", 1),
        (answer([1]), StageError, "not in OpenAI's form", 1),
        (answer({"text": "a", "segments": [{"text": "a"}]}), StageError, "not in OpenAI's form", 1),
    ],
)
def test_unusable_answers_give_an_error_with_the_cause(server, given, kind, words, tries):
    server.answers = [given]
    with pytest.raises(kind, match=words):
        recognizer(server, tries=2).transcribe(buzz(0.5))
    assert len(server.asked) == tries


def test_an_unreachable_or_slow_server_gives_an_error(server, monkeypatch):
    with pytest.raises(StageError, match="connection to the recognition server failed"):
        OpenAIRecognizer.load("http://127.0.0.1:9/v1", tries=1).transcribe(buzz(0.5))
    monkeypatch.setattr(Handler, "do_POST", lambda self: threading.Event().wait(2))
    with pytest.raises(StageError, match="did not answer in time"):
        recognizer(server, timeout_s=0.1, tries=1).transcribe(buzz(0.5))


def test_empty_audio_and_wrong_options_are_refused(server, monkeypatch):
    with pytest.raises(AudioError, match="no samples"):
        recognizer(server).transcribe(np.zeros(0, np.float32))
    with pytest.raises(InputError, match="no task 'sing'"):
        recognizer(server).transcribe(buzz(0.5), None, "sing")
    assert server.asked == []
    monkeypatch.delenv("HEARING_KEY", raising=False)
    for options, words in (
        ({"response_format": "srt"}, "no response_format 'srt'"),
        ({"base_url": "localhost"}, "not a URL"),
        ({"tries": 0}, "above 0"),
        ({"api_key_env": "HEARING_KEY"}, "HEARING_KEY is not set"),
    ):
        with pytest.raises(ConfigError, match=words):
            OpenAIRecognizer.load(**{"base_url": server.url, **options})
