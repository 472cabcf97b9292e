"""A recording that arrives over a WebSocket in parts, kept in memory until its last part."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

from models.errors import BusyError, InputError

MAX_BYTES = 32 * 2**20  # of one recording
MAX_HELD_BYTES = 256 * 2**20  # of all recordings that this process receives


class AudioBuffer:
    """The recording of one WebSocket. After a part was refused, the rest of that recording is dropped."""

    held_bytes = 0  # by all buffers of this process, which has one event loop

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._refused = False

    def add(self, data: bytes, last: bool) -> bytes | None:
        """The whole recording after its last part; None before, or if it was refused. Raises InputError, BusyError."""
        refused, self._refused = self._refused, self._refused and not last
        if refused:
            return None
        try:
            self._append(data)
        except (InputError, BusyError):
            self.clear()
            self._refused = not last
            raise
        if not last:
            return None
        whole = b"".join(self._parts)
        self.clear()
        return whole

    def clear(self) -> None:
        AudioBuffer.held_bytes -= self._size
        self._parts, self._size = [], 0

    def _append(self, data: bytes) -> None:
        if self._size + len(data) > MAX_BYTES:
            raise InputError(f"The recording exceeds {MAX_BYTES // 2**20} MB.", "Send a shorter recording.")
        if AudioBuffer.held_bytes + len(data) > MAX_HELD_BYTES:
            raise BusyError("Too much audio is being received already.", "Try again in a few seconds.")
        self._parts.append(data)
        self._size += len(data)
        AudioBuffer.held_bytes += len(data)
