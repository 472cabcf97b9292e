"""Replaces a folder by another atomically, and syncs folders to disk."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working directory
RENAME_EXCHANGE = 2  # linux/fs.h: exchange the two names atomically
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # an old kernel, or a file system such as NFS


def exchange(new: Path, old: Path) -> None:
    """Exchange two folders of one parent atomically: `old` is never missing.

    Where the system cannot exchange names, three renames are used. A crash between them leaves `.aside-<name>`, from
    which `restore_asides` restores the old folder. Raises OSError.
    """
    if not _swap(new, old):
        aside = aside_of(old)
        old.rename(aside)
        new.rename(old)
        aside.rename(new)


def aside_of(folder: Path) -> Path:
    """Return the temporary name of a folder while it is replaced."""
    return folder.with_name(f".aside-{folder.name}")


def restore_asides(root: Path) -> list[str]:
    """Undo replacements that a crash interrupted: restore old folders whose names are free. Returns the names."""
    restored = []
    for aside in sorted(root.glob(".aside-*")):
        name = aside.name.removeprefix(".aside-")
        if not (root / name).exists():
            aside.rename(root / name)
            restored.append(name)
    return restored


def _swap(first: Path, second: Path) -> bool:
    """Call renameat2(2) with RENAME_EXCHANGE. Returns False where it is not supported."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def sync_folder(folder: Path, files: bool = True) -> None:
    """fsync a flat folder, and with `files` all files in it."""
    for path in [*(sorted(folder.iterdir()) if files else ()), folder]:
        if path.is_dir() and os.name == "nt":
            continue  # Windows cannot open a folder as a file
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
