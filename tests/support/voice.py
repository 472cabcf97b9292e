"""The default voice, loaded once per test process: loading takes about a second."""

from __future__ import annotations

from functools import cache

from models.tts.hibari import HibariTTS


@cache
def hibari() -> HibariTTS:
    """Tests must not change it, except with monkeypatch."""
    return HibariTTS.load()
