"""Folders that appear, and are replaced, in one step. Knows nothing of what is in them."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working folder
RENAME_EXCHANGE = 2  # linux/fs.h: swap the two names atomically
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # an old kernel, or a file system such as NFS


def exchange(new: Path, old: Path) -> None:
    """Swap two folders of one parent: nobody ever sees `old` missing.

    Where the system cannot swap, three renames do it, and a crash between them leaves `.aside-<name>`, from which
    `restore_asides` brings the old folder back. Raises OSError.
    """
    if not _swap(new, old):
        aside = aside_of(old)
        old.rename(aside)
        new.rename(old)
        aside.rename(new)


def aside_of(folder: Path) -> Path:
    """Where a folder stands aside while it is replaced."""
    return folder.with_name(f".aside-{folder.name}")


def restore_asides(root: Path) -> list[str]:
    """Finish replacements that a crash cut short: put the old folder back where its name is free. Returns the names."""
    restored = []
    for aside in sorted(root.glob(".aside-*")):
        name = aside.name.removeprefix(".aside-")
        if not (root / name).exists():
            aside.rename(root / name)
            restored.append(name)
    return restored


def _swap(first: Path, second: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE. False where it is not supported."""
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
    """Force a flat folder, and with `files` everything in it, to the disk."""
    for path in [*(sorted(folder.iterdir()) if files else ()), folder]:
        if path.is_dir() and os.name == "nt":
            continue  # Windows cannot open a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
