"""Recordings that are spoken: opened when their turn comes, and read while they are spoken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from deployments.common.paths import uploaded_file
from models.media.encode import MediaSpec
from models.speech.recording import Recording
from models.types import Speech


@asynccontextmanager
async def recorded_speech(audio_path: str, spec: MediaSpec, max_audio_s: float) -> AsyncIterator[Iterable[Speech]]:
    """The segments of an upload at the session's sample rate; none without a path. Raises InputError, AudioError.

    It works on its own thread: a long recording must not block the rendering of others.
    """
    if not audio_path:
        yield ()
        return
    recording = await asyncio.to_thread(_open, audio_path, spec, max_audio_s)
    try:
        yield recording
    finally:
        await asyncio.to_thread(recording.close)


def _open(audio_path: str, spec: MediaSpec, max_audio_s: float) -> Recording:
    """Open an upload and delete it, so that nothing is left of it if this process dies."""
    path = uploaded_file(audio_path)
    try:
        return Recording(path, spec.sample_rate_hz, spec.fps, max_audio_s)
    finally:
        path.unlink(missing_ok=True)
