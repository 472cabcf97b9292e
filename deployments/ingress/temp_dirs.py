"""One temporary folder per process, removed by another process once its owner is dead.

Several processes, also on several hosts that share a file system, may have one each under the same root.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from models.errors import LockedError
from models.runtime.file_lock import hold_lock
from models.runtime.held_file import HeldFile, is_abandoned

ROOT_LOCK = ".lock"  # locked while folders are created and removed
HELD = ".held"  # suffix of the file that a process keeps locked while it uses the folder of the same name


class TempDirs:
    """The temporary folder of this process under `root`. On file systems without flock(2) nothing is removed."""

    def __init__(self, root: Path) -> None:
        """Remove the folders of dead processes under `root`."""
        self._root = root
        self._path: Path | None = None
        self._creating = threading.Lock()
        self.sweep()

    def sweep(self) -> None:
        """Remove the folders of dead processes: no clock is involved. Thread-safe."""
        if not self._root.is_dir():
            return
        with contextlib.suppress(OSError, LockedError), _root_locked(self._root):
            for held in self._root.glob(f"*{HELD}"):
                if is_abandoned(held):
                    shutil.rmtree(held.with_suffix(""), ignore_errors=True)
                    held.unlink(missing_ok=True)

    def folder(self) -> Path:
        """The folder of this process, created at the first call. Thread-safe. Raises LockedError, OSError."""
        with self._creating:
            if self._path is None:
                self._root.mkdir(parents=True, exist_ok=True)
                with _root_locked(self._root):  # another process must not remove it before it is locked
                    path = self._root / uuid.uuid4().hex
                    self._held = HeldFile(path.with_suffix(HELD))
                    path.mkdir()
                self._path = path
            return self._path


@contextlib.contextmanager
def _root_locked(root: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without flock(2)
            stack.enter_context(hold_lock(root / ROOT_LOCK))
        yield
