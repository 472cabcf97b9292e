"""Writes small files atomically: a reader sees the old file or the new one."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace_file(path: Path, data: bytes, sync: bool = True) -> None:
    """Replace `path` with a file that holds `data`. sync: write it to disk (fsync) before it becomes visible."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
