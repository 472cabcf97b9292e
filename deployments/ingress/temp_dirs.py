"""A folder for files that a process makes for itself: swept up by the next process once its own is no more.

Several processes, on several hosts that share a file system, may have one each beneath the same root.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOT_LOCK = ".lock"  # held while folders are made and removed
HELD = ".held"  # behind a folder's name: the file that its process holds locked for as long as it lives


class Scratch:
    """Made at the first use. Where the file system does not honour flock(2) nothing is swept up."""

    def __init__(self, root: Path) -> None:
        """Remove what processes that are no more have left beneath the root."""
        self._root = root
        self._path: Path | None = None
        self._making = threading.Lock()
        if root.is_dir():
            with contextlib.suppress(OSError), _alone(root):
                for held in root.glob(f"*{HELD}"):
                    if _is_abandoned(held):
                        shutil.rmtree(held.with_suffix(""), ignore_errors=True)
                        held.unlink(missing_ok=True)

    def folder(self) -> Path:
        """The folder of this process. From any thread. Raises OSError."""
        with self._making:
            if self._path is None:
                self._root.mkdir(parents=True, exist_ok=True)
                with _alone(self._root):  # else another might sweep it up before it is held
                    path = self._root / uuid.uuid4().hex
                    self._held = path.with_suffix(HELD).open("wb")
                    with contextlib.suppress(OSError):
                        fcntl.flock(self._held, fcntl.LOCK_EX)
                    path.mkdir()
                self._path = path
            return self._path


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    with (root / ROOT_LOCK).open("ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_abandoned(held: Path) -> bool:
    """Whether nobody holds it; False where that cannot be told."""
    try:
        with held.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
