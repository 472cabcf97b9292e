"""The folders of avatars that are being written. A file beside each is held by its process, from the request on."""

from __future__ import annotations

import shutil
from pathlib import Path

from models.runtime.held_file import HeldFile, is_abandoned

PREFIX, HELD = ".draft-", ".held"


def hold_draft(folder: Path) -> HeldFile:
    """Hold a draft, whose folder need not exist yet. The caller has the folder of all avatars locked."""
    return HeldFile(_held_path(folder))


def draft_ids(root: Path) -> set[str]:
    """Ids of the avatars that are being written or wait for it, in any process."""
    return {path.name.removeprefix(PREFIX).split(".")[0] for path in root.glob(f"{PREFIX}*{HELD}")}


def abandoned_drafts(root: Path) -> list[Path]:
    """The folders of drafts whose process has died."""
    drafts = {path.with_name(path.name.removesuffix(HELD)) for path in root.glob(f"{PREFIX}*")}
    return [draft for draft in sorted(drafts) if is_abandoned(_held_path(draft))]


def delete_draft(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _held_path(folder).unlink(missing_ok=True)


def _held_path(folder: Path) -> Path:
    return folder.with_name(folder.name + HELD)
