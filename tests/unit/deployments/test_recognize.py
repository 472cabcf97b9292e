"""The Recognize stage without Ray: sound formats, languages, limits and changes of its config."""

import asyncio
import threading

import numpy as np
import pytest
from ray import serve

from deployments.recognize import Recognize, load_recognizer
from graph import build_app
from models.errors import AudioError, ConfigError, InputError, WeightsError
from models.recognition.base import Transcript
from models.recognition.whisper import WhisperRecognizer
from models.speech.audio import encode_audio
from tests.support.recognizer import DurationRecognizer
from tests.support.uploads import stored
from tests.support.whisper import buzz, write_whisper

ENGINE = "tests.support.recognizer:DurationRecognizer"


def sound(seconds: float, rate_hz: int = 24_000, form: str = "wav") -> bytes:
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return encode_audio((0.3 * np.sin(2 * np.pi * 300 * times)).astype(np.float32), rate_hz, form)


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))


async def stage(**config) -> Recognize:
    DurationRecognizer.loads.clear()
    DurationRecognizer.calls.clear()
    recognize = Recognize()
    await recognize.reconfigure({"engine": ENGINE, **config})
    return recognize


async def heard(recognize: Recognize, *given) -> Transcript:
    """given: the sound file, and the other arguments of `transcribe`."""
    return (await recognize.transcribe(stored(given[0]), *given[1:])).value


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "opus"])
async def test_common_sound_formats_are_decoded_to_16_khz(form):
    transcript = await heard(await stage(), sound(1.5, 24_000, form))
    samples, language, task = DurationRecognizer.calls[0]
    assert samples == pytest.approx(24_000, abs=1500) and (language, task) == (None, "transcribe")
    assert transcript.duration_s == pytest.approx(1.5, abs=0.1) and "tenths" in transcript.text


async def test_a_result_has_its_timing():
    stamped = await (await stage()).transcribe(stored(sound(1.0)))
    (timing,) = stamped.timings
    assert (timing.stage, timing.engine) == ("Recognize", ENGINE) and timing.compute_s > 0


async def test_the_language_of_the_request_overrides_the_config():
    recognize = await stage(language="de")
    await heard(recognize, sound(1.0))
    await heard(recognize, sound(1.0), "fr", "translate")
    assert [entry[1:] for entry in DurationRecognizer.calls] == [("de", "transcribe"), ("fr", "translate")]
    with pytest.raises(InputError, match="no language 'xx'"):
        await heard(recognize, sound(1.0), "xx")


async def test_data_that_is_not_sound_or_is_too_long_is_refused():
    recognize = await stage(max_audio_s=2.0)
    for data, words in ((b"", "empty"), (b"PK\3\4" * 50, "not audio"), (sound(4.0), "longer|limit|exceeds|2 s")):
        with pytest.raises(AudioError, match=words):
            await heard(recognize, data)
    assert DurationRecognizer.calls == []


async def test_only_a_change_of_the_engine_loads_it_again():
    recognize = await stage()
    await recognize.reconfigure({"engine": ENGINE, "language": "en", "max_audio_s": 5})
    assert DurationRecognizer.loads == ["tenths"]
    await recognize.reconfigure({"engine": ENGINE, "options": {"unit": "parts"}})
    assert DurationRecognizer.loads == ["tenths", "parts"] and "10 parts." in (await heard(recognize, sound(1.0))).text
    with pytest.raises(ConfigError, match="miles"):
        await recognize.reconfigure({"engine": ENGINE, "options": {"unit": "miles"}})
    with pytest.raises(ConfigError, match="did you mean 'language'"):
        await recognize.reconfigure({"engine": ENGINE, "lanugage": "en"})


class Waiting(DurationRecognizer):
    """Waits for a server: here, until two recordings wait at the same time."""

    io_bound = True
    both = threading.Barrier(2)

    def transcribe(self, samples_16khz, language=None, task="transcribe"):
        self.both.wait(30)
        return super().transcribe(samples_16khz, language, task)


async def test_an_io_bound_engine_transcribes_in_parallel():
    recognize = await stage(engine=f"{__name__}:Waiting")
    texts = await asyncio.gather(*(heard(recognize, sound(seconds)) for seconds in (1.0, 2.0)))
    assert [transcript.text[:2] for transcript in texts] == ["10", "20"]


async def test_the_default_engine_is_whisper_with_the_weights_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"fetch-weights --only whisper-tiny\.en"):
        load_recognizer("whisper", {})
    write_whisper(tmp_path / "weights" / "whisper-tiny.en")
    engine = load_recognizer("whisper", {"temperatures": [0.0]})
    assert isinstance(engine, WhisperRecognizer) and engine.temperatures == (0.0,)
    assert engine.transcribe(buzz(0.5), "en").duration_s == 0.5


def test_the_graph_has_the_stage_only_if_args_say_so():
    def stages(**args) -> set[str]:
        found, left = set(), [build_app(args)._bound_deployment]
        while left:
            deployment = left.pop()
            found.add(deployment.name)
            given = [*deployment.init_args, *deployment.init_kwargs.values()]
            left += [entry._bound_deployment for entry in given if isinstance(entry, serve.Application)]
        return found

    assert "Recognize" not in stages() and stages(recognize=True) - stages() == {"Recognize"}
