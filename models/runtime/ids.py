"""Checks ids of avatars and sessions. Every path made from a caller's string goes through `path_under`."""

from __future__ import annotations

import re
from pathlib import Path

from models.errors import IdError

ID_PATTERN = re.compile(r"[a-z0-9_-]{1,64}")
MAX_QUOTED_CHARS = 80  # characters of a wrong id that the error repeats


def check_id(value: str, what: str = "id") -> str:
    """Return `value` if it is 1 to 64 characters of a-z, 0-9, `_` and `-`. Raises IdError."""
    if not isinstance(value, str) or not ID_PATTERN.fullmatch(value):
        shown = repr(
            value[:MAX_QUOTED_CHARS] + "…" if isinstance(value, str) and len(value) > MAX_QUOTED_CHARS else value
        )
        raise IdError(f"{shown} is not a valid {what}.", "Use 1 to 64 characters of a-z, 0-9, '_' and '-'.")
    return value


def path_under(root: Path, value: str, what: str = "id") -> Path:
    """The path of id `value` directly under `root`. Raises IdError, also if it is a link to elsewhere."""
    path = (root / check_id(value, what)).resolve()
    if path.parent != root.resolve():
        raise IdError(f"{value!r} points outside its folder.", "Use an id that is not a symbolic link.")
    return path
