"""Whisper's decoder, token by token: what may come next, when it goes round in circles, and where segments end.

The rules of timestamps are those of the paper's own decoder (Radford et al. 2022, `openai/whisper`, decoding.py). Knows
no files and no sound.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

TIMESTAMP_S = 0.02
LATEST_START = 50  # timestamps: a window's first word begins within its first second
LOOP_TOKENS, LOOP_TURNS, LONGEST_TURN = 10, 5, 24  # what comes so often in a row, and is so long, is a loop


@dataclass(frozen=True, slots=True)
class Rules:
    """Which tokens may follow. `never` may not stand anywhere, `not_first` not at the beginning."""

    end: int
    first_timestamp: int
    never: tuple[int, ...]
    not_first: tuple[int, ...] = ()

    def mask(self, logits: torch.Tensor, tokens: Sequence[int]) -> None:
        """Set to −∞, in place, the logits `(vocabulary,)` float32 of what may not follow `tokens` (prompt left out)."""
        times = self.first_timestamp
        logits[list(self.never)] = -math.inf
        if not tokens:  # a window begins with a time, of its first second
            logits[list(self.not_first)] = -math.inf
            logits[:times] = -math.inf
            logits[times + LATEST_START + 1 :] = -math.inf
            return
        open_pair = tokens[-1] >= times and (len(tokens) < 2 or tokens[-2] >= times)
        closing = tokens[-1] >= times and not open_pair
        if open_pair:  # two times in a row, or the first: words follow
            logits[times:] = -math.inf
        elif closing:  # a segment's end: the next one's beginning follows, or nothing
            logits[: self.end] = -math.inf
        stamps = [token for token in tokens if token >= times]
        if stamps:  # time does not go back, and a segment has a length
            logits[times : stamps[-1] + (0 if closing else 1)] = -math.inf
        scores = logits.log_softmax(0)
        if scores[times:].logsumexp(0) > scores[:times].max():  # a time as a whole is likelier than any word
            logits[:times] = -math.inf


@dataclass(frozen=True, slots=True)
class Decoded:
    """Tokens behind the prompt, without the end. logprob: mean of them and the end. looped: it was cut off there."""

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
    """The likeliest token each time, or, above temperature 0, one drawn by probability (the same for the same seed).

    decoder: transformers' WhisperDecoder. states: the encoder's, `(1, steps, width)`. prompt: begins with
    <|startoftranscript|>. limit: of tokens. no_speech: the token whose probability there says that nobody speaks.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    total, silence, past, given = 0.0, 0.0, None, list(prompt)
    while len(tokens) < limit:
        out = decoder(
            input_ids=torch.tensor([given], device=states.device),
            encoder_hidden_states=states,
            past_key_values=past,
            use_cache=True,
        )
        hidden, past = out.last_hidden_state[0], out.past_key_values  # (len(given), width)
        if not tokens:
            silence = float(_logits(decoder, hidden[0]).softmax(0)[no_speech])
        logits = _logits(decoder, hidden[-1])  # (vocabulary,)
        rules.mask(logits, tokens)
        token = _drawn(logits, temperature, generator)
        total += float(logits.log_softmax(0)[token])
        if token == rules.end:
            return Decoded(tuple(tokens), total / (len(tokens) + 1), silence)
        tokens.append(token)
        given = [token]
        if token < rules.end and (kept := find_loop(tokens, rules.first_timestamp)) is not None:
            return Decoded(tuple(tokens[:kept]), total / len(tokens), silence, looped=True)
    return Decoded(tuple(tokens), total / max(len(tokens), 1), silence)


def _logits(decoder: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Scores `(vocabulary,)` float32 on the CPU: the embedding is the output layer, too."""
    return (decoder.embed_tokens.weight @ hidden).float().cpu()


def _drawn(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator))


def find_loop(tokens: Sequence[int], first_timestamp: int) -> int | None:
    """How many tokens to keep if the words at the end go round in circles: up to the end of the first turn; else None.

    Times in between do not count: a loop gives each of its turns another one.
    """
    places = [k for k, token in enumerate(tokens) if token < first_timestamp]
    words = [tokens[k] for k in places]
    for length in range(1, min(LONGEST_TURN, len(words) // LOOP_TURNS) + 1):
        turns = max(LOOP_TURNS, -(-LOOP_TOKENS // length))
        last = words[-length:]
        begin = len(words) - turns * length
        if begin >= 0 and words[begin:] == last * turns:
            while begin >= length and words[begin - length : begin] == last:
                begin -= length
            return places[begin + length - 1] + 1
    return None


def compression_ratio(text: str) -> float:
    """How much of a text says nothing new: bytes over zlib's bytes. Speech stays below 2.4 (Whisper's own bound)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Words of a window between two of its times, seconds; `closed`: the second was heard, and not only assumed."""

    tokens: tuple[int, ...]
    start_s: float
    end_s: float
    closed: bool


def token_spans(tokens: Sequence[int], first_timestamp: int, window_s: float) -> list[TokenSpan]:
    """The pieces of a window's tokens, in order; the last may be open, and then ends with the window."""
    pieces: list[TokenSpan] = []
    words: list[int] = []
    start_s = 0.0
    for token in tokens:
        if token < first_timestamp:
            words.append(token)
            continue
        at_s = min((token - first_timestamp) * TIMESTAMP_S, window_s)
        if words:
            pieces.append(TokenSpan(tuple(words), start_s, at_s, True))
            words = []
        start_s = at_s
    if words:
        pieces.append(TokenSpan(tuple(words), start_s, window_s, False))
    return pieces
