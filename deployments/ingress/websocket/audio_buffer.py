"""A recording that comes over a socket in parts, held until its last. Knows no sound and no socket."""

# no `from __future__ import annotations`: part of what serve.ingress looks at

from models.errors import BusyError, InputError

MAX_BYTES = 32 * 2**20  # of one recording
MAX_HELD_BYTES = 256 * 2**20  # of all that are coming to this process


class Recording:
    """One socket's. What was refused takes no more: the rest of it is dropped, up to its last part."""

    held_bytes = 0  # by all of them in this process: one event loop

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._refused = False

    def add(self, data: bytes, last: bool) -> bytes | None:
        """The whole, with its last part; None before that, and of what was refused. Raises InputError, BusyError."""
        refused, self._refused = self._refused, self._refused and not last
        if refused:
            return None
        try:
            self._take(data)
        except (InputError, BusyError):
            self.drop()
            self._refused = not last
            raise
        if not last:
            return None
        whole = b"".join(self._parts)
        self.drop()
        return whole

    def drop(self) -> None:
        """Forget what has come."""
        Recording.held_bytes -= self._size
        self._parts, self._size = [], 0

    def _take(self, data: bytes) -> None:
        if self._size + len(data) > MAX_BYTES:
            raise InputError(f"The recording exceeds {MAX_BYTES // 2**20} MB.", "Send a shorter one.")
        if Recording.held_bytes + len(data) > MAX_HELD_BYTES:
            raise BusyError("As much sound is being received as this server allows.", "Try again in a few seconds.")
        self._parts.append(data)
        self._size += len(data)
        Recording.held_bytes += len(data)
