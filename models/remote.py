"""What clients of OpenAI-compatible servers share: a retry with its wait, the key's header. Knows no model."""

from __future__ import annotations

import os

import httpx

from models.errors import ConfigError, WarmTalkError

CONNECT_TIMEOUT_S = 5.0
BACKOFF_S = 0.5  # doubled at each try
LONGEST_WAIT_S = 10.0  # a server may ask for more with Retry-After; a viewer will not wait that long
ERROR_BYTES = 2**16  # of an error's body that are read
QUOTE_CHARS = 200  # of a server's own words in our error


class Retry(Exception):
    """What may be gone at the next try; `error` is what to raise where it is not."""

    def __init__(self, error: WarmTalkError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


def authorization(api_key_env: str | None, whose: str) -> dict[str, str]:
    """The header with the key that this environment variable holds; none without a name. Raises ConfigError."""
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"The environment variable {api_key_env} is not set.", f"Set it to the {whose}'s key, where Ray starts."
        )
    return {"Authorization": f"Bearer {key}"}


def retry_after_s(answer: httpx.Response) -> float | None:
    """The seconds that an answer asks to wait; None where it says none, or a date."""
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
