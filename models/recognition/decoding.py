"""Whisper's decoding loop: which token may follow, detection of repetition, and splitting at timestamps.

The timestamp rules are those of the original decoder (Radford et al. 2022, `openai/whisper`, decoding.py).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

TIMESTAMP_S = 0.02
LATEST_START = 50  # in timestamp tokens: the first word of a window begins within 1 s
# A sequence of at most 24 tokens that occurs at least 5 times in a row, and has 10 tokens in all, is a loop.
LOOP_TOKENS, LOOP_TURNS, MAX_LOOP_LENGTH = 10, 5, 24


@dataclass(frozen=True, slots=True)
class Rules:
    """Which tokens may follow: tokens in `never` are never allowed, those in `not_first` not at the beginning."""

    end: int
    first_timestamp: int
    never: tuple[int, ...]
    not_first: tuple[int, ...] = ()

    def mask(self, logits: torch.Tensor, tokens: Sequence[int]) -> None:
        """Set the float32 logits `(vocabulary,)` of tokens that may not follow `tokens` to −∞, in place.

        tokens: decoded so far, without the prompt.
        """
        times = self.first_timestamp
        logits[list(self.never)] = -math.inf
        if not tokens:  # a window begins with a timestamp in its first second
            logits[list(self.not_first)] = -math.inf
            logits[:times] = -math.inf
            logits[times + LATEST_START + 1 :] = -math.inf
            return
        open_pair = tokens[-1] >= times and (len(tokens) < 2 or tokens[-2] >= times)
        closing = tokens[-1] >= times and not open_pair
        if open_pair:  # after two timestamps, or the first one: words follow
            logits[times:] = -math.inf
        elif closing:  # after the end of a segment: the start of the next one, or the end of the text
            logits[: self.end] = -math.inf
        stamps = [token for token in tokens if token >= times]
        if stamps:  # times do not decrease, and a segment is not empty
            logits[times : stamps[-1] + (0 if closing else 1)] = -math.inf
        scores = logits.log_softmax(0)
        if (
            scores[times:].logsumexp(0) > scores[:times].max()
        ):  # all timestamps together are more probable than any word
            logits[:times] = -math.inf


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result for one window.

    tokens: without the prompt and the end token. logprob: mean natural logarithm of the probabilities of the tokens and
    the end token. no_speech: probability that there is no speech. looped: the tokens were cut because of repetition.
    """

    tokens: tuple[int, ...]
    logprob: float
    no_speech: float
    looped: bool = False


def decode(
    decoder: Any,
    states: torch.Tensor,
    prompt: Sequence[int],
    rules: Rules,
    limit: int,
    no_speech: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Decoded:
    """Greedy decoding at temperature 0, otherwise sampling with `seed`.

    decoder: transformers' WhisperDecoder. states: of the encoder, `(1, steps, width)`. prompt: begins with
    <|startoftranscript|>. limit: maximum number of tokens. no_speech: the token whose probability at the first
    position means that there is no speech.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    total, silence, past, new_tokens = 0.0, 0.0, None, list(prompt)
    while len(tokens) < limit:
        out = decoder(
            input_ids=torch.tensor([new_tokens], device=states.device),
            encoder_hidden_states=states,
            past_key_values=past,
            use_cache=True,
        )
        hidden, past = out.last_hidden_state[0], out.past_key_values  # (len(new_tokens), width)
        if not tokens:
            silence = float(_logits(decoder, hidden[0]).softmax(0)[no_speech])
        logits = _logits(decoder, hidden[-1])  # (vocabulary,)
        rules.mask(logits, tokens)
        token = _choose(logits, temperature, generator)
        total += float(logits.log_softmax(0)[token])
        if token == rules.end:
            return Decoded(tuple(tokens), total / (len(tokens) + 1), silence)
        tokens.append(token)
        new_tokens = [token]
        if token < rules.end and (kept := find_loop(tokens, rules.first_timestamp)) is not None:
            return Decoded(tuple(tokens[:kept]), total / len(tokens), silence, looped=True)
    return Decoded(tuple(tokens), total / max(len(tokens), 1), silence)


def _logits(decoder: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits `(vocabulary,)`, float32 on the CPU. The output layer has the weights of the embedding."""
    return (decoder.embed_tokens.weight @ hidden).float().cpu()


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator))


def find_loop(tokens: Sequence[int], first_timestamp: int) -> int | None:
    """If the tokens end with a repeated sequence, the number of tokens up to the end of its first occurrence.

    None if they do not. Timestamps are ignored, because they differ between the repetitions.
    """
    indices = [k for k, token in enumerate(tokens) if token < first_timestamp]
    words = [tokens[k] for k in indices]
    for length in range(1, min(MAX_LOOP_LENGTH, len(words) // LOOP_TURNS) + 1):
        turns = max(LOOP_TURNS, -(-LOOP_TOKENS // length))
        last = words[-length:]
        begin = len(words) - turns * length
        if begin >= 0 and words[begin:] == last * turns:
            while begin >= length and words[begin - length : begin] == last:
                begin -= length
            return indices[begin + length - 1] + 1
    return None


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes after zlib: a measure of repetition. Above 2.4 (Whisper's threshold) is a loop."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """The tokens between two timestamps of a window. closed: False if the end time was missing in the tokens."""

    tokens: tuple[int, ...]
    start_s: float
    end_s: float
    closed: bool


def token_spans(tokens: Sequence[int], first_timestamp: int, window_s: float) -> list[TokenSpan]:
    """Split a window's tokens at timestamps. Without an end timestamp, the last span ends with the window."""
    spans: list[TokenSpan] = []
    words: list[int] = []
    start_s = 0.0
    for token in tokens:
        if token < first_timestamp:
            words.append(token)
            continue
        at_s = min((token - first_timestamp) * TIMESTAMP_S, window_s)
        if words:
            spans.append(TokenSpan(tuple(words), start_s, at_s, True))
            words = []
        start_s = at_s
    if words:
        spans.append(TokenSpan(tuple(words), start_s, window_s, False))
    return spans
