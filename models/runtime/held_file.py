"""Files that tell whether the process that made them still lives: it keeps them locked with flock(2).

No clock is involved, so that a clock that jumps expires nothing. Other hosts see it, too, if they share the locks.
"""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path


class HeldFile:
    """A file that this process keeps locked until `release`, or until it dies."""

    def __init__(self, path: Path) -> None:
        """Create the file. On a file system without flock(2) it counts as held forever. Raises OSError."""
        self._path = path
        self._file = path.open("wb")
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def is_abandoned(path: Path) -> bool:
    """Whether no process holds the file; False if that cannot be found out."""
    try:
        with path.open("r+b") as file:  # for writing, which NFS requires of an exclusive lock; see flock(2)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except OSError:
        return False
