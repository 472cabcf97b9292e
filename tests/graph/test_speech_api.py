"""The OpenAI-compatible speech API of a real graph, called by this project's own engine for such servers."""

import numpy as np
import pytest

from models.speech.audio import decode_audio
from models.tts.hibari import HibariTTS
from models.tts.openai import OpenAITTS
from models.tts.streaming import sound_bounds
from tests.graph.requests import TEXT, error_of

pytestmark = pytest.mark.ray


def test_the_openai_engine_speaks_through_our_own_speech_api(client):
    sentences = ["Hello there.", "This is a somewhat longer sentence, which comes in more than one piece."]
    engine = OpenAITTS.load(base_url=f"{client.base_url}/v1", voice="default", tries=1)
    spoken = list(engine.speak(" ".join(sentences)))
    assert [speech.text for speech in spoken if speech.text] == sentences and len(spoken) > 2
    assert [speech.last for speech in spoken] == [False] * (len(spoken) - 1) + [True]
    voice = HibariTTS.load()
    for sentence, heard in zip(sentences, (spoken[:1], spoken[1:]), strict=True):
        (said,) = voice.speak(sentence)
        there = np.concatenate([speech.samples for speech in heard])
        (begin, end), (first, last) = sound_bounds(said.samples, 24_000), sound_bounds(there, 24_000)
        assert last - first == end - begin
        np.testing.assert_allclose(there[first + 240 : last], said.samples[begin + 240 : end], atol=1 / 32768)


@pytest.mark.parametrize("sound_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format_of_the_speech_api_is_the_same_speech(client, sound_format):
    body = {"model": "tts-1", "input": TEXT, "voice": "heart", "instructions": "Kindly."}
    answer = client.post("/v1/audio/speech", json={**body, "response_format": sound_format})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("audio/")
    said_s = sum(speech.duration_s for speech in HibariTTS.load().speak(TEXT))
    if sound_format == "pcm":
        assert len(answer.content) == round(said_s * 24_000) * 2
    else:
        samples, rate = decode_audio(answer.content)
        assert len(samples) / rate == pytest.approx(said_s, abs=0.15)
        assert np.sqrt((samples**2).mean()) > 0.01


def test_voices_and_models_are_listed_for_openais_clients(client):
    body = {"model": "tts-1", "input": "Hello.", "response_format": "pcm"}
    heart, alloy = (client.post("/v1/audio/speech", json={**body, "voice": voice}) for voice in ("heart", "alloy"))
    assert alloy.content == heart.content and len(heart.content) > 20_000
    assert client.get("/voices").json()[0] == {"name": "heart", "ready": True, "fetch_mb": 0.0}
    assert client.get("/v1/models").json()["data"][0]["id"] == "hibari"


def test_the_speech_api_refuses_bad_requests_with_errors(client):
    for body, status, code in (
        ({"input": "Hello.", "voice": "nobody"}, 422, "bad_input"),
        ({"input": "", "voice": "heart"}, 422, "bad_text"),
        ({"input": "Hello.", "response_format": "midi"}, 422, "bad_input"),
        ({"voice": "heart"}, 422, "bad_input"),
    ):
        answer = client.post("/v1/audio/speech", json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (status, code), body
