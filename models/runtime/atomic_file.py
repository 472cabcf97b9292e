"""Writes small files atomically: a reader sees the old file or the new one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from models.runtime.disk_full import writing_to


def replace_file(path: Path, data: bytes, sync: bool = True) -> None:
    """Replace `path` with a file that holds `data`. sync: write it to disk (fsync) before it becomes visible.

    Raises DiskFullError, and other OSErrors.
    """
    replace_files({path: data}, sync)


def replace_files(contents: Mapping[Path, bytes], sync: bool = True) -> None:
    """Replace several files, in order. All are written before the first becomes visible, so a full disk changes none.

    Raises DiskFullError, and other OSErrors.
    """
    parts = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}") for path in contents}
    try:
        for path, part in parts.items():
            with writing_to(path), part.open("wb") as file:
                file.write(contents[path])
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
