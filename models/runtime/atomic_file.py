"""How small files are written so that a reader never sees half of one. Knows nothing of what is in them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace_file(path: Path, data: bytes, sync: bool = True) -> None:
    """Put a new file in the place of `path`; with `sync` it is on the disk before it appears."""
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
