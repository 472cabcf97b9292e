"""The default engine: hibari-tts, a small neural English voice at 24 kHz whose weights are in its wheel.

It also gives the time of each phoneme, which training and tests use as ground truth for lip movement.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError, TextError, WeightsError
from models.speech.readable import check_text, group_skipped
from models.speech.text import MAX_SENTENCE_CHARS, split_sentences
from models.tts.base import ENGINE_MAX_CHARS, check_speed, check_voice
from models.tts.streaming import FADE_S, LAST_PAUSE_S, LEAD_S, pause_after, sound_bounds
from models.types import Float32, Phoneme, SkippedText, Speech, Word

if TYPE_CHECKING:
    import onnxruntime

SAMPLE_RATE_HZ = 24_000
SPEEDS = (0.5, 2.0)  # supported range (hibari-tts, model card)
MAX_PHONEMES = 400  # longest input of the acoustic model (hibari.tts.MAX_PHONEMES)

DURATION_NODE = "/Clip_output_0"  # in the graph of hibari-tts 0.2.1: float32 (1, ids), duration of each id in steps
STEP_S = 0.025  # one duration step: two acoustic frames of 300 samples at 24 kHz
# The audio is ahead of the durations, as in the Kokoro models that hibari is distilled from. On 52 sentences at
# speeds 0.8, 1.0 and 1.25, labels of sibilants and vowels fit the spectrum best when moved 50 to 60 ms earlier.
DURATION_LAG_S = 0.055

DIPHTHONGS = {
    "A": "eɪ",
    "I": "aɪ",
    "O": "oʊ",
    "Q": "əʊ",
    "W": "aʊ",
    "Y": "ɔɪ",
}  # the voice's alphabet has one letter per diphthong
LETTERS = {"T": "ɾ"}  # the voice's letter for the flap in "butter"
DIPHTHONG_SPLIT = 0.55  # share of a diphthong's duration for its first vowel
LONG_NUMBER = re.compile(r"\d(?:,?\d){24,}")  # the front end fails for numbers with more than 36 digits
UNREADABLE = "cannot be read by the voice"  # predicate of a sentence, see SkippedText
SILENT_GAP_S = 0.09  # a space or punctuation mark this long is a pause


def _digits(number: re.Match[str]) -> str:
    return " ".join(number.group().replace(",", ""))


class HibariTTS:
    """A `TTSEngine`. hibari downloads voices other than the built-in one at first use (7.9 MB each) and caches them."""

    sample_rate_hz = SAMPLE_RATE_HZ
    language = "en"

    def __init__(self, voice: str, threads: int, max_chars: int, max_sentence_chars: int) -> None:
        self._threads = threads
        self._max_chars = max_chars
        self._max_sentence_chars = max_sentence_chars
        self._default = voice
        self._voices: dict[str, _Voice] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        voice: str | None = None,
        threads: int = 1,
        max_chars: int = ENGINE_MAX_CHARS,
        max_sentence_chars: int = MAX_SENTENCE_CHARS,
    ) -> HibariTTS:
        """Load a voice and synthesise once, so that the first request is fast.

        threads: ONNX Runtime threads; one is enough. max_chars: longest text. max_sentence_chars: longest text that is
        synthesised at once.

        Raises ConfigError: the voice is unknown. WeightsError: it cannot be downloaded or loaded.
        """
        from hibari.voices import DEFAULT, VOICES

        if voice is not None and voice not in VOICES:
            raise ConfigError(f"There is no voice {voice!r}.", f"Use one of {', '.join(VOICES)}.")
        engine = cls(voice or DEFAULT, threads, max_chars, max_sentence_chars)
        list(engine.speak("Warm up, zyqva."))  # an unknown word also loads the network that predicts pronunciation
        return engine

    def voices(self) -> list[str]:
        """Names that `speak` accepts; the first is the default."""
        from hibari.voices import VOICES

        return [self._default, *(name for name in VOICES if name != self._default)]

    def missing_voices(self) -> dict[str, int]:
        """Voices that `speak` would download first, with their size in bytes. Loads and downloads nothing."""
        from hibari.voices import VOICES, voice_path

        missing = {}
        for name, facts in VOICES.items():
            try:
                voice_path(name, download_missing=False)
            except FileNotFoundError:
                missing[name] = int(facts["bytes"])
        return missing

    def fetch_voice(self, voice: str) -> None:
        """Download a voice if it is missing, without loading it. Raises WeightsError."""
        from hibari.voices import voice_path

        try:
            voice_path(voice)
        except (OSError, RuntimeError) as error:
            raise _voice_error(voice, error) from error

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        """Yield one Speech per sentence as soon as it is synthesised, the final one with `last=True`.

        The same text, voice and speed give the same samples. The pause before the next sentence is silence at the end.

        Raises TextError (the text cannot be spoken) and InputError (voice or speed) at the call, not at the first item.
        """
        check_voice(voice, self.voices())
        check_speed(speed, *SPEEDS)
        model = self._voice(voice or self._default)
        sentences = split_sentences(check_text(text, self._max_chars), self._max_sentence_chars)
        skipped: list[SkippedText] = []
        pieces = self._pieces(model, sentences, skipped)
        first = next(pieces, None)
        if first is None:
            raise TextError("The text contains nothing that the voice can speak.", "Send at least one word.")
        return self._speak(model, first, pieces, speed, skipped)

    @staticmethod
    def _pieces(model: _Voice, sentences: list[str], skipped: list[SkippedText]) -> Iterator[tuple[str, str]]:
        """(text, phonemes) of each sentence with sound. One with too many phonemes is split at its middle space.

        Sentences that the voice cannot read are added to `skipped`. Raises TextError if nothing can be read.
        """
        waiting = sentences[::-1]
        first = True
        while waiting:
            text = waiting.pop()
            try:
                phonemes = model.phonemise(text)
            except TextError:
                if not waiting and first:
                    raise
                skipped.append(SkippedText.of(text, UNREADABLE))
                continue
            if len(phonemes) > MAX_PHONEMES and " " in text:
                middle = min((i for i, c in enumerate(text) if c == " "), key=lambda i: abs(i - len(text) // 2))
                waiting += [text[middle + 1 :], text[:middle]]
            elif any(c.isalpha() for c in phonemes):
                first = False
                yield text, phonemes[:MAX_PHONEMES]

    @staticmethod
    def _speak(
        model: _Voice, first: tuple[str, str], rest: Iterator[tuple[str, str]], speed: float, skipped: list[SkippedText]
    ) -> Iterator[Speech]:
        piece: tuple[str, str] | None = first
        while piece is not None:
            text, phonemes = piece
            piece = next(rest, None)
            samples, times = model.synthesise(phonemes, speed, seed=zlib.crc32(text.encode()))
            pause_s = LAST_PAUSE_S if piece is None else pause_after(text) / speed
            samples, times = trim(samples, times, pause_s if piece is None else max(pause_s - LEAD_S, 0.0))
            words = word_times(text, phonemes, times, model.phonemise)
            left_out = group_skipped(skipped)
            skipped.clear()
            yield Speech(samples, SAMPLE_RATE_HZ, text, piece is None, phonemes=times, words=words, skipped=left_out)

    def _voice(self, name: str) -> _Voice:
        with self._lock:
            if name not in self._voices:
                self._voices[name] = _Voice(name, self._threads)
            return self._voices[name]


class _Voice:
    """One hibari model, with phoneme durations if its graph has them."""

    def __init__(self, name: str, threads: int) -> None:
        from hibari import Hibari

        try:
            self._hibari = Hibari(voice=name, threads=threads)
        except (OSError, RuntimeError) as error:
            raise _voice_error(name, error) from error
        self._session: onnxruntime.InferenceSession = self._hibari.sess
        with_durations = _session_with_output(Path(self._hibari.model_path).read_bytes(), DURATION_NODE, threads)
        self.has_durations = with_durations is not None
        if with_durations is not None:
            self._session = self._hibari.sess = with_durations

    def phonemise(self, text: str) -> str:
        """Phonemes of one sentence in the voice's alphabet. Raises TextError if the voice's front end fails."""
        try:
            return str(self._hibari.g2p(LONG_NUMBER.sub(_digits, text)))
        except (ArithmeticError, LookupError, ValueError) as error:
            raise TextError(f"The voice cannot read {text[:40]!r}.", "Use other words.") from error

    def synthesise(self, phonemes: str, speed: float, seed: int = 0) -> tuple[Float32, tuple[Phoneme, ...]]:
        """Phonemes → float32 (n,) at 24 kHz in [-1, 1] with about 0.3 s of silence at each end, and phoneme times."""
        from hibari import dsp

        ids = self._hibari.ids(phonemes)
        feeds = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
        outputs: list[npt.NDArray[Any]] = self._session.run(None, feeds)
        spectra = [output[0] for output in outputs[:6]]  # 5 × (601, frames), f0 (frames,)
        samples = np.asarray(dsp.synth(*spectra, np.random.default_rng(seed)), np.float32)
        samples = np.clip(np.nan_to_num(samples), -1.0, 1.0)
        if not self.has_durations:
            return samples, ()
        steps = outputs[-1].reshape(-1)  # (ids,); the first and the last are pads
        if len(steps) != len(ids) or abs(steps.sum() * STEP_S - len(samples) / SAMPLE_RATE_HZ) > STEP_S:
            return samples, ()
        known = [c for c in phonemes if c in self._hibari.vocab]
        return samples, phoneme_times(["^", *known, "$"], [float(n) * STEP_S for n in steps])


def _voice_error(voice: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"The voice {voice!r} could not be loaded: {str(error).rstrip('.')}.",
        "Check the connection, or use the voice 'heart', which is installed with hibari-tts.",
    )


def phoneme_times(symbols: list[str], durations_s: list[float]) -> tuple[Phoneme, ...]:
    """Phonemes in IPA with gapless times in seconds, moved earlier by DURATION_LAG_S to match the audio.

    symbols: the voice's letters; `^` and `$` are the pads. The duration of a stress mark is added to the next sound,
    that of a length mark or short space to the previous one. A diphthong becomes two vowels; pads and long gaps become
    `_`.
    """
    spans: list[tuple[str, float, float]] = []
    now = 0.0
    stressed_from: float | None = None
    for symbol, duration_s in zip(symbols, durations_s, strict=True):
        start, now = now, now + duration_s
        if symbol in "ˈˌ":
            stressed_from = start if stressed_from is None else stressed_from
            continue
        start, stressed_from = (start if stressed_from is None else stressed_from), None
        if symbol in DIPHTHONGS:
            middle = start + DIPHTHONG_SPLIT * (now - start)
            spans += [(DIPHTHONGS[symbol][0], start, middle), (DIPHTHONGS[symbol][1], middle, now)]
        elif symbol.isalpha() and symbol != "ː":
            spans.append((LETTERS.get(symbol, symbol), start, now))
        elif symbol in "^$" or now - start > SILENT_GAP_S or not spans:
            spans.append(("_", start, now))
        else:
            spans[-1] = (spans[-1][0], spans[-1][1], now)
    last = len(spans) - 1
    return tuple(
        Phoneme(symbol, max(start - DURATION_LAG_S, 0.0), end if i == last else max(end - DURATION_LAG_S, 0.0))
        for i, (symbol, start, end) in enumerate(spans)
    )


def word_times(
    text: str, phonemes: str, times: tuple[Phoneme, ...], phonemise: Callable[[str], str]
) -> tuple[Word, ...]:
    """The time of each written word: from the start of its first phoneme to the end of its last one.

    phonemes: of the whole text in the voice's alphabet, words separated by spaces. times: the phonemes' times after
    `trim`. phonemise: gives the phonemes of one word, to count the spoken words of `1984`, for example. Punctuation
    that stands alone is added to the previous word. Returns () if phonemes cannot be assigned to words.
    """
    tokens, groups = text.split(), phonemes.split(" ")
    read_as = [1] * len(tokens)
    if len(groups) != len(tokens):
        read_as = [len(phonemise(token).split(" ")) for token in tokens]
    sounds = [_sounds(group) for group in groups]
    every = [symbol for group in sounds for symbol in group]
    timed = [phoneme for phoneme in times if phoneme.symbol != "_"]
    symbols = [phoneme.symbol for phoneme in timed]
    cut = next((k for k in range(len(every)) if every[k : k + len(timed)] == symbols), None)  # removed by `trim`
    if sum(read_as) != len(groups) or not timed or cut is None:
        return ()
    words: list[Word] = []
    group, at = 0, -cut
    for token, count in zip(tokens, read_as, strict=True):
        end = at + sum(len(sounds[k]) for k in range(group, group + count))
        spoken = timed[max(at, 0) : max(end, 0)]
        if spoken:
            words.append(Word(token, spoken[0].start_s, spoken[-1].end_s))
        elif words:
            words[-1] = replace(words[-1], text=f"{words[-1].text} {token}")
        group, at = group + count, end
    return tuple(words)


def _sounds(phonemes: str) -> list[str]:
    """The symbols that `phoneme_times` gives for a word in the voice's alphabet."""
    letters = [letter for letter in phonemes if letter.isalpha() and letter not in "ˈˌː"]
    return [symbol for letter in letters for symbol in DIPHTHONGS.get(letter, LETTERS.get(letter, letter))]


