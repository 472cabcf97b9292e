"""What stands in a session's folder beside video and index: session.json, and how files are written safely."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from models.media.encode import MediaSpec, init_segment
from models.runtime.atomic_file import replace_file as replace_file

META, VIDEO, INDEX, EPOCH, LOCK = "session.json", "full_session.mp4", "index.jsonl", "epoch", "lock"
FORMAT = 1  # of session.json and index.jsonl


@dataclasses.dataclass(frozen=True, slots=True)
class Recovery:
    """What recovering a session found: its frames, and the debris that was cut off, in bytes."""

    frames: int
    video_cut: int
    index_cut: int


@dataclasses.dataclass(frozen=True, slots=True)
class SessionMeta:
    """session.json: what is fixed from a session's start to its reset."""

    session_id: str
    avatar_id: str
    avatar_version: str
    created: str  # UTC, ISO 8601
    generation: str  # another one after each reset
    spec: MediaSpec
    init: bytes

    @classmethod
    def new(cls, session_id: str, avatar_id: str, avatar_version: str, spec: MediaSpec) -> SessionMeta:
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(session_id, avatar_id, avatar_version, created, uuid.uuid4().hex, spec, init_segment(spec))

    def to_json(self) -> bytes:
        fields = {**dataclasses.asdict(self), "init": self.init.hex(), "format": FORMAT}
        return json.dumps(fields, indent=2, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SessionMeta:
        """Raises ValueError, KeyError or TypeError for anything that `to_json` has not made."""
        fields: dict[str, Any] = json.loads(data)
        if fields.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return cls(**{**fields, "spec": MediaSpec(**fields["spec"]), "init": bytes.fromhex(fields["init"])})


def write_at(file: io.FileIO, offset: int, data: bytes) -> None:
    """Write all of `data` at `offset`; where the disk refuses, cut the file back to `offset` and raise OSError."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.pwrite(file.fileno(), view, offset + len(data) - len(view)) :]
    except OSError:
        file.truncate(offset)
        raise


def starts_with(path: Path, head: bytes) -> bool:
    """Whether the file is there and begins with `head`."""
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head
    except FileNotFoundError:
        return False
