"""Copies a prepared avatar under another id, where preparing one would take too long."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from models.avatar.store import META, AvatarStore

SEALED = ("id", "version", "sha256", "format")  # keys of avatar.json that the store writes


def copy_avatar(original: Path, store: AvatarStore, avatar_id: str, force: bool = False, **changes: Any) -> None:
    """original: the folder of a prepared avatar. changes: other values for keys of its avatar.json."""
    facts = json.loads((original / META).read_text())
    with store.write(avatar_id, force) as draft:
        for path in original.iterdir():
            if path.name != META:
                shutil.copy(path, draft.folder / path.name)
        draft.meta |= {key: value for key, value in facts.items() if key not in SEALED} | changes