def trim(samples: Float32, phonemes: tuple[Phoneme, ...], tail_s: float) -> tuple[Float32, tuple[Phoneme, ...]]:
    """Set the silence at the ends to LEAD_S and `tail_s`, fade the edges, and shift the phonemes accordingly.

    The last phoneme ends with the sound, followed by `_`. The first phoneme begins with the sound or earlier: at half
    speed, the sound begins up to 0.17 s before the first duration.
    """
    begin, end = sound_bounds(samples, SAMPLE_RATE_HZ)
    first = begin - round(LEAD_S * SAMPLE_RATE_HZ)  # negative: zeros are inserted
    stop = end + round(tail_s * SAMPLE_RATE_HZ)
    kept = samples[max(first, 0) : min(stop, len(samples))]
    kept = np.pad(kept, (max(-first, 0), max(stop - len(samples), 0)))
    fade = round(FADE_S * SAMPLE_RATE_HZ)
    ramp = np.sin(np.linspace(0.0, np.pi / 2, fade, dtype=np.float32)) ** 2
    kept[:fade] *= ramp
    kept[-fade:] *= ramp[::-1]
    sound_s = ((begin - first) / SAMPLE_RATE_HZ, (end - first) / SAMPLE_RATE_HZ)
    return kept, _move(phonemes, first / SAMPLE_RATE_HZ, sound_s, len(kept) / SAMPLE_RATE_HZ)


