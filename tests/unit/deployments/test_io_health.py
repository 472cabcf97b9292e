"""Stages whose engine waits for a server: its calls end by the engine's timeouts, not by the limit of computing."""

import pytest

from deployments.recognize import Recognize
from deployments.tts import TTS


class Remote:
    """An engine that waits for a server."""

    io_bound = True

    @classmethod
    def load(cls) -> "Remote":
        return cls()


@pytest.mark.parametrize("kind", [TTS, Recognize])
async def test_calls_of_a_server_have_the_longer_limit(kind):
    stage = kind()
    await stage.reconfigure({"engine": f"{__name__}:Remote", "hung_after_s": 5.0, "load_limit_s": 300.0})
    compute, waiting = stage.workers()
    assert (compute.hung_after_s, waiting.hung_after_s) == (5.0, 300.0)
