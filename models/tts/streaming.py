"""Turns the audio of one sentence into Speech while it is still being made, with pauses that fit its punctuation.

For streaming models and servers: the first piece of a sentence is yielded before the rest exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from models.types import Float32, Speech

SILENCE_LEVEL = 10 ** (-50 / 20)  # RMS over 10 ms; lower levels at the ends of a segment are silence
LEAD_S = 0.10  # silence before the first sound: a mouth opens about 100 ms before it is heard
PAUSES_S = {".": 0.42, "!": 0.42, "?": 0.45, "…": 0.55, ":": 0.30, ";": 0.30, ",": 0.18, "—": 0.25}
CUT_PAUSE_S = 0.08  # after a sentence that was cut between two words
LAST_PAUSE_S = 0.35  # after the last sound of an utterance, for the mouth to close
FADE_S = 0.005

# A piece of a sentence lasts whole seconds, and so whole video frames at any integer frame rate: the pipeline pads a
# segment with silence to a whole frame, which would be audible inside a word.
FIRST_PIECE_S = 1
LONGEST_PIECE_S = 8  # pieces double up to this length: each piece is analysed separately, so fewer are better
HOLD_S = 1.0  # held back until the sentence ends, so that the last piece is not too short and its end can be trimmed


def pause_after(text: str) -> float:
    """Seconds of silence between this text and the next, by its last punctuation mark, at speed 1."""
    mark = text.rstrip("\"'”’)]")[-1:]
    return PAUSES_S.get(mark, CUT_PAUSE_S)


def sound_bounds(samples: Float32, sample_rate_hz: int) -> tuple[int, int]:
    """First and one past the last sample above SILENCE_LEVEL, in blocks of 10 ms; (0, 0) if all is silent."""
    block = sample_rate_hz // 100
    blocks = samples[: len(samples) // block * block].reshape(-1, block)
    loud = np.flatnonzero(np.sqrt(np.mean(blocks**2, axis=1)) > SILENCE_LEVEL)
    return (int(loud[0]) * block, (int(loud[-1]) + 1) * block) if len(loud) else (0, 0)


def speech_pieces(
    blocks: Iterable[Float32], sample_rate_hz: int, text: str, last: bool, speed: float = 1.0, stream: bool = True
) -> Iterator[Speech]:
    """Yield the audio of one sentence: as one Speech, or with `stream` as several, each as soon as it is complete.

    blocks: float32 mono (n,) of any lengths. Silence at the start is set to LEAD_S, silence at the end to the pause for
    the sentence's punctuation. All pieces but the final one last whole seconds; the first has `text`, the final one
    `last`. A sentence without any sound gives only its pause.
    """
    pause_s = LAST_PAUSE_S if last else max(pause_after(text) / speed - LEAD_S, 0.0)
    held: Float32 = np.zeros(0, np.float32)
    started, size_s = False, FIRST_PIECE_S
    for block in blocks:
        held = np.concatenate([held, np.clip(np.nan_to_num(block), -1.0, 1.0).astype(np.float32)])
        if not started:
            begin, end = sound_bounds(held, sample_rate_hz)
            if begin == end:
                continue
            held, started = _with_lead(held, begin, sample_rate_hz), True
        while stream and len(held) >= round((size_s + HOLD_S) * sample_rate_hz):
            size = size_s * sample_rate_hz
            yield Speech(held[:size].copy(), sample_rate_hz, text=text)
            held, text, size_s = held[size:], "", min(2 * size_s, LONGEST_PIECE_S)
    yield Speech(_with_pause(held, pause_s, sample_rate_hz), sample_rate_hz, text=text, last=last)


def _with_lead(samples: Float32, begin: int, sample_rate_hz: int) -> Float32:
    """The samples with LEAD_S of silence before sample `begin`, and a fade-in."""
    first = begin - round(LEAD_S * sample_rate_hz)  # negative: zeros are inserted
    led = np.pad(samples[max(first, 0) :], (max(-first, 0), 0))
    fade = min(round(FADE_S * sample_rate_hz), len(led))
    led[:fade] *= np.linspace(0.0, 1.0, fade, dtype=np.float32)
    return led


def _with_pause(samples: Float32, pause_s: float, sample_rate_hz: int) -> Float32:
    """The samples with `pause_s` of silence after the last sound, and a fade-out; at least one sample."""
    _, end = sound_bounds(samples, sample_rate_hz)
    stop = max(end + round(pause_s * sample_rate_hz), 1)
    kept = np.pad(samples[:stop], (0, max(stop - len(samples), 0)))
    fade = min(round(FADE_S * sample_rate_hz), len(kept))
    kept[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return kept
