"""What tests of the whole graph say, and how they look at the answer."""

import io
import wave

import av
import httpx
import numpy as np

from models.speech.audio import AudioEncoder
from tests.graph.conftest import decode

TEXT = "Hello there. This is a test of the whole graph."


def speak(client: httpx.Client, text: str = TEXT, **options) -> dict:
    answer = client.post("/speak", json={"text": text, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def video_of(client: httpx.Client, session_id: str):
    return decode(client.get(f"/sessions/{session_id}/video.mp4").raise_for_status().content)


def error_of(answer: httpx.Response) -> dict:
    assert "Traceback" not in answer.text
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "remedy"}
    return error


SECOND = 24_000


def tone(seconds: float, sound_format: str) -> bytes:
    """A sound file of a 180 Hz tone."""
    encoder = AudioEncoder(sound_format, SECOND)
    samples = 0.3 * np.sin(2 * np.pi * 180 * np.arange(round(seconds * SECOND)) / SECOND)
    return encoder.push(samples.astype(np.float32)) + encoder.finish()


def wav(seconds: float, rate: int = 44_100) -> bytes:
    buffer = io.BytesIO()
    tone = (0.3 * np.sin(2 * np.pi * 180 * np.arange(round(seconds * rate)) / rate) * 32767).astype(np.int16)
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def silence(seconds: int) -> bytes:
    """An 8-bit WAV at 8 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 1, 8000, 0, "NONE", ""))
        out.writeframes(b"\x80" * 8000 * seconds)
    return file.getvalue()
