"""A recording that is spoken: read from its file twice, so that only a few seconds of it are in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soxr

from models.speech.audio import decoded_blocks
from models.speech.split import find_cuts, split_at
from models.types import Float32, Speech


class Recording:
    """The speech of a sound file in segments, an iterator. Thread-safe: `close` waits for a running `next`."""

    def __init__(self, path: Path, sample_rate_hz: int, fps: int, max_seconds: float) -> None:
        """Read the file once, to check it and to find its pauses. It may be deleted afterwards.

        sample_rate_hz, fps: of the session. Raises AudioError as `decode_audio`, OSError.
        """
        self._lock = threading.Lock()
        self._file = path.open("rb")
        self._max_seconds, self._rate_hz = max_seconds, sample_rate_hz
        self._peak = 1.0  # of the decoded samples, at least full scale
        try:
            edges = find_cuts(self._resampled(), sample_rate_hz, fps, full_scale=lambda: self._peak)
        except BaseException:
            self._file.close()
            raise
        scaled = (block / np.float32(self._peak) if self._peak > 1 else block for block in self._resampled())
        self._segments: Iterator[Speech] = split_at(scaled, edges, sample_rate_hz)

    def __iter__(self) -> Iterator[Speech]:
        return self

    def __next__(self) -> Speech:
        with self._lock:
            return next(self._segments)

    def close(self) -> None:
        """Close the file. The iterator ends."""
        with self._lock:
            self._segments = iter(())
            self._file.close()

    def _decoded(self) -> Iterator[tuple[Float32, int]]:
        for block, rate_hz in decoded_blocks(self._file, self._max_seconds):
            self._peak = max(self._peak, float(np.abs(block).max(initial=0.0)))
            yield block, rate_hz

    def _resampled(self) -> Iterator[Float32]:
        """The file's samples at the session's rate, as `resample` gives them for the whole file."""
        stream: soxr.ResampleStream | None = None
        given = made = from_hz = 0
        for block, from_hz in self._decoded():
            given += len(block)
            if from_hz == self._rate_hz:
                yield block
                continue
            stream = stream or soxr.ResampleStream(from_hz, self._rate_hz, 1, dtype="float32")
            made += len(out := stream.resample_chunk(block))
            yield out
        if stream is not None:
            rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
            wanted = round(given * self._rate_hz / from_hz) - made
            yield np.pad(rest[: max(0, wanted)], (0, max(0, wanted - len(rest))))
