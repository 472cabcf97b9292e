"""The TTS stage without Ray: changes of its config, streamed speech, sound files and voices."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from deployments.common.messages import SoundPart
from deployments.tts import TTS, Turns
from models.errors import AudioError, ConfigError, InputError, TextError
from models.speech.audio import decode_audio
from models.speech.readable import skip_warnings
from models.types import Speech

RATE = 24_000


class Loud:
    """An engine with two voices. Each word is a constant signal of the voice's level, 0.5 s long at speed 1."""

    sample_rate_hz = RATE
    loads: ClassVar[list[dict[str, Any]]] = []
    threads: ClassVar[set[str]] = set()

    def __init__(self, level: float) -> None:
        self.level = level

    @classmethod
    def load(cls, level: float = 0.25) -> Loud:
        if level > 1:
            raise ConfigError("Too loud.", "Lower it.")
        cls.loads.append({"engine": cls.__name__, "level": level})
        return cls(level)

    def voices(self) -> list[str]:
        return ["plain", "half"]

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        if voice not in (None, *self.voices()):
            raise InputError(f"There is no voice {voice!r}.", "Use plain or half.")
        words = text.split()
        level = self.level / 2 if voice == "half" else self.level
        for index, word in enumerate(words):
            self.threads.add(threading.current_thread().name)
            samples = np.full(round(0.5 * RATE / speed), level, np.float32)
            yield Speech(samples, RATE, word, last=index == len(words) - 1)


class Noted(Loud):
    """Notes the order of its sentences. The fourth one waits for `gate`."""

    def __init__(self, level: float) -> None:
        super().__init__(level)
        self.order: list[str] = []
        self.reached, self.gate = threading.Event(), threading.Event()

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        for speech in super().speak(text, voice, speed):
            self.order.append(speech.text)
            if len(self.order) == 4:
                self.reached.set()
                self.gate.wait(30)
            yield speech


class Other(Loud):
    """Another engine."""


class Remote(Loud):
    """An engine that waits for a server: here, until two utterances wait at the same time."""

    io_bound = True
    both: ClassVar[threading.Barrier] = threading.Barrier(2)

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        for speech in super().speak(text, voice, speed):
            self.both.wait(timeout=30)
            yield speech


class Named(Loud):
    """An engine whose second voice has the name of an OpenAI voice."""

    def voices(self) -> list[str]:
        return ["plain", "nova"]

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        level = self.level / 2 if voice == "nova" else self.level
        yield Speech(np.full(RATE // 2, level, np.float32), RATE, text, last=True)


class Anything(Loud):
    """An engine whose server knows the voices."""

    any_voice = True


class Eager(Loud):
    """An engine that works 50 ms before its first sentence."""

    began = ""

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        self.began = threading.current_thread().name
        time.sleep(0.05)
        return super().speak(text, voice, speed)


class Downloading(Loud):
    """An engine with a voice that must be downloaded, which waits for `gate`."""

    def __init__(self, level: float) -> None:
        super().__init__(level)
        self.fetched: list[str] = []
        self.fetching, self.gate = threading.Event(), threading.Event()

    def missing_voices(self) -> dict[str, int]:
        return {} if self.fetched else {"half": 7_940_000}

    def fetch_voice(self, voice: str) -> None:
        self.fetching.set()
        self.gate.wait(30)
        self.fetched.append(voice)


NAMES = ("default", "nova", "alloy")
ENGINE, OTHER = f"{__name__}:Loud", f"{__name__}:Other"


@pytest.fixture(autouse=True)
def reset_records() -> None:
    Loud.loads.clear()
    Loud.threads.clear()


async def stage(**config: Any) -> TTS:
    made = TTS()
    await made.reconfigure({"engine": ENGINE} | config)
    return made


async def said(tts: TTS, text: str = "one two", **options: Any) -> list[Speech]:
    return [stamped.value async for stamped in tts.speak(text, **options)]


async def level(tts: TTS, **options: Any) -> float:
    return float((await said(tts, **options))[0].samples[0])


# --- config


async def test_a_change_of_engine_or_options_loads_the_engine_again() -> None:
    tts = await stage()
    assert await level(tts) == 0.25
    await tts.reconfigure({"engine": ENGINE, "options": {"level": 0.5}})
    assert await level(tts) == 0.5
    await tts.reconfigure({"engine": OTHER, "options": {"level": 0.5}})
    assert [(load["engine"], load["level"]) for load in Loud.loads] == [("Loud", 0.25), ("Loud", 0.5), ("Other", 0.5)]


async def test_other_settings_are_applied_without_loading_the_engine() -> None:
    tts = await stage()
    for config in ({"voice": "half"}, {"voice": "half", "speed": 2.0}, {"max_chars": 3}, {}, {}):
        await tts.reconfigure({"engine": ENGINE, **config})
    assert len(Loud.loads) == 1
    await tts.reconfigure({"engine": ENGINE, "voice": "half", "speed": 2.0})
    speech = await said(tts)
    assert (speech[0].samples[0], speech[0].duration_s) == (0.125, 0.25)


async def test_an_utterance_keeps_its_engine_when_the_config_changes() -> None:
    tts = await stage()
    async with aclosing(tts.speak("one two")) as spoken:
        levels = [(await anext(spoken)).value.samples[0]]
        await tts.reconfigure({"engine": ENGINE, "options": {"level": 0.5}})
        levels += [stamped.value.samples[0] async for stamped in spoken]
    assert levels == [0.25, 0.25] and await level(tts) == 0.5


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ({"engin": ENGINE}, "did you mean 'engine'"),
        ({"engine": "hibary"}, "no engine 'hibary'"),
        ({"engine": f"{__name__}:Nobody"}, "cannot be imported"),
        ({"engine": ENGINE, "options": {"level": 2.0}}, "Too loud"),
        ({"engine": ENGINE, "speed": 9}, "speed"),
    ],
)
async def test_after_a_refused_config_the_old_engine_is_used(config: dict[str, Any], cause: str) -> None:
    tts = await stage(voice="half")
    with pytest.raises(ConfigError, match=cause):
        await tts.reconfigure(config)
    assert await level(tts) == 0.125 and tts.config.voice == "half"


