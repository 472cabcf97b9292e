"""Disks that can be filled: a real one of a few megabytes, where the test may mount it, and a simulated one."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SIZE_MB = 4


class MountedDisk:
    """A tmpfs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fill(self) -> None:
        """Use up all of its room."""
        with (self.root / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.root / "filler").unlink()


class SimulatedDisk:
    """A folder in which nothing can be written or synced while it is full. `code`: of the error."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
        self.root, self.full, self._code = root, False, code
        pwrite, fsync, opened = os.pwrite, os.fsync, Path.open

        def checked(function: Any) -> Any:
            def call(file: int, *given: Any) -> Any:
                self._check(Path(f"/proc/self/fd/{file}").readlink())
                return function(file, *given)

            return call

        def open_checked(path: Path, mode: str = "r", *given: Any, **options: Any) -> Any:
            file = opened(path, mode, *given, **options)
            return _Checked(file, self, path) if set(mode) & set("wax") else file

        monkeypatch.setattr(os, "pwrite", checked(pwrite))
        monkeypatch.setattr(os, "fsync", checked(fsync))
        monkeypatch.setattr(Path, "open", open_checked)

    def _check(self, path: str | Path) -> None:
        if self.full and Path(path).is_relative_to(self.root):
            raise OSError(self._code, os.strerror(self._code))

    def fill(self) -> None:
        self.full = True

    def free(self) -> None:
        self.full = False


class _Checked:
    def __init__(self, file: Any, disk: SimulatedDisk, path: Path) -> None:
        self._file, self._disk, self._path = file, disk, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Checked:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: Any) -> Any:
        self._disk._check(self._path)
        return self._file.write(data)


Disk = MountedDisk | SimulatedDisk


@pytest.fixture
def mounted_disk(tmp_path: Path) -> Iterator[MountedDisk]:
    """Skipped where this process may not mount."""
    root = tmp_path / "disk"
    root.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(root)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        yield MountedDisk(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.fixture(params=["tmpfs", "ENOSPC", "EDQUOT"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A real disk, and simulated ones that are full or whose quota is used up."""
    if request.param == "tmpfs":
        return request.getfixturevalue("mounted_disk")  # type: ignore[no-any-return]
    return SimulatedDisk(tmp_path, monkeypatch, getattr(errno, request.param))
