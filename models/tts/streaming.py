"""Turns the growing sound of one sentence into Speech, with the silence around it that its mark asks for.

For engines whose model or server streams: a sentence's first piece leaves before the rest is there. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from models.types import Float32, Speech

SILENCE_LEVEL = 10 ** (-50 / 20)  # RMS over 10 ms below which a segment's ends count as silent
LEAD_S = 0.10  # kept before the first sound: a mouth opens some 100 ms before it is heard
PAUSES_S = {".": 0.42, "!": 0.42, "?": 0.45, "…": 0.55, ":": 0.30, ";": 0.30, ",": 0.18, "—": 0.25}
CUT_PAUSE_S = 0.08  # after a piece that was cut between two words
LAST_PAUSE_S = 0.35  # after the last sound of an utterance: the mouth comes to rest
FADE_S = 0.005

# A piece of a sentence lasts whole seconds, and so whole video frames at any whole frame rate: the line fills up a
# segment's last frame with silence, which inside a word would be heard.
FIRST_PIECE_S = 1
LONGEST_PIECE_S = 8  # pieces double up to this: sound is analysed a piece at a time, and fewer seams are better
HOLD_S = 1.0  # kept back until the sentence ends, so that its last piece is no stub and its end can be trimmed


def pause_after(text: str) -> float:
    """Seconds of silence between a piece of text and the next, by the mark that it ends with, at speed 1."""
    mark = text.rstrip("\"'”’)]")[-1:]
    return PAUSES_S.get(mark, CUT_PAUSE_S)


def sound_bounds(samples: Float32, sample_rate_hz: int) -> tuple[int, int]:
    """First and one past the last sample louder than SILENCE_LEVEL, in blocks of 10 ms; (0, 0) where all is silent."""
    block = sample_rate_hz // 100
    blocks = samples[: len(samples) // block * block].reshape(-1, block)
    loud = np.flatnonzero(np.sqrt(np.mean(blocks**2, axis=1)) > SILENCE_LEVEL)
    return (int(loud[0]) * block, (int(loud[-1]) + 1) * block) if len(loud) else (0, 0)


def speech_pieces(
    blocks: Iterable[Float32], sample_rate_hz: int, text: str, last: bool, speed: float = 1.0, stream: bool = True
) -> Iterator[Speech]:
    """Yield the sound of one sentence as one Speech, or with `stream` as several, each as soon as its sound is there.

    blocks: float32 mono (n,) of any lengths, in order. Silence before the first sound is brought to LEAD_S, silence at
    the end to the pause of the sentence's mark. All pieces but the final one last whole seconds; the first carries
    `text`, the final one `last`. A sentence without any sound is its pause.
    """
    pause_s = LAST_PAUSE_S if last else max(pause_after(text) / speed - LEAD_S, 0.0)
    held: Float32 = np.zeros(0, np.float32)
    begun, size_s = False, FIRST_PIECE_S
    for block in blocks:
        held = np.concatenate([held, np.clip(np.nan_to_num(block), -1.0, 1.0).astype(np.float32)])
        if not begun:
            begin, end = sound_bounds(held, sample_rate_hz)
            if begin == end:
                continue
            held, begun = _with_lead(held, begin, sample_rate_hz), True
        while stream and len(held) >= round((size_s + HOLD_S) * sample_rate_hz):
            size = size_s * sample_rate_hz
            yield Speech(held[:size].copy(), sample_rate_hz, text=text)
            held, text, size_s = held[size:], "", min(2 * size_s, LONGEST_PIECE_S)
    yield Speech(_with_pause(held, pause_s, sample_rate_hz), sample_rate_hz, text=text, last=last)


def _with_lead(samples: Float32, begin: int, sample_rate_hz: int) -> Float32:
    """The samples with LEAD_S of silence before `begin`, faded in."""
    first = begin - round(LEAD_S * sample_rate_hz)  # may lie before the samples: then zeros are put in front
    led = np.pad(samples[max(first, 0) :], (max(-first, 0), 0))
    fade = min(round(FADE_S * sample_rate_hz), len(led))
    led[:fade] *= np.linspace(0.0, 1.0, fade, dtype=np.float32)
    return led


def _with_pause(samples: Float32, pause_s: float, sample_rate_hz: int) -> Float32:
    """The samples with `pause_s` of silence behind their last sound, faded out; at least one sample."""
    _, end = sound_bounds(samples, sample_rate_hz)
    stop = max(end + round(pause_s * sample_rate_hz), 1)
    kept = np.pad(samples[:stop], (0, max(stop - len(samples), 0)))
    fade = min(round(FADE_S * sample_rate_hz), len(kept))
    kept[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return kept
