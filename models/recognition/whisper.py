"""Whisper as a recogniser: from a Hugging Face folder with a decoder, on a CPU or CUDA. Knows nothing of Ray or HTTP.

Encoder and decoder are transformers' classes; windows, the decoding loop and the guards are ours. Nothing is decoded
where nothing sounds, since Whisper makes up words for silence; what it makes up elsewhere is found by its own doubts
(Radford et al. 2022, section 4.5), by its going round in circles, and by words that stand where nothing sounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperModel

from models.errors import ConfigError, InputError, WeightsError
from models.features import STEP_SAMPLES, STEPS_PER_S, WEIGHT_FILES, WhisperFeatures, check_samples
from models.recognition.base import RecognizedSegment, Task, Transcript
from models.recognition.decoding import Decoded, Rules, TokenSpan, compression_ratio, decode, token_spans
from models.recognition.vocabulary import Vocabulary, read_vocabulary
from models.speech.activity import ActivityDetector, Spans
from models.speech.mel import log_mel
from models.types import WHISPER_HZ, Float32
from models.weights.loading import build_module, find_weights, load_state_dict, read_json

FOLDER = "weights/whisper-tiny.en"
CPU_CONTEXT_S = 12.0  # of a short recording: as few words wrong as with 30 s, in a third of the time (benchmarks)
SPARE_S, WHOLE_S = 4.0, 2.0  # of silence behind a shorter context's sound; contexts are whole multiples of the second
LEAD_S = 0.2  # of what stands before a sound that a window begins with
NEAR_S = 0.3  # words this far from any sound are made up: Whisper's times are about that exact
LEAST_STEP_S = 1.0  # that a window moves on by
TOKENS_A_S, TOKENS_MORE = 14, 24  # nobody says more: fast speech has some 8 tokens a second, with its times
DOUBTFUL_LOGPROB, SILENT = (
    -1.0,
    0.6,
)  # below, and above, which a window is doubtful, and is silent: Whisper's own bounds
HOPELESS_LOGPROB, SURELY_SILENT = -1.5, 0.85  # each alone: hum gets 0.9, beeps get -2.6, speech in noise 0.1 and -0.9
MISSED_S = 0.6  # of sound behind the last words: it is heard again, from there
MOST_COMPRESSION = 2.4
MULTILINGUAL_VOCABULARY = 51_865  # of the smallest multilingual Whisper; English-only ones have one token less


class WhisperRecognizer:
    """A `Recognizer`. Results do not depend on chance: what is drawn is drawn with a fixed seed."""

    def __init__(
        self,
        model: WhisperModel,
        vocabulary: Vocabulary,
        rules: Rules,
        multilingual: bool,
        temperatures: Sequence[float] = (0.0,),
        context_s: float | None = None,
    ) -> None:
        self.model, self.vocabulary, self.rules, self.multilingual = model, vocabulary, rules, multilingual
        self.temperatures = tuple(temperatures)
        self.shortest_s = context_s
        self._encoders = WhisperFeatures(model.encoder)
        self.context_samples: int = model.config.max_source_positions * STEP_SAMPLES  # 30 s
        self.longest: int = model.config.max_target_positions // 2  # tokens of one window

    @classmethod
    def load(
        cls,
        weights: Path | str = FOLDER,
        device: Any = "cpu",
        dtype: str | None = None,
        threads: int | None = None,
        temperatures: Sequence[float] = (0.0, 0.4, 0.8),
        context_s: float | None = None,
    ) -> WhisperRecognizer:
        """Read `config.json`, `model.safetensors` or `pytorch_model.bin`, and the tokenizer's files of a folder.

        dtype: float32 on a CPU and float16 elsewhere, unless said otherwise. threads: torch's, of the whole process;
        None leaves them. temperatures: how a doubtful window is tried again; one alone tries once. context_s: the least
        that the encoder hears at once, silence behind a short recording included; by default 12 on a CPU and 30
        elsewhere, where it costs nothing. Raises WeightsError, ConfigError.
        """
        if not temperatures:
            raise ConfigError("temperatures is empty.", "Give at least [0.0].")
        if threads is not None:
            torch.set_num_threads(threads)
        folder = Path(weights)
        config = WhisperConfig.from_dict(read_json(folder / "config.json"))
        config._attn_implementation = "sdpa"
        path = find_weights(folder, WEIGHT_FILES)
        state = _keys(load_state_dict(path, wrappers=()), path)
        vocabulary = read_vocabulary(folder)
        if vocabulary.size > config.vocab_size:
            raise WeightsError(
                f"{folder}: the tokenizer has {vocabulary.size} tokens, the network {config.vocab_size}.",
                "Check that the weights and the tokenizer belong together.",
            )
        on_cpu = torch.device(device).type == "cpu"
        kind = getattr(torch, dtype or ("float32" if on_cpu else "float16"))
        context_s = CPU_CONTEXT_S if context_s is None and on_cpu else context_s
        model = build_module(lambda: WhisperModel(config), state, path, device, kind)
        made = folder / "generation_config.json"
        hints = {**config.to_dict(), **(read_json(made) if made.is_file() else {})}
        multilingual = hints.get("is_multilingual", config.vocab_size >= MULTILINGUAL_VOCABULARY)
        return cls(model, vocabulary, _rules(vocabulary, hints), bool(multilingual), temperatures, context_s)

    def transcribe(self, samples_16khz: Float32, language: str | None = None, task: Task = "transcribe") -> Transcript:
        """See `Recognizer`. An English-only Whisper knows `en` and `transcribe` alone."""
        samples = check_samples(samples_16khz).float().cpu()
        self._check(language, task)
        with torch.inference_mode():
            return self._transcribe(samples, language, task)

    def _transcribe(self, samples: torch.Tensor, language: str | None, task: str) -> Transcript:
        duration_s = len(samples) / WHISPER_HZ
        sounds = ActivityDetector().from_sound(samples.numpy(), WHISPER_HZ)
        segments: list[RecognizedSegment] = []
        raw, at_s = "", 0.0
        language = language or (None if self.multilingual else "en")
        while (start_s := _next_sound(sounds, at_s)) is not None:
            states = self._encoded(samples, start_s)
            language = language or self._language(states)
            window_s = min(self.context_samples / WHISPER_HZ, duration_s - start_s)
            sounding_s = _sounding(sounds, start_s, start_s + window_s)
            heard = self._window(states, self._prompt(language, task), sounding_s)
            pieces = token_spans(heard.tokens, self.rules.first_timestamp, window_s) if heard else []
            at_s, pieces = self._follow(pieces, start_s, window_s, sounds)
            for piece in pieces:
                if heard and _sounding(sounds, start_s + piece.start_s - NEAR_S, start_s + piece.end_s + NEAR_S) > 0:
                    text = self.vocabulary.text(piece.tokens)
                    raw += text
                    segments += _segment(text, piece, start_s, heard)
        return Transcript(raw.strip(), language or "", duration_s, tuple(segments))

    def _check(self, language: str | None, task: str) -> None:
        if task not in self.vocabulary.tasks:
            raise InputError(f"There is no task {task!r}.", f"Use {' or '.join(self.vocabulary.tasks)}.")
        if not self.multilingual and (language not in (None, "en") or task != "transcribe"):
            raise InputError(
                "This Whisper knows English alone.", "Leave language and task out, or use another Whisper."
            )
        if language is not None and language not in self.vocabulary.languages:
            known = ", ".join(sorted(self.vocabulary.languages))
            raise InputError(f"There is no language {language!r}.", f"Use one of {known}.")

    def _prompt(self, language: str, task: str) -> list[int]:
        words = self.vocabulary
        return [words.start, words.languages[language], words.tasks[task]] if self.multilingual else [words.start]

    def _encoded(self, samples: torch.Tensor, start_s: float) -> torch.Tensor:
        """The states `(1, steps, width)` of a context from `start_s`, silent past the end of the sound."""
        first = round(start_s * WHISPER_HZ)
        steps = self._steps((len(samples) - first) / WHISPER_HZ)
        window = samples.new_zeros((1, steps * STEP_SAMPLES))
        heard = samples[first : first + steps * STEP_SAMPLES]
        window[0, : len(heard)] = heard
        weight = self.model.encoder.conv1.weight
        mel = log_mel(window.to(weight.device), self.model.config.num_mel_bins).to(weight.dtype)
        states: torch.Tensor = self._encoders.encoder_for(steps)(mel).last_hidden_state
        return states

    def _steps(self, left_s: float) -> int:
        """How much the encoder hears at once, in its steps: 30 s, or for what is shorter somewhat more than it."""
        full: int = self.model.config.max_source_positions
        if self.shortest_s is None:
            return full
        needed_s = math.ceil(max(self.shortest_s, left_s + SPARE_S) / WHOLE_S) * WHOLE_S
        return min(full, round(needed_s * STEPS_PER_S))

    def _language(self, states: torch.Tensor) -> str:
        """The likeliest language of a window."""
        start = torch.tensor([[self.vocabulary.start]], device=states.device)
        hidden = self.model.decoder(input_ids=start, encoder_hidden_states=states, use_cache=False).last_hidden_state
        scores = self.model.decoder.embed_tokens.weight @ hidden[0, -1]
        return max(self.vocabulary.languages, key=lambda code: float(scores[self.vocabulary.languages[code]]))

    def _window(self, states: torch.Tensor, prompt: list[int], sounding_s: float) -> Decoded | None:
        """What a window says; None for nothing. A doubtful answer is tried again, warmer, and the best taken."""
        limit = min(self.longest, TOKENS_MORE + int(TOKENS_A_S * sounding_s))
        tries: list[Decoded] = []
        for temperature in self.temperatures:
            heard = decode(
                self.model.decoder, states, prompt, self.rules, limit, self.vocabulary.no_speech, temperature
            )
            if heard.no_speech > (SILENT if heard.logprob < DOUBTFUL_LOGPROB else SURELY_SILENT):
                return None
            tries.append(heard)
            if heard.logprob >= DOUBTFUL_LOGPROB and not self._circles(heard):
                return heard
        best = max(tries, key=lambda heard: (not self._circles(heard), heard.logprob))
        return best if best.logprob > HOPELESS_LOGPROB else None

    def _circles(self, heard: Decoded) -> bool:
        return heard.looped or compression_ratio(self.vocabulary.text(heard.tokens)) > MOST_COMPRESSION

    def _follow(
        self, pieces: list[TokenSpan], start_s: float, window_s: float, sounds: Spans
    ) -> tuple[float, list[TokenSpan]]:
        """Where to go on, and which pieces stand.

        What a full window cuts off is heard again, whole, in the next one; so is what sounds behind the last words.
        """
        end_s = start_s + window_s
        closed = [piece for piece in pieces if piece.closed]
        if not closed or closed[-1].end_s < LEAST_STEP_S:
            return end_s, pieces
        last_s = start_s + closed[-1].end_s
        is_full = round(window_s * WHISPER_HZ) == self.context_samples
        missed = len(closed) == len(pieces) and _sounding(sounds, last_s + NEAR_S, end_s) > MISSED_S
        return (last_s, closed) if missed or (is_full and len(closed) < len(pieces)) else (end_s, pieces)


def _keys(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """A whole Whisper's tensors under `WhisperModel`'s own keys. Raises WeightsError for an encoder alone."""
    bare = {key.removeprefix("model."): value for key, value in state.items() if key != "proj_out.weight"}  # it is tied
    if not any(key.startswith("decoder.") for key in bare):
        raise WeightsError(
            f"{path} holds a Whisper encoder without its decoder.",
            "Name a whole Whisper: `warmtalk fetch-weights --only whisper-tiny.en` brings one.",
        )
    return bare


def _rules(vocabulary: Vocabulary, hints: dict[str, Any]) -> Rules:
    """hints: generation_config.json over config.json; older folders have their lists in the latter."""
    never = {*(hints.get("suppress_tokens") or ()), *vocabulary.silent} - {-1}
    first = hints.get("begin_suppress_tokens") or ()
    return Rules(vocabulary.end, vocabulary.first_timestamp, tuple(sorted(never)), tuple(first))


def _next_sound(sounds: Spans, at_s: float) -> float | None:
    """Where the next window begins: a little before the first sound that is not over at `at_s`."""
    left = sounds[sounds[:, 1] > at_s + 1e-6]
    return max(at_s, float(left[0, 0]) - LEAD_S) if len(left) else None


def _sounding(sounds: Spans, start_s: float, end_s: float) -> float:
    """Seconds between the two that sound."""
    inside: float = np.clip(np.minimum(sounds[:, 1], end_s) - np.maximum(sounds[:, 0], start_s), 0, None).sum()
    return float(inside)


def _segment(text: str, piece: TokenSpan, start_s: float, heard: Decoded) -> list[RecognizedSegment]:
    """None where it says nothing but spaces."""
    if not text.strip():
        return []
    times = (round(start_s + piece.start_s, 3), round(start_s + piece.end_s, 3))
    return [RecognizedSegment(text.strip(), *times, round(heard.logprob, 4), round(heard.no_speech, 4))]
