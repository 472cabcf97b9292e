"""Three speech synthesisers with phoneme times: hibari, espeak-ng and flite.

Each returns `Spoken`: sound at 16 kHz and timed phonemes, which are keys of `models.speech.visemes.VISEMES` or `_`.
hibari is the product's default voice; espeak-ng adds many others; flite is never used in training and tests an unseen
voice.
espeak-ng (GPL-3.0, `pip install espeakng-loader`) and flite (`apt-get install flite`) are tools of training and
benchmarks, not dependencies of the product.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from models.errors import ConfigError
from models.speech.visemes import SILENCE, viseme_of
from models.tts.hibari import HibariTTS
from models.types import WHISPER_HZ, Phoneme

Float32 = npt.NDArray[np.float32]

PCM_SCALE = np.float32(1 / 32768)
FIRST_OF_TWO = 0.55  # share of a diphthong's duration that its first vowel takes

ESPEAK_VOICES = (
    "m1",
    "m2",
    "m3",
    "m6",
    "m7",
    "m8",
    "f1",
    "f2",
    "f5",
    "Andy",
    "Annie",
    "Alex",
    "Alicia",
    "Andrea",
    "Denis",
    "Gene",
    "Hugo",
    "Lee",
    "linda",
    "Michael",
    "Mike",
    "Nguyen",
    "adam",
    "belinda",
    "benjamin",
    "boris",
    "ed",
    "edward",
    "grandma",
    "grandpa",
    "iven",
    "klatt",
    "klatt2",
    "klatt4",
    "max",
    "michel",
    "norbert",
    "paul",
    "quincy",
    "rob",
    "robert",
    "shelby",
    "steph",
    "travis",
    "victor",
    "zac",
    "david",
)
ESPEAK_HELD_OUT = ("m4", "m5", "f3", "f4", "klatt3", "Marco", "john", "announcer")  # never trained on
ESPEAK_ACCENTS = ("en-us", "en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbcwmd")
ESPEAK_STOPS = "pbtdkɡ"
ESPEAK_CLOSURE_S = 0.045  # espeak-ng reports a stop at its burst; the closure before it is this long
FLITE_VOICES = ("slt", "rms", "awb", "kal16")
# CMU's phone set (flite's cmulex) as keys of VISEMES
ARPABET = {
    **{"aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "axr": "ɚ", "ay": "aɪ", "b": "b", "ch": "tʃ"},
    **{"d": "d", "dh": "ð", "eh": "ɛ", "er": "ɜ", "ey": "eɪ", "f": "f", "g": "ɡ", "hh": "h", "ih": "ɪ", "iy": "i"},
    **{"jh": "dʒ", "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ"},
    **{
        "s": "s",
        "sh": "ʃ",
        "t": "t",
        "th": "θ",
        "uh": "ʊ",
        "uw": "u",
        "v": "v",
        "w": "w",
        "y": "j",
        "z": "z",
        "zh": "ʒ",
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """samples: float32 mono at 16 kHz. phonemes: in order; with the silences they cover the whole length."""

    samples: Float32
    phonemes: tuple[Phoneme, ...]


def split_letters(letters: str, start_s: float, end_s: float) -> list[Phoneme]:
    """A timed sound of one or two IPA letters as phonemes. A sound without a viseme becomes silence."""
    known = [v for v in map(viseme_of, letters) if v is not None]
    if not known:
        return [Phoneme(SILENCE, start_s, end_s)]
    if len(known) == 1:
        return [Phoneme(known[0], start_s, end_s)]
    middle = start_s + FIRST_OF_TWO * (end_s - start_s)
    return [Phoneme(known[0], start_s, middle), Phoneme(known[-1], middle, end_s)]


class HibariVoice:
    """The product's TTS engine, with the times of its phonemes."""

    def __init__(self) -> None:
        self.engine = HibariTTS.load()

    def speak(self, text: str, speed: float = 1.0) -> Spoken:
        """All sentences of `text` as the product speaks them, with pauses."""
        sound, phonemes, time_s = [], list[Phoneme](), 0.0
        for speech in self.engine.speak(text, speed=speed):
            sound.append(speech.samples)
            for heard in speech.phonemes:
                symbol = viseme_of(heard.symbol) or SILENCE
                phonemes.append(Phoneme(symbol, time_s + heard.start_s, time_s + heard.end_s))
            time_s += speech.duration_s
        return Spoken(to_whisper_rate(np.concatenate(sound), self.engine.sample_rate_hz), tuple(phonemes))


class _EspeakId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _EspeakEvent(ctypes.Structure):  # espeak_EVENT of speak_lib.h
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EspeakId),
    )


