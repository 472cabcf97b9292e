"""Recognises the errors of a full disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import DiskFullError

FULL = (errno.ENOSPC, errno.EDQUOT)  # no free block, or the quota of the file system is used up


def disk_full_error(error: BaseException, path: Path | None = None) -> DiskFullError | None:
    """The DiskFullError for an OSError that a full disk has caused; None for any other error.

    path: what was written, if the error does not name it.
    """
    if isinstance(error, DiskFullError):
        return error
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    name = path or error.filename or "A file"
    return DiskFullError(
        f"The disk is full: {name} cannot be written.",
        "Free space on it, for example by deleting sessions or avatars, then send the request again.",
    )


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Raise DiskFullError in place of the OSError of a full disk. path: what the block writes."""
    try:
        yield
    except OSError as error:
        if (full := disk_full_error(error, path)) is None:
            raise
        raise full from error
