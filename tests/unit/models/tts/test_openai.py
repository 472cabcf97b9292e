"""models.tts.openai with a local server that answers, is slow, refuses, sends garbage or breaks off."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from models import openai_http
from models.errors import BusyError, ConfigError, InputError, StageError, TextError
from models.tts import openai as tts_openai
from models.tts.openai import OpenAITTS
from models.tts.streaming import LAST_PAUSE_S, LEAD_S
from tests.unit.models.speech.test_audio import wav_bytes

RATE = 24_000
KEY = "sk-very-secret"
TWO = "Hello there. How are you?"
Answer = Callable[["Handler"], None]


def tone(seconds: float) -> Any:
    return (0.5 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def pcm_bytes(seconds: float) -> bytes:
    return (tone(seconds) * 32768).astype("<i2").tobytes()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.state.requests.append((self.path, dict(self.headers), body))
        answers = server.state.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def send(self, data: bytes, status: int = 200, kind: str = "audio/pcm", length: int | None = None, **headers: str):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        self.close_connection = length is not None

    def log_message(self, *args: object) -> None:
        """Do not log."""


@dataclass
class Server:
    """Sends `answers` in turn, then the last one again. requests: (path, headers, body)."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients disconnect in some tests
    http.state = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield http.state  # type: ignore[attr-defined]
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.openai_http.BACKOFF_S", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def engine(server: Server, *answers: Answer, **options: Any) -> OpenAITTS:
    server.answers[:] = answers
    return OpenAITTS.load(base_url=server.url, **options)


def sound(seconds: float = 0.5) -> Answer:
    return lambda http: http.send(pcm_bytes(seconds))


def refusal(status: int, message: str = "no", **headers: str) -> Answer:
    body = json.dumps({"error": {"message": message, "code": "x"}}).encode()
    return lambda http: http.send(body, status, "application/json", **headers)


def cut_off(seconds: float) -> Answer:
    return lambda http: http.send(pcm_bytes(seconds), length=10**6)


# --- what is asked and what comes back


def test_each_sentence_is_one_request_and_one_speech(server: Server) -> None:
    voice = engine(server, sound(), model="tts-9", voice="nova")
    speech = list(voice.speak(TWO, speed=1.25))
    assert [(s.text, s.last, s.sample_rate_hz) for s in speech] == [
        ("Hello there.", False, RATE),
        ("How are you?", True, RATE),
    ]
    assert speech[1].duration_s == pytest.approx(LEAD_S + 0.5 + LAST_PAUSE_S, abs=0.011)
    path, _, body = server.requests[1]
    assert path == "/v1/audio/speech"
    assert body == {
        "model": "tts-9",
        "input": "How are you?",
        "voice": "nova",
        "response_format": "pcm",
        "speed": 1.25,
    }


def test_pcm_samples_arrive_as_they_were_sent(server: Server) -> None:
    (speech,) = engine(server, sound(0.5)).speak("Yes.")
    lead = round(LEAD_S * RATE)
    np.testing.assert_allclose(speech.samples[lead + 200 : lead + 12_000], tone(0.5)[200:], atol=1 / 32768)


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_wav_is_resampled_to_the_engines_rate(server: Server, rate: int) -> None:
    samples = (0.5 * np.sin(2 * np.pi * 220 * np.arange(rate) / rate)).astype(np.float32)
    voice = engine(server, lambda http: http.send(wav_bytes(samples, rate), kind="audio/wav"), response_format="wav")
    (speech,) = voice.speak("Yes.")
    assert speech.sample_rate_hz == RATE == voice.sample_rate_hz
    assert speech.duration_s == pytest.approx(LEAD_S + 1 + LAST_PAUSE_S, abs=0.011)
    spectrum = np.abs(np.fft.rfft(speech.samples[2_400:26_400]))
    assert int(spectrum.argmax()) == 220