ESPEAK_SYNCHRONOUS, ESPEAK_PHONEME_EVENTS, ESPEAK_UTF8, ESPEAK_PHONEME = 2, 1 | 2, 1, 7  # of speak_lib.h
ESPEAK_RATE, ESPEAK_PITCH = 1, 3
_EspeakCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
)


class EspeakVoice:
    """espeak-ng through its C library. One per process, because the library has global state."""

    def __init__(self) -> None:
        try:
            import espeakng_loader  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ModuleNotFoundError as error:
            raise ConfigError("espeak-ng is not installed.", "Run: pip install espeakng-loader (GPL-3.0).") from error

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self.rate_hz = self.library.espeak_Initialize(ESPEAK_SYNCHRONOUS, 0, data, ESPEAK_PHONEME_EVENTS)
        self._sound: list[npt.NDArray[np.int16]] = []
        self._events: list[tuple[float, str]] = []
        self._callback = _EspeakCallback(self._receive)  # keep a reference: the library stores only the pointer
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, sound: Any, count: int, events: Any) -> int:
        if sound and count:
            self._sound.append(np.ctypeslib.as_array(sound, (count,)).copy())
        index = 0
        while events[index].type:
            if events[index].type == ESPEAK_PHONEME:
                letters = bytes(events[index].id.string).split(b"\0")[0].decode(errors="ignore")
                self._events.append((events[index].audio_position_ms / 1000, letters))
            index += 1
        return 0

    def speak(self, text: str, voice: str = "en-us", words_a_minute: int = 165, pitch: int = 50) -> Spoken:
        """voice: an accent with or without a variant, such as `en-us+m3`. Raises ValueError if it does not exist."""
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._sound, self._events = [], []
        self.library.espeak_SetParameter(ESPEAK_RATE, words_a_minute, 0)
        self.library.espeak_SetParameter(ESPEAK_PITCH, pitch, 0)
        data = text.encode()
        self.library.espeak_Synth(data, len(data) + 1, 0, 0, 0, ESPEAK_UTF8, None, None)
        self.library.espeak_Synchronize()
        sound = np.concatenate(self._sound).astype(np.float32) * PCM_SCALE
        phonemes = espeak_phonemes(self._events, len(sound) / self.rate_hz)
        return Spoken(to_whisper_rate(sound, self.rate_hz), phonemes)


def espeak_phonemes(events: list[tuple[float, str]], end_s: float) -> tuple[Phoneme, ...]:
    """espeak-ng's phoneme events (start in s, IPA letters) → phonemes; stops begin at their closure."""
    starts = [max(t - ESPEAK_CLOSURE_S, 0.0) if letters[:1] in tuple(ESPEAK_STOPS) else t for t, letters in events]
    starts = list(np.maximum.accumulate([*starts, end_s])) if events else [end_s]
    phonemes = [Phoneme(SILENCE, 0.0, float(starts[0]))]
    for (_, letters), begin_s, until_s in zip(events, starts[:-1], starts[1:], strict=True):
        phonemes += split_letters(letters, float(begin_s), float(until_s))
    return tuple(phoneme for phoneme in phonemes if phoneme.end_s > phoneme.start_s)


class FliteVoice:
    """CMU flite through its command line: statistical voices from recordings, with phone durations."""

    def speak(self, text: str, voice: str = "slt") -> Spoken:
        """Raises FileNotFoundError if the command is missing, ValueError for an unknown phone."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            command = ["flite", "-voice", voice, "-t", text, "-o", str(path), "-psdur"]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            with wave.open(str(path)) as file:
                rate_hz = file.getframerate()
                sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) * PCM_SCALE
        return Spoken(to_whisper_rate(sound, rate_hz), flite_phonemes(printed, len(sound) / rate_hz))


def flite_phonemes(printed: str, end_s: float) -> tuple[Phoneme, ...]:
    """flite's `-psdur` line (`phone:end`) → phonemes."""
    phonemes: list[Phoneme] = []
    time_s = 0.0
    for item in printed.split():
        phone, _, until = item.partition(":")
        phonemes += split_letters("" if phone == "pau" else ARPABET[phone], time_s, float(until))
        time_s = float(until)
    return (*phonemes, Phoneme(SILENCE, time_s, max(end_s, time_s)))


def to_whisper_rate(sound: Float32, rate_hz: float) -> Float32:
    """Resample to 16 kHz. Another `rate_hz` than the true one changes pace and pitch."""
    return np.asarray(soxr.resample(sound, rate_hz, WHISPER_HZ), np.float32)


@functools.cache
def hibari() -> HibariVoice:
    """The hibari of this process."""
    return HibariVoice()


@functools.cache
def espeak() -> EspeakVoice:
    """The espeak-ng of this process."""
    return EspeakVoice()