def _move(
    phonemes: tuple[Phoneme, ...], offset_s: float, sound_s: tuple[float, float], duration_s: float
) -> tuple[Phoneme, ...]:
    """Phonemes moved `offset_s` earlier, limited to the sound `sound_s`, with `_` before and after it."""
    if not phonemes:
        return ()
    moved: list[Phoneme] = []
    for phoneme in phonemes:
        start = max(phoneme.start_s - offset_s, 0.0)
        end = min(phoneme.end_s - offset_s, max(sound_s[1], start))
        if phoneme.symbol != "_" and end > start:
            start = start if moved else min(start, sound_s[0])
            if start > (moved[-1].end_s if moved else 0.0):
                moved.append(Phoneme("_", moved[-1].end_s if moved else 0.0, start))
            moved.append(Phoneme(phoneme.symbol, start, end))
    tail_from = moved[-1].end_s if moved else 0.0
    return (*moved, Phoneme("_", tail_from, duration_s)) if duration_s > tail_from else tuple(moved)


def _session_with_output(model: bytes, node: str, threads: int) -> onnxruntime.InferenceSession | None:
    """A session for the model with the internal value `node` as additional last output; None if there is no such value.

    Protobuf merges repeated messages: appending `graph { output { name: node } }` to the file adds the output.
    """
    import onnxruntime

    name = node.encode()
    value_info = bytes([0x0A, len(name)]) + name  # ValueInfoProto.name = field 1
    graph = bytes([0x62, len(value_info)]) + value_info  # GraphProto.output = field 12
    extended = model + bytes([0x3A, len(graph)]) + graph  # ModelProto.graph = field 7
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(extended, options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        return None
