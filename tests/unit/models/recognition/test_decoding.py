"""models.recognition.decoding: equal to decoding without a cache and to transformers' rules; detection of loops."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from models.recognition.decoding import Rules, compression_ratio, decode, find_loop, token_spans
from tests.support.whisper import SPECIAL, TIMES, make_tokenizer, make_whisper

END = make_tokenizer().get_vocab_size() - len(SPECIAL)
FIRST_TIME = END + len(SPECIAL)
SIZE = FIRST_TIME + TIMES
RULES = Rules(END, FIRST_TIME, (1, 2, *range(END + 1, FIRST_TIME)), (3, END))
PROMPT = [END + 1, END + 2, END + 6]


def transformers_rules() -> list:
    """The logits processors that `generate` uses, for PROMPT."""
    config = SimpleNamespace(
        no_timestamps_token_id=FIRST_TIME - 1, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=50
    )
    return [
        SuppressTokensLogitsProcessor(list(RULES.never)),
        SuppressTokensAtBeginLogitsProcessor(list(RULES.not_first), len(PROMPT)),
        WhisperTimeStampLogitsProcessor(config, begin_index=len(PROMPT)),
    ]


def masked_by_transformers(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    scores = logits.clone()[None]
    for process in transformers_rules():
        scores = process(torch.tensor([PROMPT + tokens]), scores)
    return scores[0]


def grown(seed: int) -> list[int]:
    """Random tokens that the rules allow."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    for _ in range(torch.randint(0, 14, (), generator=generator)):
        logits = 3 * torch.randn(SIZE, generator=generator)
        logits[FIRST_TIME:] += 2.0 * (seed % 3) - 3.0  # some seeds prefer words, others timestamps
        RULES.mask(logits, tokens)
        token = int(torch.multinomial(logits.softmax(0), 1, generator=generator))
        if token == END:
            break
        tokens.append(token)
    return tokens


def test_the_rules_equal_those_of_transformers():
    lengths = set()
    for seed in range(120):
        tokens = grown(seed)
        lengths.add(len(tokens))
        logits = 3 * torch.randn(SIZE, generator=torch.Generator().manual_seed(1000 + seed))
        wanted = masked_by_transformers(logits, tokens)
        RULES.mask(logits, tokens)
        assert torch.equal(logits.isinf(), wanted.isinf()), (seed, tokens)
    assert len(lengths) > 8


@pytest.fixture(scope="module")
def whisper():
    return make_whisper(SIZE)


@pytest.fixture(scope="module")
def states(whisper):
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return whisper.model.encoder(mel).last_hidden_state


def straightforward(whisper, states, limit: int) -> tuple[list[int], float, float]:
    """All tokens through the whole network at each step, without a cache; scores by softmax."""
    tokens, total, silence = [], 0.0, 0.0
    while len(tokens) < limit:
        ids = torch.tensor([PROMPT + tokens])
        with torch.no_grad():
            logits = whisper(encoder_outputs=(states,), decoder_input_ids=ids, use_cache=False).logits[0].float()
        if not tokens:
            silence = float(logits[0].softmax(0)[END + 9])
        scores = masked_by_transformers(logits[-1], tokens)
        token = int(scores.argmax())
        total += math.log(float(scores.softmax(0)[token]))
        if token == END:
            return tokens, total / (len(tokens) + 1), silence
        tokens.append(token)
    return tokens, total / len(tokens), silence


@pytest.mark.parametrize("limit", [1, 7, 25])
def test_decoding_with_a_cache_equals_decoding_without_one(whisper, states, limit):
    with torch.no_grad():
        found = decode(whisper.model.decoder, states, PROMPT, RULES, limit, END + 9)
    tokens, logprob, silence = straightforward(whisper, states, limit)
    assert list(found.tokens) == tokens and len(set(tokens)) > min(limit, 3) - 1
    assert found.logprob == pytest.approx(logprob, abs=1e-3) and found.no_speech == pytest.approx(silence, rel=1e-3)


def test_sampling_is_deterministic_for_a_seed(whisper, states):
    with torch.no_grad():
        one, same, other = (
            decode(whisper.model.decoder, states, PROMPT, RULES, 12, END + 9, 1.0, seed).tokens for seed in (0, 0, 1)
        )
    assert one == same != other


class Scripted:
    """A decoder that returns the given tokens, one per call."""

    def __init__(self, tokens: list[int]) -> None:
        self.script, self.calls = list(tokens), 0
        self.embed_tokens = SimpleNamespace(weight=torch.eye(SIZE))

    def __call__(self, input_ids, **_):
        token = self.script[self.calls] if self.calls < len(self.script) else END
        self.calls += 1
        hidden = torch.zeros(input_ids.shape[1], SIZE)
        hidden[:, token] = 20.0
        return SimpleNamespace(last_hidden_state=hidden[None], past_key_values=None)


def time(seconds: float) -> int:
    return FIRST_TIME + round(seconds / 0.02)


def said(tokens: list[int], limit: int = 200):
    return decode(Scripted(tokens), torch.zeros(1, 1, 1), PROMPT, RULES, limit, END + 9)


def test_decoding_stops_at_the_end_token_and_at_the_limit():
    script = [time(0.0), 10, 11, 12, time(1.0)]
    assert said(script).tokens == tuple(script) and said(script, limit=3).tokens == tuple(script[:3])


def test_a_loop_with_different_times_is_cut_after_its_first_occurrence():
    turn = [20, 21, 22]
    script = [time(0.0), 10, 11]
    for k in range(1, 12):
        script += [*turn, time(k), time(k)]
    found = said(script)
    assert found.looped and found.tokens == tuple(script[:6])
    assert found.logprob > -1e-3  # the probabilities are high: only the repetition shows the loop


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([5] * 9, None),  # "no no no no …" may be real speech
        ([5] * 10, 1),
        ([7, 5, *[5] * 12], 2),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], None),
        ([9, *[1, 2] * 5], 3),
        ([9, *[1, 2] * 4], None),
        ([*range(30, 54)] * 5, 24),
        ([*range(30, 55)] * 5, None),  # longer than MAX_LOOP_LENGTH
        ([], None),
    ],
)
def test_loop_detection(words, kept):
    assert find_loop(words, FIRST_TIME) == kept


def test_repetition_compresses_and_speech_does_not():
    speech = "The harbour was quiet that morning, and the boats lay still upon the water."
    assert (
        compression_ratio(speech) < 1.5
        and compression_ratio("Thank you. " * 20) > 2.4 * 3
        and compression_ratio("") == 0.0
    )


def test_tokens_are_split_at_timestamps():
    tokens = [time(0.0), 10, 11, time(1.5), time(2.0), 12, time(3.0), time(3.2), 13]
    found = [(piece.tokens, piece.start_s, piece.end_s, piece.closed) for piece in token_spans(tokens, FIRST_TIME, 4.0)]
    wanted = [((10, 11), 0.0, 1.5, True), ((12,), 2.0, 3.0, True), ((13,), 3.2, 4.0, False)]
    assert [(t, pytest.approx(a), pytest.approx(b), c) for t, a, b, c in wanted] == found
    assert token_spans([time(0.0), time(2.0)], FIRST_TIME, 4.0) == []
    assert token_spans([time(0.0), 10, time(9.0)], FIRST_TIME, 4.0)[0].end_s == 4.0  # limited to the window's length
    assert np.isclose(token_spans([10], FIRST_TIME, 4.0)[0].end_s, 4.0)
