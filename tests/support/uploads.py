"""Uploads as the ingress stores them, for tests of the stages that read them. WARMTALK_HOME must be set."""

from __future__ import annotations

import uuid
from pathlib import Path

from deployments.common.paths import UPLOADS, output_path


def stored(data: bytes) -> str:
    """The path of a new upload."""
    path = output_path(UPLOADS) / uuid.uuid4().hex / "The upload"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return str(path)


def left_uploads() -> list[Path]:
    """The uploads that were not deleted, and their folders."""
    folders = [path for path in output_path(UPLOADS).glob("*") if path.is_dir()]
    return [path for folder in folders for path in folder.rglob("*")]