async def test_a_refused_config_can_be_corrected() -> None:
    tts = TTS()
    with pytest.raises(ConfigError, match="Too loud"):
        await tts.reconfigure({"engine": ENGINE, "options": {"level": 2.0}})
    await tts.reconfigure({"engine": ENGINE, "options": {"level": 0.5}})
    assert await level(tts) == 0.5


# --- speaking


async def test_each_sentence_has_its_own_timing() -> None:
    tts = await stage()
    stamps = [stamped.timings async for stamped in tts.speak("one two three")]
    assert len(stamps) == 3
    for (timing,) in stamps:
        assert (timing.stage, timing.frames) == ("TTS", 0)
        assert 0 < timing.compute_s <= timing.done_s - timing.received_s + 1e-3
    assert stamps[0][0].done_s <= stamps[1][0].received_s


async def test_voice_and_speed_of_the_request_override_those_of_the_config() -> None:
    tts = await stage(voice="half", speed=2.0)
    assert await level(tts) == 0.125
    assert await level(tts, voice="plain") == 0.25
    assert (await said(tts, speed=0.5))[0].duration_s == 1.0
    assert [voice["name"] for voice in await tts.voices()] == ["plain", "half"]


async def test_the_engine_runs_on_the_compute_thread() -> None:
    await said(await stage())
    assert len(Loud.threads) == 1 and threading.current_thread().name not in Loud.threads


async def test_an_io_bound_engine_speaks_utterances_in_parallel() -> None:
    tts = await stage(engine=f"{__name__}:Remote")
    one, two = await asyncio.gather(said(tts, "one two"), said(tts, "three four"))
    assert [speech.text for speech in (*one, *two)] == ["one", "two", "three", "four"]


async def test_a_text_over_the_limit_is_refused() -> None:
    tts = await stage(max_chars=7)
    assert len(await said(tts, "one two")) == 2
    with pytest.raises(TextError, match="has 8 characters; the limit is 7"):
        await said(tts, "one twos")
    assert len(Loud.loads) == 1


class English(Loud):
    """An engine whose voice reads English only."""

    language = "en"


async def test_a_part_that_the_voice_cannot_read_is_skipped_and_reported_with_the_first_sentence() -> None:
    tts = await stage(engine=f"{__name__}:English")
    text = "One.\n\n你好吗？今天天气很好。\n\nTwo."
    speech = [stamped.value async for stamped in tts.speak(text)]
    assert [s.text for s in speech] == ["One.", "Two."]
    (warning,) = skip_warnings(speech[0].skipped)
    assert warning.startswith('Skipped "你好吗?" and 1 more passage: each is written in Chinese script')
    assert not speech[1].skipped
    (first, *rest) = [part async for part in tts.encoded(text, None, None, "wav")]
    assert first.warnings == (warning,) and not any(part.warnings for part in rest)
    with pytest.raises(TextError, match="Chinese script"):
        await anext(tts.speak("你好吗？"))


async def test_a_voice_of_unknown_languages_reads_every_script() -> None:
    assert len(await said(await stage(), "One. 你好吗？")) == 2


# --- speech as a sound file


async def file_of(parts: AsyncGenerator[SoundPart, None]) -> list[bytes]:
    return [part.data async for part in parts]


async def test_a_sound_file_is_streamed_in_one_part_per_sentence() -> None:
    tts = await stage()
    parts = await file_of(tts.encoded("one two three", "half", 2.0, "wav"))
    assert len(parts) == 3
    samples, rate = decode_audio(b"".join(parts))
    assert rate == RATE and len(samples) == 3 * RATE // 4
    np.testing.assert_allclose(samples, 0.125, atol=1e-4)


