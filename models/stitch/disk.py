"""The files of a session's folder: their names, session.json, the fencing epoch, and safe writing at an offset."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import secrets
import time
import uuid
from pathlib import Path
from typing import Any

from models.media.encode import MediaSpec, init_segment
from models.runtime.atomic_file import replace_file

META, VIDEO, INDEX, EPOCH, LOCK = "session.json", "full_session.mp4", "index.jsonl", "epoch", "lock"
REPAIRED_EPOCHS = (1 << 32, 1 << 52)  # range of the random epoch that follows a damaged one
FORMAT = 1  # version of session.json and index.jsonl


@dataclasses.dataclass(frozen=True, slots=True)
class Recovery:
    """The result of recovering a session: its frames, and the bytes that were cut off the video and the index."""

    frames: int
    video_cut: int
    index_cut: int


@dataclasses.dataclass(frozen=True, slots=True)
class SessionMeta:
    """The content of session.json: what does not change between two resets of a session."""

    session_id: str
    avatar_id: str
    avatar_version: str
    created: str  # UTC, ISO 8601
    generation: str  # a random id, new after each reset
    spec: MediaSpec
    init: bytes

    @classmethod
    def new(cls, session_id: str, avatar_id: str, avatar_version: str, spec: MediaSpec) -> SessionMeta:
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(session_id, avatar_id, avatar_version, created, uuid.uuid4().hex, spec, init_segment(spec))

    def to_json(self) -> bytes:
        fields = {**dataclasses.asdict(self), "spec": self.spec.stored(), "init": self.init.hex(), "format": FORMAT}
        return json.dumps(fields, indent=2, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SessionMeta:
        """Raises ValueError, KeyError or TypeError for anything but the output of `to_json`."""
        fields: dict[str, Any] = json.loads(data)
        if not isinstance(fields, dict) or fields.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return cls(**{**fields, "spec": MediaSpec(**fields["spec"]), "init": bytes.fromhex(fields["init"])})


def write_at(file: io.FileIO, offset: int, data: bytes) -> None:
    """Write all of `data` at `offset`. If the disk refuses, truncate the file to `offset` and raise OSError."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.pwrite(file.fileno(), view, offset + len(data) - len(view)) :]
    except OSError:
        file.truncate(offset)
        raise


def stored_epoch(folder: Path) -> int | None:
    """The fencing epoch; 0 if the session has had no writer yet, None if the file is empty or incomplete."""
    try:
        data = (folder / EPOCH).read_bytes()
    except FileNotFoundError:
        return 0
    return int(data) if data.endswith(b"\n") and data.strip().isdigit() else None


def raise_epoch(folder: Path, sync: bool) -> int:
    """Store a new epoch and return it; the caller holds the session's lock. Raises OSError.

    After a damaged file it is random: a process that still writes under the lost epoch must not have the same one.
    """
    stored = stored_epoch(folder)
    first, end = REPAIRED_EPOCHS
    epoch = stored + 1 if stored is not None else first + secrets.randbelow(end - first)
    replace_file(folder / EPOCH, b"%d\n" % epoch, sync)
    return epoch


def starts_with(path: Path, head: bytes) -> bool:
    """Whether the file exists and starts with `head`."""
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head
    except FileNotFoundError:
        return False
