"""models.tts.coqui with a fake of coqui-tts, whose signatures are compared with the package if it is installed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import AudioError, ConfigError, IdError, InputError, StageError, TextError, WeightsError
from models.runtime.registry import find_engine
from models.speech.audio import encode_audio
from models.tts import ENGINES
from models.tts.coqui import XTTS, CoquiTTS
from models.tts.streaming import LAST_PAUSE_S, LEAD_S

VITS = "tts_models/en/vctk/vits"
SECONDS_A_CHARACTER = 0.1
PADDING = 10_000  # zeros that TTS.tts appends to a sentence
LONG = "This sentence goes on for quite a long while."  # 45 characters: 4.5 s


def tone(seconds: float, hz: float, rate: int) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(round(seconds * rate)) / rate)


class FakeXtts:
    """Speaks a tone with the voice's pitch, plus noise from torch's generator; one stream at a time, like Xtts."""

    def __init__(self) -> None:
        languages = ["en", "de", "zh-cn"]
        self.config = SimpleNamespace(
            supports_cloning=True,
            languages=languages,
            temperature=0.75,
            length_penalty=1.0,
            repetition_penalty=5.0,
            top_k=50,
            top_p=0.85,
            gpt_cond_len=30,
            gpt_cond_chunk_len=4,
            max_ref_len=30,
            sound_norm_refs=False,
        )
        self.language_manager = SimpleNamespace(language_names=sorted(languages))
        self.tokenizer = SimpleNamespace(char_limits={"en": 250, "de": 253, "zh": 20})
        self.speaker_manager: Any = SimpleNamespace(
            speakers={"Ana Florence": {"gpt_cond_latent": torch.tensor(300.0), "speaker_embedding": torch.tensor(1.0)}},
            speaker_names=["Ana Florence"],
        )
        self.cloned: list[dict[str, Any]] = []
        self.said: list[tuple[str, str, float]] = []
        self.made = 0  # blocks
        self.streaming: object = None

    def get_conditioning_latents(
        self, audio_path, max_ref_length=30, gpt_cond_len=6, gpt_cond_chunk_len=6, librosa_trim_db=None,
        sound_norm_refs=False, load_sr=22050,
    ):  # fmt: skip
        self.cloned.append({"audio_path": audio_path, "gpt_cond_len": gpt_cond_len, "max_ref_length": max_ref_length})
        return torch.tensor(200.0 + 20 * len(audio_path)), torch.tensor(1.0)

    def inference(
        self, text, language, gpt_cond_latent, speaker_embedding, temperature=0.75, length_penalty=1.0,
        repetition_penalty=10.0, top_k=50, top_p=0.85, do_sample=True, num_beams=1, speed=1.0,
        enable_text_splitting=False, **hf_generate_kwargs,
    ):  # fmt: skip
        assert language in self.config.languages and repetition_penalty == 5.0 and not hf_generate_kwargs
        if text.startswith("Crash"):
            raise RuntimeError("CUDA out of memory")
        self.said.append((text, language, speed))
        sound = tone(SECONDS_A_CHARACTER * len(text) / speed, float(gpt_cond_latent), 24_000)
        return {"wav": (sound + 0.01 * torch.rand(len(sound))).numpy()}

    def inference_stream(
        self, text, language, gpt_cond_latent, speaker_embedding, stream_chunk_size=20, overlap_wav_len=1024,
        temperature=0.75, length_penalty=1.0, repetition_penalty=10.0, top_k=50, top_p=0.85, do_sample=True, speed=1.0,
        enable_text_splitting=False, **hf_generate_kwargs,
    ):  # fmt: skip
        state = self.streaming = object()
        wav = self.inference(
            text, language, gpt_cond_latent, speaker_embedding, repetition_penalty=repetition_penalty, speed=speed
        )["wav"]
        for begin in range(0, len(wav), 20_480):  # 20 tokens of 1024 samples
            assert self.streaming is state, "another stream has overwritten the model's prefix"
            self.made += 1
            yield torch.from_numpy(wav[begin : begin + 20_480])


class FakeVits:
    """With speakers and a length scale, without streaming."""

    def __init__(self, speakers: list[str]) -> None:
        self.config = SimpleNamespace(supports_cloning=False)
        self.length_scale = 1.5
        self.language_manager = SimpleNamespace(language_names=["en"])
        self.speaker_manager = SimpleNamespace(speaker_names=speakers)


class FakeTTS:
    """TTS.api.TTS."""

    made: list[FakeTTS] = []  # noqa: RUF012

    def __init__(self, model_name="", *, model_path=None, config_path=None, progress_bar=True, gpu=False) -> None:
        if model_name == "tts_models/no/such/model":
            raise KeyError("no")
        self.source = model_name or model_path
        self.is_xtts = "xtts" in self.source
        self.device = "cpu"
        model: Any = FakeXtts() if self.is_xtts else FakeVits(["p225", "p226"] if "vctk" in self.source else ["one"])
        self.synthesizer = SimpleNamespace(tts_model=model, output_sample_rate=24_000 if self.is_xtts else 22_050)
        self.calls: list[dict[str, Any]] = []
        FakeTTS.made.append(self)

    def to(self, device: str) -> FakeTTS:
        self.device = device
        return self

    @property
    def is_multi_lingual(self) -> bool:
        return self.is_xtts

    @property
    def speakers(self) -> list[str] | None:
        names = list(self.synthesizer.tts_model.speaker_manager.speaker_names)
        return ["cached-by-coqui", *names] if self.is_xtts else names if len(names) > 1 else None

    @property
    def languages(self) -> list[str] | None:
        return self.synthesizer.tts_model.language_manager.language_names if self.is_multi_lingual else None

    def tts(
        self, text, speaker=None, language=None, speaker_wav=None, emotion=None, split_sentences=True, **kwargs
    ) -> list[float]:  # fmt: skip
        if self.is_multi_lingual == (language is None) or (speaker is not None and self.speakers is None):
            raise ValueError("`language` or `speaker` does not fit the model")
        assert not kwargs and not split_sentences
        self.calls.append({"text": text, "speaker": speaker, "scale": self.synthesizer.tts_model.length_scale})
        seconds = SECONDS_A_CHARACTER * len(text) * self.synthesizer.tts_model.length_scale / 1.5
        return [*tone(seconds, 220, 22_050).tolist(), *[0.0] * PADDING]


@pytest.fixture(autouse=True)
def fake_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package, api = ModuleType("TTS"), ModuleType("TTS.api")
    api.TTS = FakeTTS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "TTS", package)
    monkeypatch.setitem(sys.modules, "TTS.api", api)
    monkeypatch.setenv("COQUI_TOS_AGREED", "1")
    FakeTTS.made.clear()


@pytest.fixture
def recording(tmp_path: Path) -> Callable[..., str]:
    def record(name: str = "me.wav", seconds: float = 4.0) -> str:
        path = tmp_path / "voices" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_audio(tone(seconds, 200, 16_000).numpy(), 16_000, "wav"))
        return str(path)

    return record


def pitch_hz(samples: Any, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


def xtts_of(engine: CoquiTTS) -> FakeXtts:
    model: FakeXtts = engine._model
    return model


# --- XTTS


def test_xtts_streams_a_sentence_in_pieces() -> None:
    engine = CoquiTTS.load()
    model = xtts_of(engine)
    model.made = 0
    stream = engine.speak(f"{LONG} Yes.")
    first = next(stream)
    assert (first.duration_s, first.text, first.last, first.sample_rate_hz) == (1.0, LONG, False, 24_000)
    assert model.made == 3  # of 6: 2.0 s less the lead
    rest = list(stream)
    assert [speech.text for speech in rest] == ["", "", "Yes."]
    assert [speech.last for speech in rest] == [False, False, True]
    assert rest[-1].duration_s == pytest.approx(LEAD_S + 0.4 + LAST_PAUSE_S, abs=0.011)
    assert model.said[-2:] == [(LONG, "en", 1.0), ("Yes.", "en", 1.0)]


def test_streaming_is_deterministic_and_equals_whole_sentences() -> None:
    def say(engine: CoquiTTS) -> Any:
        return np.concatenate([speech.samples for speech in engine.speak(f"{LONG} {LONG}")])

    streaming, whole = CoquiTTS.load(), CoquiTTS.load(stream=False)
    once = say(streaming)
    list(streaming.speak("Something else."))
    np.testing.assert_array_equal(say(streaming), once)
    np.testing.assert_array_equal(say(whole), once)
    assert len(list(whole.speak(LONG))) == 1


def test_two_concurrent_utterances_keep_their_samples() -> None:
    engine = CoquiTTS.load()
    alone = [np.concatenate([s.samples for s in engine.speak(text)]) for text in (LONG, LONG[::-1])]
    one, two = engine.speak(LONG), engine.speak(LONG[::-1])
    parts: list[list[Any]] = [[next(one).samples], [next(two).samples]]
    parts[0] += [speech.samples for speech in one]
    parts[1] += [speech.samples for speech in two]
    for apart, together in zip(alone, parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(together), apart)


def test_an_abandoned_utterance_is_not_computed_to_its_end() -> None:
    engine = CoquiTTS.load()
    model = xtts_of(engine)
    model.made = 0
    stream = engine.speak(LONG * 4)
    next(stream)
    del stream
    made = model.made
    list(engine.speak("Yes."))
    assert model.made == made + 1


def test_a_voice_is_cloned_once_with_the_models_settings(recording: Callable[..., str]) -> None:
    engine = CoquiTTS.load(speaker_wav=[recording("a.wav"), recording("b.wav")])
    assert engine.voices() == ["cloned", "Ana Florence"]
    (speech,) = engine.speak("Yes.")
    list(engine.speak("No."))
    (call,) = xtts_of(engine).cloned
    assert [Path(path).name for path in call["audio_path"]] == ["a.wav", "b.wav"]
    assert (call["gpt_cond_len"], call["max_ref_length"]) == (30, 30)
    assert pitch_hz(speech.samples, 24_000) == pytest.approx(240, abs=2)
    (other,) = engine.speak("Yes.", voice="Ana Florence")
    assert pitch_hz(other.samples, 24_000) == pytest.approx(300, abs=2)


def test_each_wav_in_voices_dir_is_a_voice(recording: Callable[..., str]) -> None:
    folder = Path(recording("zoe.wav")).parent
    recording("adam.wav")
    engine = CoquiTTS.load(voices_dir=str(folder), voice="zoe")
    assert engine.voices() == ["zoe", "adam", "Ana Florence"]
    list(engine.speak("Yes.", voice="adam"))
    assert [Path(call["audio_path"][0]).stem for call in xtts_of(engine).cloned] == ["zoe", "adam"]
    with pytest.raises(InputError, match="no voice '../zoe'") as caught:
        engine.speak("Yes.", voice="../zoe")
    assert "zoe, adam, Ana Florence" in caught.value.remedy


def test_a_recording_that_cannot_be_cloned_is_refused_at_load(recording: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"'short.wav' lasts 1\.0 s"):
        CoquiTTS.load(speaker_wav=recording("short.wav", 1.0))
    with pytest.raises(AudioError, match="no audio file 'gone.wav'"):
        CoquiTTS.load(speaker_wav="gone.wav")
    with pytest.raises(ConfigError, match="no voices folder"):
        CoquiTTS.load(voices_dir="gone")
    with pytest.raises(IdError, match="'My Voice' is not a valid voice id"):
        CoquiTTS.load(voices_dir=str(Path(recording("My Voice.wav")).parent))


def test_each_language_keeps_its_script_and_its_sentence_limit() -> None:
    engine = CoquiTTS.load(language="zh-cn")
    text = "今天天气很好，我们一起去公园散步吧，然后喝茶。你好！"
    spoken = [speech.text for speech in engine.speak(text) if speech.text]
    assert "".join(spoken).replace(" ", "") == "今天天气很好,我们一起去公园散步吧,然后喝茶.你好!"
    assert len(spoken) == 3 and all(len(sentence) <= 20 for sentence in spoken)
    assert {language for _, language, _ in xtts_of(engine).said} == {"zh-cn"}
    with pytest.raises(ConfigError, match="does not speak 'fr'") as caught:
        CoquiTTS.load(language="fr")
    assert caught.value.remedy == "Use one of de, en, zh-cn."
    with pytest.raises(TextError, match="Chinese"):
        CoquiTTS.load(language="en").speak(text)


def test_xtts_requires_consent_to_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COQUI_TOS_AGREED")
    with pytest.raises(ConfigError, match="non-commercial use only") as caught:
        CoquiTTS.load()
    assert "accept_cpml: true" in caught.value.remedy and FakeTTS.made == []
    CoquiTTS.load(model=VITS)  # under another licence
    CoquiTTS.load(accept_cpml=True)
    assert len(FakeTTS.made) == 2


def test_speed_is_passed_to_the_model_and_checked() -> None:
    engine = CoquiTTS.load()
    slow, fast = (sum(s.duration_s for s in engine.speak(LONG, speed=speed)) for speed in (0.75, 1.5))
    assert slow - fast == pytest.approx(4.5 / 0.75 - 4.5 / 1.5, abs=0.02)
    for speed in (0.1, 3.0, float("nan")):
        with pytest.raises(InputError, match="out of range"):
            engine.speak(LONG, speed=speed)


def test_a_model_failure_gives_a_stage_error_and_the_next_text_works() -> None:
    engine = CoquiTTS.load()
    with pytest.raises(StageError, match="failed at 'Crash now.': RuntimeError: CUDA out of memory"):
        list(engine.speak("Crash now."))
    assert len(list(engine.speak("Yes."))) == 1


# --- VITS


def test_vits_speaks_per_sentence_without_coquis_padding() -> None:
    engine = CoquiTTS.load(model=VITS, voice="p226")
    assert engine.voices() == ["p226", "p225"] and engine.sample_rate_hz == 22_050
    speech = list(engine.speak(f"{LONG} Yes."))
    assert [(s.text, s.last) for s in speech] == [(LONG, False), ("Yes.", True)]
    assert speech[1].duration_s == pytest.approx(LEAD_S + 0.4 + LAST_PAUSE_S, abs=0.021)
    assert FakeTTS.made[0].calls[-1] == {"text": "Yes.", "speaker": "p226", "scale": 1.5}


def test_vits_speed_applies_to_one_sentence_only() -> None:
    engine = CoquiTTS.load(model=VITS)
    (speech,) = engine.speak("Yes.", speed=2.0)
    assert FakeTTS.made[0].calls[-1]["scale"] == 0.75
    assert speech.duration_s == pytest.approx(LEAD_S + 0.2 + LAST_PAUSE_S, abs=0.021)
    list(engine.speak("Yes."))
    assert FakeTTS.made[0].calls[-1]["scale"] == 1.5


def test_a_single_voice_model_has_one_voice_and_cannot_clone(recording: Callable[..., str]) -> None:
    engine = CoquiTTS.load(model="tts_models/en/ljspeech/vits")
    assert engine.voices() == ["default"]
    (speech,) = engine.speak("Yes.", voice="default")
    assert speech.last and speech.duration_s > 0.5
    with pytest.raises(ConfigError, match="cannot clone"):
        CoquiTTS.load(model=VITS, speaker_wav=recording())


def test_a_model_without_speed_control_refuses_other_speeds() -> None:
    engine = CoquiTTS.load(model=VITS)
    del engine._model.length_scale
    with pytest.raises(InputError, match=r"cannot speak at speed 1\.2"):
        engine.speak("Yes.", speed=1.2)


# --- loading


def test_a_model_loads_from_a_folder_or_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "my_xtts"
    folder.mkdir()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        CoquiTTS.load(model=str(folder))
    (folder / "config.json").write_text("{}")
    CoquiTTS.load(model=str(folder))
    CoquiTTS.load(model=XTTS)
    assert [tts.source for tts in FakeTTS.made] == [str(folder), XTTS]
    with pytest.raises(WeightsError, match="'tts_models/no/such/model' could not be loaded: KeyError"):
        CoquiTTS.load(model="tts_models/no/such/model")


def test_the_device_option_selects_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no GPU"):
        CoquiTTS.load(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    CoquiTTS.load(device="cuda:0")
    assert FakeTTS.made[-1].device == "cuda:0"


def test_a_missing_package_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "TTS.api", None)
    with pytest.raises(ConfigError, match="coqui-tts cannot be imported") as caught:
        find_engine("coqui", ENGINES).load()
    assert caught.value.remedy == "pip install warmtalk[coqui]"


@pytest.fixture
def real_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, "TTS.api")
    monkeypatch.delitem(sys.modules, "TTS")
    pytest.importorskip("torchaudio", exc_type=ImportError)
    pytest.importorskip("TTS.api", exc_type=ImportError)
    yield


def test_the_fake_has_the_signatures_of_the_package(real_package: None) -> None:
    from TTS.api import TTS
    from TTS.tts.models.xtts import Xtts

    for fake, real in ((FakeTTS, TTS), (FakeXtts, Xtts)):
        names = [name for name, value in vars(fake).items() if inspect.isfunction(value) and name in vars(real)]
        assert len(names) >= 2
        for name in names:
            known = inspect.signature(getattr(real, name)).parameters
            for parameter in inspect.signature(getattr(fake, name)).parameters:
                assert parameter in known, f"{real.__name__}.{name}({parameter})"
