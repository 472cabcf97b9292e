"""Splits recorded speech at quiet places into segments of whole video frames, with a few seconds of it in memory.

The recording is read twice: `find_cuts` finds the places, `split_at` yields the segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from models.speech.audio import SILENCE_DB, frame_start, frames_covering
from models.types import Float32, Speech

FIRST_SEGMENT_S = (0.8, 3.0)  # minimum and maximum: a short first segment gives an early start
MIN_LAST_SEGMENT_S = 0.5  # a shorter rest is not worth a call of each stage
MAX_SEGMENT_S = 8.0
PAUSE_WINDOW_S = 0.08  # measured around a cut: shorter than a gap between words, longer than a stop closure
PAUSE_BELOW_SPEECH_DB = 20.0  # a pause is this far below the loudest tenth of the speech
SAME_LEVEL_DB = 3.0  # adjacent frames within this range are one quiet span, which is cut in its middle


def find_cuts(
    blocks: Iterable[Float32],
    sample_rate_hz: int,
    fps: int,
    max_s: float = MAX_SEGMENT_S,
    full_scale: Callable[[], float] = lambda: 1.0,
) -> list[int]:
    """Where to split a recording: the samples at which its segments begin, and its end, each that of a video frame.

    The first segment ends at a pause within 3 s if there is one, so that the video starts early. blocks: float32 mono
    (n,), together at least one sample. max_s: longest segment, at least 1 s.
    full_scale: the amplitude of full scale, asked for after the last block.
    """
    assert max_s >= 1.0, max_s
    levels_db = _levels_db(blocks, sample_rate_hz, fps, full_scale)
    total = len(levels_db) - 1
    return [frame_start(k, sample_rate_hz, fps) for k in (0, *_cuts(levels_db, fps, max_s), total)]


def split_at(blocks: Iterable[Float32], edges: list[int], sample_rate_hz: int) -> Iterator[Speech]:
    """Yield the segments of a recording as soon as they are read; the last has `last=True`.

    The concatenated segments equal the recording, plus silence up to a whole frame. edges: of `find_cuts`.
    """
    held, count, source = list[Float32](), 0, iter(blocks)  # count: samples in `held`
    for begin, end in itertools.pairwise(edges):
        while count < end - begin and (block := next(source, None)) is not None:
            held.append(block)
            count += len(block)
        samples = np.concatenate(held)
        missing = max(0, end - begin - count)  # only at the end
        held, count = [samples[end - begin :]], max(0, count - (end - begin))
        yield Speech(np.pad(samples[: end - begin], (0, missing)), sample_rate_hz, last=end == edges[-1])


def _cuts(levels_db: Float32, fps: int, max_s: float) -> Iterator[int]:
    """Yield the frames to cut before, ascending, without 0 and total. levels_db: at the start of frames 0 … total."""
    total, start = len(levels_db) - 1, 0
    longest, shortest_last = int(max_s * fps), round(MIN_LAST_SEGMENT_S * fps)
    pause_db = float(np.percentile(levels_db, 90)) - PAUSE_BELOW_SPEECH_DB
    first_end = min(int(FIRST_SEGMENT_S[1] * fps), longest, total - shortest_last)
    early = _quietest(levels_db, round(FIRST_SEGMENT_S[0] * fps), first_end)
    if early is not None and levels_db[early] <= pause_db:
        yield early
        start = early
    while total - start > longest:
        cut = _quietest(levels_db, start + longest // 2, min(start + longest, total - shortest_last))
        start = start + longest if cut is None else cut
        yield start


def _quietest(levels_db: Float32, first: int, last: int) -> int | None:
    """The middle of the longest span of quietest frames in first … last; None if last < first."""
    if last < first:
        return None
    levels = levels_db[first : last + 1]
    quiet = np.concatenate([[0], levels <= levels.min() + SAME_LEVEL_DB, [0]])
    edges = np.flatnonzero(np.diff(quiet))  # alternating: begin of a span, one past its end
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    return first + int(begins[longest] + ends[longest] - 1) // 2


def _levels_db(blocks: Iterable[Float32], sample_rate_hz: int, fps: int, full_scale: Callable[[], float]) -> Float32:
    """RMS level in dB of PAUSE_WINDOW_S around the start of each frame and around the end: (frames + 1,)."""
    half = max(round(PAUSE_WINDOW_S / 2 * sample_rate_hz), 1)
    begins, ends = list[float](), list[float]()  # energy of all samples before each window's begin and end
    count, total = 0, 0.0
    for block in blocks:
        energy = np.concatenate([[total], total + np.cumsum(block.astype(np.float64) ** 2)])
        for known, shift in ((begins, -half), (ends, half)):
            while (at := frame_start(len(known), sample_rate_hz, fps) + shift) <= count + len(block):
                known.append(float(energy[max(at - count, 0)]))
        count, total = count + len(block), float(energy[-1])
    assert count, "there is no sample"
    frames = frames_covering(count, sample_rate_hz, fps)
    inside = [np.array([*known, *[total] * (frames + 1)])[: frames + 1] for known in (begins, ends)]  # then silence
    starts = np.array([frame_start(k, sample_rate_hz, fps) for k in range(frames + 1)])
    length = np.minimum(starts + half, starts[-1]) - np.maximum(starts - half, 0)
    power: npt.NDArray[np.float64] = (inside[1] - inside[0]) / length / full_scale() ** 2
    levels_db: Float32 = np.maximum(10 * np.log10(np.maximum(power, 1e-12)), SILENCE_DB).astype(np.float32)
    return levels_db
