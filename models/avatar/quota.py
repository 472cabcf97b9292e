"""Limits on the avatars of one folder. Built-in avatars do not count."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from models.errors import QuotaError


@dataclass(frozen=True, slots=True)
class AvatarQuota:
    """max_avatars: with those that are being prepared or wait for it. max_bytes: of all their files."""

    max_avatars: float = float("inf")
    max_bytes: float = float("inf")

    def check_count(self, ids: Collection[str]) -> None:
        """Raises QuotaError. ids: of all avatars, the new one included."""
        if len(ids) > self.max_avatars:
            raise QuotaError(
                f"There are {len(ids) - 1} avatars, with those being prepared; the limit is {self.max_avatars:g}.",
                "Remove some (DELETE /avatars/{id}), or raise max_avatars of Avatars.",
            )

    def check_bytes(self, size: int) -> None:
        """Raises QuotaError."""
        if size >= self.max_bytes:
            raise QuotaError(
                f"The avatars use {size / 2**30:.2f} GB; the limit is {self.max_bytes / 2**30:g} GB.",
                "Remove some (DELETE /avatars/{id}), or raise max_avatars_gb of Avatars.",
            )


def size_of(folder: Path) -> int:
    """Bytes of the files in a flat folder; 0 if it does not exist."""
    try:
        return sum(file.stat().st_size for file in os.scandir(folder))
    except FileNotFoundError:  # a file, or the folder, was removed meanwhile
        return 0
