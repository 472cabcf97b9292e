"""The keys that open a server, and what is signed with them: a browser's cookie, a token for one session's address.

A key itself stands in no file, no cookie and no address. What is signed names its own end, so that every replica can
check it without asking another, and ends with its key. Knows no HTTP.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Literal

from models.errors import ConfigError

SHORTEST_KEY = 16  # characters: shorter ones can be guessed
MAC_CHARS = 40  # hexadecimal: 160 bits
SCRYPT = {"n": 2**14, "r": 8, "p": 1}  # 16 MiB and 50 ms a key, once: who has a cookie cannot try keys quickly
MAKE = "Make one with `openssl rand -hex 24`."
SIGNED = re.compile(rf"([a-z]+)\.(\d{{1,12}})\.([0-9a-f]{{{MAC_CHARS}}})")

Scope = Literal["watch", "act"]  # of a token: look at a session; also speak in it


class Keys:
    """Any of `keys` opens. Without any, the server is open to all."""

    def __init__(self, keys: Sequence[str] = (), now: Callable[[], float] = time.time) -> None:
        """Raises ConfigError for a key that is too short, or that no header can carry."""
        for number, key in enumerate(keys, 1):
            if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()):
                what = f"Key {number} of {len(keys)} is shorter than {SHORTEST_KEY} characters, or not plain ASCII."
                raise ConfigError(what, MAKE)
        self._digests = [_digest(key) for key in keys]
        self._secrets = [hashlib.scrypt(key.encode(), salt=b"warmtalk", **SCRYPT) for key in keys]
        self._now = now

    @classmethod
    def of_environment(cls, name: str | None) -> "Keys":
        """The keys in the environment variable `name`, parted by blanks, commas or lines. Raises ConfigError.

        A variable that is missing or empty is an error: a server that was to be closed must not stand open.
        """
        if name is None:
            return cls()
        keys = re.split(r"[\s,]+", os.environ.get(name, "").strip())
        if not any(keys):
            what = f"The environment variable {name!r}, which api_keys_env of Ingress names, is not set."
            raise ConfigError(what, f"Put one or more keys into it where the replicas run. {MAKE}")
        return cls([key for key in keys if key])

    def __bool__(self) -> bool:
        """Whether a key is wanted."""
        return bool(self._digests)

    def opens(self, key: str) -> bool:
        """Whether it is one of the keys; takes as long whether or not, and however much of it is right."""
        return self._place(key) is not None

    # --- what is signed

    def cookie(self, key: str, for_s: float) -> str:
        """What a browser keeps in the place of a key that opens; it ends after `for_s`, or with the key."""
        place = self._place(key)
        assert place is not None, "only for a key that opens"
        return self._signed("cookie", "", for_s, self._secrets[place])

    def knows(self, cookie: str) -> bool:
        return self._check(cookie, "cookie", "")

    def token(self, session_id: str, scope: Scope, for_s: float) -> str:
        """What opens the addresses of one session for a while, in a query: see access.py. Raises ConfigError."""
        if not self:
            raise ConfigError("This server wants no key, so its addresses need no token.", "Use them as they are.")
        return self._signed(scope, session_id, for_s, self._secrets[0])

    def admits(self, token: str, session_id: str, scope: Scope) -> bool:
        """Whether a token is good for the session; one to act is good to watch, too."""
        return self._check(token, "act", session_id) or (scope == "watch" and self._check(token, scope, session_id))

    def _place(self, key: str) -> int | None:
        digest, found = _digest(key), None
        for place, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = place
        return found

    def _signed(self, kind: str, about: str, for_s: float, secret: bytes) -> str:
        end_s = int(self._now() + for_s)
        return f"{kind}.{end_s}.{_mac(secret, kind, about, end_s)}"

    def _check(self, signed: str, kind: str, about: str) -> bool:
        match = SIGNED.fullmatch(signed)
        if match is None or match[1] != kind:
            return False
        macs = [_mac(secret, kind, about, int(match[2])) for secret in self._secrets]
        good = [hmac.compare_digest(mac, match[3]) for mac in macs]  # all of them: as long for any key
        return any(good) and int(match[2]) > self._now()


def _digest(key: str) -> bytes:
    """Of one length, so that comparing says nothing of a key's own."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _mac(secret: bytes, kind: str, about: str, end_s: int) -> str:
    return hmac.new(secret, f"{kind}\n{about}\n{end_s}".encode(), "sha256").hexdigest()[:MAC_CHARS]