@pytest.mark.parametrize("sound_format", ["mp3", "opus", "aac", "flac"])
async def test_compressed_formats_contain_the_whole_speech(sound_format: str) -> None:
    parts = await file_of((await stage()).encoded("one two three four", None, None, sound_format))
    samples, rate = decode_audio(b"".join(parts))
    assert all(parts) and len(samples) / rate == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("voice", ["default", "alloy", "shimmer"])
async def test_openai_voice_names_select_the_default_voice(voice: str) -> None:
    tts = await stage(voice="half")
    parts = {name: await file_of(tts.encoded("one", name, None, "wav")) for name in (voice, None, "half")}
    assert parts[voice] == parts[None] == parts["half"]


async def test_a_voice_of_the_engine_with_an_openai_name_is_used() -> None:
    tts = await stage(engine=f"{__name__}:Named")
    samples = {name: decode_audio(b"".join(await file_of(tts.encoded("one", name, None, "wav"))))[0] for name in NAMES}
    assert [round(float(samples[name][0]), 2) for name in NAMES] == [0.25, 0.12, 0.25]
    anything = await stage(engine=f"{__name__}:Anything")  # its server may know any name
    with pytest.raises(InputError, match="no voice 'alloy'"):
        await anext(anything.encoded("one", "alloy", None, "wav"))
    assert await file_of(anything.encoded("one", "default", None, "wav"))


async def test_voices_report_which_ones_are_installed() -> None:
    ready = {"ready": True, "fetch_mb": 0.0}
    assert await (await stage()).voices() == [{"name": "plain", **ready}, {"name": "half", **ready}]
    tts = await stage(engine=f"{__name__}:Downloading")
    assert await tts.voices() == [{"name": "plain", **ready}, {"name": "half", "ready": False, "fetch_mb": 7.9}]


async def test_a_voice_is_downloaded_at_its_first_use_while_others_speak() -> None:
    tts = await stage(engine=f"{__name__}:Downloading")
    first = asyncio.create_task(level(tts, voice="half"))
    await asyncio.to_thread(tts.engine.fetching.wait, 30)
    assert await level(tts) == 0.25 and not first.done()
    tts.engine.gate.set()
    assert await first == await level(tts, voice="half") == 0.125
    assert tts.engine.fetched == ["half"]
    assert [voice["ready"] for voice in await tts.voices()] == [True, True]


async def test_the_call_of_speak_itself_runs_on_the_compute_thread() -> None:
    """It may load a voice or parse a long text."""
    tts = await stage(engine=f"{__name__}:Eager")
    stamped = await anext(tts.speak("one"))
    assert tts.engine.began.startswith("TTS") and stamped.timings[0].compute_s >= 0.05


async def test_an_unknown_voice_or_format_is_refused_before_the_first_byte() -> None:
    tts = await stage()
    with pytest.raises(InputError, match="no voice 'nobody'"):
        await anext(tts.encoded("one", "nobody", None, "wav"))
    with pytest.raises(AudioError, match="no audio format 'midi'"):
        await anext(tts.encoded("one", None, None, "midi"))


async def test_the_first_sentence_of_a_text_does_not_wait_for_later_ones_of_other_texts() -> None:
    tts = await stage(engine=f"{__name__}:Noted")
    long = [asyncio.create_task(said(tts, text)) for text in ("a1 a2 a3", "b1 b2 b3", "c1 c2 c3")]
    await asyncio.to_thread(tts.engine.reached.wait, 30)  # a second sentence is computed; two wait
    late = asyncio.create_task(said(tts, "d1"))
    left = asyncio.create_task(said(tts, "e1"))
    await asyncio.sleep(0.05)
    left.cancel()
    tts.engine.gate.set()
    await asyncio.gather(*long, late)
    order = tts.engine.order
    assert sorted(order[:3]) == ["a1", "b1", "c1"] and order[4] == "d1" and len(order) == 10 and "e1" not in order


async def test_new_texts_do_not_hold_up_a_text_whose_speech_has_run_out(monkeypatch) -> None:
    clock, ends = SimpleNamespace(now_s=100.0), list[float]()
    turn = Turns.turn

    def noted(turns: Turns, end_s: float) -> Any:
        ends.append(end_s)
        return turn(turns, end_s)

    monkeypatch.setattr(Turns, "turn", noted)
    monkeypatch.setattr("deployments.tts.time.perf_counter", lambda: clock.now_s)
    tts = await stage(engine=f"{__name__}:Loud")
    speaking = tts.speak("one two")
    first = (await anext(speaking)).value
    clock.now_s += 2 * first.duration_s  # it is silent for as long as the sentence was
    await anext(speaking)
    await anext(tts.speak("new"))
    assert ends == [100.0, 100.0 + first.duration_s, clock.now_s] and ends[1] < ends[2]