def test_pcm_is_yielded_while_the_server_still_sends(server: Server) -> None:
    go_on = threading.Event()

    def halting(http: Handler) -> None:
        data = pcm_bytes(4.0)
        http.send(data[: len(data) * 5 // 8 + 1], length=len(data))  # an odd number of bytes
        go_on.wait(5)
        http.wfile.write(data[len(data) * 5 // 8 + 1 :])

    stream = engine(server, halting).speak("A long sentence.")
    first = next(stream)
    assert not go_on.is_set() and (first.duration_s, first.last, first.text) == (1.0, False, "A long sentence.")
    go_on.set()
    rest = list(stream)
    assert [s.last for s in rest][-1:] == [True] and sum(s.last for s in rest) == 1
    joined = np.concatenate([first.samples, *(s.samples for s in rest)])
    lead = round(LEAD_S * RATE)
    np.testing.assert_allclose(joined[lead + 200 : lead + 4 * RATE], tone(4)[200:], atol=1 / 32768)


def test_the_first_sentence_is_yielded_before_the_second_request(server: Server) -> None:
    stream = engine(server, sound()).speak(TWO)
    assert len(server.requests) == 0
    next(stream)
    assert len(server.requests) == 1


def test_other_scripts_are_sent_and_empty_text_is_refused(server: Server) -> None:
    voice = engine(server, sound())
    assert [s.text for s in voice.speak("Привет. Как дела?")] == ["Привет.", "Как дела?"]
    with pytest.raises(TextError, match="no letter"):
        voice.speak("🎉")


# --- voices and options


def test_voices_are_checked_only_if_listed(server: Server) -> None:
    open_list = engine(server, sound(), voice="alloy")
    assert open_list.voices() == ["alloy"]
    list(open_list.speak("Yes.", voice="whoever"))
    assert server.requests[-1][2]["voice"] == "whoever"
    listed = engine(server, sound(), voice="alloy", voices=["nova", "alloy"])
    assert listed.voices() == ["alloy", "nova"]
    with pytest.raises(InputError, match="no voice 'whoever'") as caught:
        listed.speak("Yes.", voice="whoever")
    assert "alloy, nova" in caught.value.remedy
    with pytest.raises(InputError, match="out of range"):
        listed.speak("Yes.", speed=5.0)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"response_format": "midi"}, "no response_format 'midi'"),
        ({"base_url": "localhost:8000"}, "not a URL"),
        ({"tries": 0}, "above 0"),
        ({"api_key_env": "WARMTALK_NO_SUCH_KEY"}, "WARMTALK_NO_SUCH_KEY is not set"),
    ],
)
def test_a_wrong_option_is_refused_at_load(options: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        OpenAITTS.load(**options)


# --- the key


def test_the_key_is_sent_only_if_its_variable_is_configured(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    list(engine(server, sound()).speak("Yes."))
    assert "Authorization" not in server.requests[-1][1]
    list(engine(server, sound(), api_key_env="OPENAI_API_KEY").speak("Yes."))
    assert server.requests[-1][1]["Authorization"] == f"Bearer {KEY}"


def test_the_key_is_in_no_log_and_no_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    voice = engine(server, refusal(401, f"Incorrect API key provided: {KEY}"), api_key_env="OPENAI_API_KEY")
    with caplog.at_level(logging.DEBUG), pytest.raises(StageError, match=r"refused the key \(401\)") as caught:
        list(voice.speak("Yes."))
    assert "api_key_env" in caught.value.remedy
    assert len(caplog.records) > 3  # httpx and httpcore did log
    assert KEY not in caplog.text + str(caught.value) + repr(vars(voice))


# --- what goes wrong


def test_overload_and_failure_are_retried(server: Server) -> None:
    voice = engine(server, refusal(429), refusal(503), sound())
    assert len(list(voice.speak("Yes."))) == 1
    assert len(server.requests) == 3


def test_retry_after_is_respected(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits_s: list[float] = []
    monkeypatch.setattr(tts_openai.time, "sleep", waits_s.append)
    answers = refusal(429, Retry_After="7.5"), refusal(429), refusal(429, Retry_After="99"), sound()
    list(engine(server, *answers, tries=4).speak("Yes."))
    assert waits_s == [7.5, 2 * openai_http.BACKOFF_S, openai_http.MAX_WAIT_S]


@pytest.mark.parametrize(
    ("status", "error", "cause", "requests"),
    [
        (429, BusyError, "overloaded: too many", 3),
        (500, StageError, "failed with 500: too many", 3),
        (400, InputError, "refused the text or the voice: too many", 1),
        (422, InputError, "refused the text or the voice: too many", 1),
        (403, StageError, "refused the key", 1),
        (404, StageError, "answered 404", 1),
        (302, StageError, "answered 302", 1),
    ],
)
def test_only_temporary_failures_are_retried(
    server: Server, status: int, error: type[Exception], cause: str, requests: int
) -> None:
    with pytest.raises(error, match=cause):
        list(engine(server, refusal(status, "too many")).speak("Yes."))
    assert len(server.requests) == requests


def test_an_error_without_a_message_shows_the_reason_phrase(server: Server) -> None:
    with pytest.raises(StageError, match="failed with 502: Bad Gateway"):
        list(engine(server, lambda http: http.send(b"<html>" * 10_000, 502, "text/html"), tries=1).speak("Yes."))


def test_a_slow_server_times_out_at_each_try(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    release, attempts = threading.Event(), list[int]()
    monkeypatch.setattr(openai_http.RetryableError, "backoff_s", lambda _, attempt: attempts.append(attempt) or 0.0)
    with pytest.raises(StageError, match="did not answer in time") as caught:
        list(engine(server, lambda http: release.wait(30), timeout_s=0.05, tries=3).speak("Yes."))
    release.set()
    assert attempts == [0, 1] and "timeout_s" in caught.value.remedy


def test_an_unreachable_server_gives_an_error() -> None:
    voice = OpenAITTS.load(base_url="http://127.0.0.1:9/v1", tries=2)
    with pytest.raises(StageError, match="connection to the speech server failed"):
        list(voice.speak("Yes."))


def test_an_answer_cut_off_before_the_first_audio_is_retried(server: Server) -> None:
    (speech,) = engine(server, cut_off(0.0), sound(0.5)).speak("Yes.")
    assert speech.duration_s == pytest.approx(LEAD_S + 0.5 + LAST_PAUSE_S, abs=0.011)


def test_an_answer_cut_off_later_is_an_error_without_retry(server: Server) -> None:
    stream = engine(server, cut_off(3.5)).speak("A long sentence.")
    assert next(stream).duration_s == 1.0
    with pytest.raises(StageError, match="connection to the speech server failed"):
        list(stream)
    assert len(server.requests) == 1


def test_a_truncated_wav_is_retried(server: Server) -> None:
    whole = wav_bytes(tone(0.5), RATE)
    answers = [lambda http: http.send(whole[:9_000], kind="audio/wav"), lambda http: http.send(whole, kind="audio/wav")]
    (speech,) = engine(server, *answers, response_format="wav").speak("Yes.")
    assert speech.duration_s == pytest.approx(LEAD_S + 0.5 + LAST_PAUSE_S, abs=0.011)
    with pytest.raises(StageError, match="is incomplete"):
        list(engine(server, answers[0], response_format="wav").speak("Yes."))


@pytest.mark.parametrize(
    ("data", "kind", "response_format", "cause"),
    [
        (b"not a sound file" * 99, "audio/wav", "wav", "is not audio"),
        (b"", "audio/wav", "wav", "is not audio"),
        (b"", "audio/pcm", "pcm", "is empty"),
        (b"<html>Welcome</html>", "text/html", "pcm", "text/html instead of audio"),
        (b'{"ok": true}', "application/json", "wav", "application/json instead of audio"),
    ],
)
def test_an_answer_without_audio_is_a_stage_error(
    server: Server, data: bytes, kind: str, response_format: str, cause: str
) -> None:
    voice = engine(server, lambda http: http.send(data, kind=kind), response_format=response_format)
    with pytest.raises(StageError, match=cause):
        list(voice.speak("Yes."))
    assert len(server.requests) == 1


def test_an_answer_over_max_mb_is_refused(server: Server) -> None:
    with pytest.raises(StageError, match=r"exceeds 0\.1 MB"):
        list(engine(server, sound(5.0), max_mb=0.1).speak("Yes."))
