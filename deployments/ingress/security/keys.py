"""API keys, and what is signed with them: the page's login cookie, and tokens for the URLs of one session.

No file, cookie or URL holds a key itself. A signed value holds its own expiry, so every replica can check it alone, and
it is valid only as long as the key that signed it.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from itsdangerous import BadData, URLSafeSerializer

from models.errors import ConfigError

MIN_KEY_CHARS = 16  # shorter keys can be guessed
SCRYPT = {"n": 2**14, "r": 8, "p": 1}  # 16 MiB and 50 ms per key, once: a stolen cookie is no quick test for keys
SIGNER = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
REMEDY = "Make a key with `openssl rand -hex 24`."

Scope = Literal["watch", "act"]  # of a token: watch a session; also speak in it


class Keys:
    """A set of API keys, any of which gives access. An empty set: the server is open to everybody."""

    def __init__(self, keys: Sequence[str] = (), now: Callable[[], float] = time.time) -> None:
        """Raises ConfigError for a key that is too short, or that an HTTP header cannot carry."""
        for number, key in enumerate(keys, 1):
            if len(key) < MIN_KEY_CHARS or not (key.isascii() and key.isprintable()):
                what = f"Key {number} of {len(keys)} is shorter than {MIN_KEY_CHARS} characters, or not plain ASCII."
                raise ConfigError(what, REMEDY)
        self._digests = [_digest(key) for key in keys]
        self._secrets = [hashlib.scrypt(key.encode(), salt=b"warmtalk", **SCRYPT) for key in keys]
        self._now = now

    @classmethod
    def from_environment(cls, name: str | None) -> "Keys":
        """The keys in the environment variable `name`, separated by blanks, commas or line breaks; None: no keys.

        Raises ConfigError. A missing or empty variable is an error: a server that should be closed must not be open.
        """
        if name is None:
            return cls()
        keys = re.split(r"[\s,]+", os.environ.get(name, "").strip())
        if not any(keys):
            what = f"The environment variable {name!r}, which api_keys_env of Ingress names, is not set."
            raise ConfigError(what, f"Set it to one or more keys where the replicas run. {REMEDY}")
        return cls([key for key in keys if key])

    def __bool__(self) -> bool:
        """Whether a key is required."""
        return bool(self._digests)

    def is_valid(self, key: str) -> bool:
        """Whether `key` is one of the keys. The time that this takes does not depend on the answer."""
        return self._index(key) is not None

    # --- signed values

    def sign_cookie(self, key: str, lifetime_s: float) -> str:
        """A login cookie, which expires after `lifetime_s`, or when `key` is removed. The key must be valid."""
        index = self._index(key)
        assert index is not None, "sign_cookie needs a valid key"
        return self._sign("cookie", "", lifetime_s, self._secrets[index])

    def is_valid_cookie(self, cookie: str) -> bool:
        return self._verify(cookie, "cookie", "")

    def sign_token(self, session_id: str, scope: Scope, lifetime_s: float) -> str:
        """A token for the URLs of one session, for `?token=…`: see auth.py. Raises ConfigError without keys."""
        if not self:
            raise ConfigError("This server requires no key, so its URLs need no token.", "Use them without a token.")
        return self._sign(scope, session_id, lifetime_s, self._secrets[0])

    def is_valid_token(self, token: str, session_id: str, scope: Scope) -> bool:
        """Whether a token gives this access to the session. Scope `act` includes `watch`."""
        return self._verify(token, "act", session_id) or (scope == "watch" and self._verify(token, "watch", session_id))

    def _index(self, key: str) -> int | None:
        digest, found = _digest(key), None
        for index, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = index
        return found

    def _sign(self, kind: str, session_id: str, lifetime_s: float, secret: bytes) -> str:
        value: str = _serializer([secret], kind).dumps([session_id, int(self._now() + lifetime_s)])
        return value

    def _verify(self, value: str, kind: str, session_id: str) -> bool:
        if not self._secrets:
            return False
        try:
            signed: Any = _serializer(self._secrets, kind).loads(value)
        except BadData:
            return False
        return bool(signed[0] == session_id and signed[1] > self._now())


def _serializer(secrets: list[bytes], kind: str) -> URLSafeSerializer:
    """Signs with the last of `secrets`, verifies with any. kind: `cookie`, or the scope of a token."""
    return URLSafeSerializer(secrets, salt=f"warmtalk.{kind}", signer_kwargs=SIGNER)


def _digest(key: str) -> bytes:
    """A digest of fixed length: comparing digests does not reveal the length of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
