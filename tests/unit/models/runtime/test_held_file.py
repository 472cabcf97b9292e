"""Files that a living process holds: others see that it lives, and that it died, also on NFS."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from models.runtime.held_file import HeldFile, is_abandoned


@pytest.fixture(params=["local", "NFS"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS emulates flock(2) by byte-range locks: an exclusive one needs a file that is open for writing."""
    real = fcntl.flock

    def flock(file: object, operation: int) -> None:
        number = file if isinstance(file, int) else file.fileno()  # type: ignore[attr-defined]
        if operation & fcntl.LOCK_EX and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(number, operation)

    if request.param == "NFS":
        monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("file_system")
def test_a_file_is_abandoned_when_nobody_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "a.held"
    assert is_abandoned(path), "it was never held"
    held = HeldFile(path)
    assert not is_abandoned(path) and not is_abandoned(path), "asking does not take the lock"
    held._file.close()  # the process dies
    assert path.exists() and is_abandoned(path)
    HeldFile(path).release()
    assert not path.exists()


def test_without_locks_nothing_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    HeldFile(tmp_path / "a.held")
    assert not is_abandoned(tmp_path / "a.held")
