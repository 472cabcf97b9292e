"""Speech recognition with Whisper from a Hugging Face folder, on a CPU or CUDA.

The decoder is a class of transformers; windows, the decoding loop and the checks are ours. Whisper
hallucinates words in silence, so only windows with speech are decoded. Other hallucinations are detected by Whisper's
own probabilities (Radford et al. 2022, section 4.5), by repetition, and by words at times without speech.
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
from models.features import STEP_SAMPLES, STEPS_PER_S, WEIGHT_FILES, check_samples
from models.recognition.base import RecognizedSegment, Task, Transcript
from models.recognition.decoding import Decoded, Rules, TokenSpan, compression_ratio, decode, token_spans
from models.recognition.vocabulary import Vocabulary, read_vocabulary
from models.speech.activity import ActivityDetector, Spans
from models.speech.mel import log_mel
from models.types import WHISPER_HZ, Float32
from models.weights.loading import build_module, find_weights, load_state_dict, read_json
from models.whisper_encoder import WhisperEncoder

FOLDER = "weights/whisper-tiny.en"
# On a CPU, a short recording is encoded with a context of at least 12 s: the same word error rate as with 30 s in a
# third of the time (benchmarks/recognition.py).
CPU_CONTEXT_S = 12.0
TAIL_S = 4.0  # silence that a shorter context has after the audio
CONTEXT_STEP_S = 2.0  # contexts are multiples of this
LEAD_S = 0.2  # audio before the speech that a window begins with
TIME_ERROR_S = 0.3  # error of Whisper's times; words further from any speech are hallucinated
MIN_ADVANCE_S = 1.0  # a window ends at a segment only if that is this far from the window's start
TOKENS_PER_S, EXTRA_TOKENS = 14, 24  # limit of tokens per second of speech; fast speech has 8 per s, with timestamps
# Whisper's own thresholds: below this log probability a result is doubtful, and with this no-speech probability silent.
DOUBTFUL_LOGPROB, NO_SPEECH = -1.0, 0.6
# Sufficient alone, as measured: hum has no-speech 0.9; beeps have log probability -2.6; speech in noise 0.1 and -0.9.
MIN_LOGPROB, NO_SPEECH_SURE = -1.5, 0.85
MAX_UNDECODED_S = 0.6  # with more speech after the last words, the next window starts there
MAX_COMPRESSION = 2.4  # Whisper's own threshold for repetition
MULTILINGUAL_VOCABULARY = 51_865  # of the smallest multilingual Whisper; English-only ones have one token less


class WhisperRecognizer:
    """A `Recognizer`. Deterministic: sampling uses a fixed seed."""

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
        self.min_context_s = context_s
        with torch.device("meta"):
            self._encoder = WhisperEncoder(model.config.to_dict())  # unlike transformers', for contexts of any length
        self._encoder.load_state_dict(model.encoder.state_dict(), assign=True)  # shares the weights
        self.context_samples: int = model.config.max_source_positions * STEP_SAMPLES  # 30 s
        self.max_tokens: int = model.config.max_target_positions // 2  # tokens of one window

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
        """Read `config.json`, `model.safetensors` or `pytorch_model.bin`, and the tokenizer files from a folder.

        dtype: default float32 on a CPU, else float16. threads: torch threads of the whole process; None keeps them.
        temperatures: tried in turn while the result of a window is doubtful. context_s: minimum length of the
        encoder's input, including silence after a short recording; default 12 on a CPU, else 30.

        Raises WeightsError: a file is missing or damaged, or the files do not match. ConfigError: no temperatures.
        """
        if not temperatures:
            raise ConfigError("temperatures is empty.", "Use at least [0.0].")
        if threads is not None:
            torch.set_num_threads(threads)
        folder = Path(weights)
        config = WhisperConfig.from_dict(read_json(folder / "config.json"))
        config._attn_implementation = "sdpa"
        path = find_weights(folder, WEIGHT_FILES)
        state = _strip_prefix(load_state_dict(path, wrappers=()), path)
        vocabulary = read_vocabulary(folder)
        if vocabulary.size > config.vocab_size:
            raise WeightsError(
                f"{folder}: the tokenizer has {vocabulary.size} tokens, the network {config.vocab_size}.",
                "Use weights and tokenizer of the same model.",
            )
        on_cpu = torch.device(device).type == "cpu"
        kind = getattr(torch, dtype or ("float32" if on_cpu else "float16"))
        context_s = CPU_CONTEXT_S if context_s is None and on_cpu else context_s
        model = build_module(lambda: WhisperModel(config), state, path, device, kind)
        generation_path = folder / "generation_config.json"
        hints = {**config.to_dict(), **(read_json(generation_path) if generation_path.is_file() else {})}
        multilingual = hints.get("is_multilingual", config.vocab_size >= MULTILINGUAL_VOCABULARY)
        return cls(model, vocabulary, _rules(vocabulary, hints), bool(multilingual), temperatures, context_s)

    def transcribe(self, samples_16khz: Float32, language: str | None = None, task: Task = "transcribe") -> Transcript:
        """See `Recognizer`. An English-only Whisper supports only `en` and `transcribe`."""
        samples = check_samples(samples_16khz).float().cpu()
        self._check(language, task)
        with torch.inference_mode():
            return self._transcribe(samples, language, task)

    def _transcribe(self, samples: torch.Tensor, language: str | None, task: str) -> Transcript:
        duration_s = len(samples) / WHISPER_HZ
        speech = ActivityDetector().from_sound(samples.numpy(), WHISPER_HZ)
        segments: list[RecognizedSegment] = []
        raw, next_s = "", 0.0
        language = language or (None if self.multilingual else "en")
        while (start_s := _next_window_start(speech, next_s)) is not None:
            states = self._encode(samples, start_s)
            language = language or self._language(states)
            window_s = min(self.context_samples / WHISPER_HZ, duration_s - start_s)
            speech_s = _speech_s(speech, start_s, start_s + window_s)
            decoded = self._window(states, self._prompt(language, task), speech_s)
            spans = token_spans(decoded.tokens, self.rules.first_timestamp, window_s) if decoded else []
            next_s, spans = self._continue_at(spans, start_s, window_s, speech)
            for span in spans:
                begin_s, end_s = start_s + span.start_s - TIME_ERROR_S, start_s + span.end_s + TIME_ERROR_S
                if decoded and _speech_s(speech, begin_s, end_s) > 0:
                    text = self.vocabulary.text(span.tokens)
                    raw += text
                    segments += _segment(text, span, start_s, decoded)
        return Transcript(raw.strip(), language or "", duration_s, tuple(segments))

    def _check(self, language: str | None, task: str) -> None:
        if task not in self.vocabulary.tasks:
            raise InputError(f"There is no task {task!r}.", f"Use {' or '.join(self.vocabulary.tasks)}.")
        if not self.multilingual and (language not in (None, "en") or task != "transcribe"):
            raise InputError(
                "This Whisper supports only English.", "Omit language and task, or use a multilingual Whisper."
            )
        if language is not None and language not in self.vocabulary.languages:
            known = ", ".join(sorted(self.vocabulary.languages))
            raise InputError(f"There is no language {language!r}.", f"Use one of {known}.")

    def _prompt(self, language: str, task: str) -> list[int]:
        words = self.vocabulary
        return [words.start, words.languages[language], words.tasks[task]] if self.multilingual else [words.start]

    def _encode(self, samples: torch.Tensor, start_s: float) -> torch.Tensor:
        """Encoder states `(1, steps, width)` of the context from `start_s`, with zeros after the end of the audio."""
        first = round(start_s * WHISPER_HZ)
        steps = self._context_steps((len(samples) - first) / WHISPER_HZ)
        window = samples.new_zeros((1, steps * STEP_SAMPLES))
        part = samples[first : first + steps * STEP_SAMPLES]
        window[0, : len(part)] = part
        weight = self.model.encoder.conv1.weight
        mel = log_mel(window.to(weight.device), self.model.config.num_mel_bins).to(weight.dtype)
        states: torch.Tensor = self._encoder(mel)
        return states[:, :, -1]

    def _context_steps(self, left_s: float) -> int:
        """Length of the encoder's input in steps, for `left_s` of audio: 30 s, or less for a short recording."""
        full: int = self.model.config.max_source_positions
        if self.min_context_s is None:
            return full
        needed_s = math.ceil(max(self.min_context_s, left_s + TAIL_S) / CONTEXT_STEP_S) * CONTEXT_STEP_S
        return min(full, round(needed_s * STEPS_PER_S))

    def _language(self, states: torch.Tensor) -> str:
        """The most probable language of a window."""
        start = torch.tensor([[self.vocabulary.start]], device=states.device)
        hidden = self.model.decoder(input_ids=start, encoder_hidden_states=states, use_cache=False).last_hidden_state
        scores = self.model.decoder.embed_tokens.weight @ hidden[0, -1]
        return max(self.vocabulary.languages, key=lambda code: float(scores[self.vocabulary.languages[code]]))

    def _window(self, states: torch.Tensor, prompt: list[int], speech_s: float) -> Decoded | None:
        """Decode one window; None if it contains no words.

        A doubtful result is decoded again at the next temperature; the best result is returned.
        """
        limit = min(self.max_tokens, EXTRA_TOKENS + int(TOKENS_PER_S * speech_s))
        tries: list[Decoded] = []
        for temperature in self.temperatures:
            decoded = decode(
                self.model.decoder, states, prompt, self.rules, limit, self.vocabulary.no_speech, temperature
            )
            if decoded.no_speech > (NO_SPEECH if decoded.logprob < DOUBTFUL_LOGPROB else NO_SPEECH_SURE):
                return None
            tries.append(decoded)
            if decoded.logprob >= DOUBTFUL_LOGPROB and not self._is_repetitive(decoded):
                return decoded
        best = max(tries, key=lambda decoded: (not self._is_repetitive(decoded), decoded.logprob))
        return best if best.logprob > MIN_LOGPROB else None

    def _is_repetitive(self, decoded: Decoded) -> bool:
        return decoded.looped or compression_ratio(self.vocabulary.text(decoded.tokens)) > MAX_COMPRESSION

    def _continue_at(
        self, spans: list[TokenSpan], start_s: float, window_s: float, speech: Spans
    ) -> tuple[float, list[TokenSpan]]:
        """The start of the next window, and the spans to keep of this one.

        The next window starts at the last closed span if the end of a full window cuts a sentence, or if there is more
        speech after the last words.
        """
        end_s = start_s + window_s
        closed = [span for span in spans if span.closed]
        if not closed or closed[-1].end_s < MIN_ADVANCE_S:
            return end_s, spans
        last_s = start_s + closed[-1].end_s
        is_full = round(window_s * WHISPER_HZ) == self.context_samples
        missed = len(closed) == len(spans) and _speech_s(speech, last_s + TIME_ERROR_S, end_s) > MAX_UNDECODED_S
        return (last_s, closed) if missed or (is_full and len(closed) < len(spans)) else (end_s, spans)


def _strip_prefix(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a whole Whisper under the keys of `WhisperModel`. Raises WeightsError for an encoder only."""
    # proj_out is tied to the embedding
    bare = {key.removeprefix("model."): value for key, value in state.items() if key != "proj_out.weight"}
    if not any(key.startswith("decoder.") for key in bare):
        raise WeightsError(
            f"{path} contains a Whisper encoder without its decoder.",
            "Use a whole Whisper: `warmtalk fetch-weights --only whisper-tiny.en` downloads one.",
        )
    return bare


def _rules(vocabulary: Vocabulary, hints: dict[str, Any]) -> Rules:
    """hints: config.json updated with generation_config.json; older folders have the token lists in config.json."""
    never = {*(hints.get("suppress_tokens") or ()), *vocabulary.prompt_only} - {-1}
    first = hints.get("begin_suppress_tokens") or ()
    return Rules(vocabulary.end, vocabulary.first_timestamp, tuple(sorted(never)), tuple(first))


def _next_window_start(speech: Spans, at_s: float) -> float | None:
    """The next window begins shortly before the first speech that ends after `at_s`. None if there is none."""
    left = speech[speech[:, 1] > at_s + 1e-6]
    return max(at_s, float(left[0, 0]) - LEAD_S) if len(left) else None


def _speech_s(speech: Spans, start_s: float, end_s: float) -> float:
    """Seconds of speech between the two times."""
    inside: float = np.clip(np.minimum(speech[:, 1], end_s) - np.maximum(speech[:, 0], start_s), 0, None).sum()
    return float(inside)


def _segment(text: str, span: TokenSpan, start_s: float, decoded: Decoded) -> list[RecognizedSegment]:
    """The segment as a list; empty if its text is only white space."""
    if not text.strip():
        return []
    times = (round(start_s + span.start_s, 3), round(start_s + span.end_s, 3))
    return [RecognizedSegment(text.strip(), *times, round(decoded.logprob, 4), round(decoded.no_speech, 4))]
