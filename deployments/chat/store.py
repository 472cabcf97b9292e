"""Chat jobs and conversations on disk: one small JSON each, replaced whole. Knows no model, no Ray and no HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from models.errors import CorruptError, IdError, NotFoundError
from models.runtime.atomic_file import replace_file
from models.runtime.ids import check_id, path_under

Status = Literal["queued", "thinking", "speaking", "done", "failed"]
UNFINISHED = ("queued", "thinking", "speaking")


@dataclass(slots=True)
class Job:
    """One message on its way to a spoken answer. What a client sees is `public()`."""

    job_id: str
    session_id: str
    message: str
    created_s: float
    status: Status = "queued"
    progress: float = 0.0  # 0 to 1: how much of the reply was heard, or made where nobody watches; it never goes back
    reply: str = ""  # as far as it has come
    written: bool = False  # the reply is whole
    video_url: str | None = None  # once the first piece is in the session's video
    start_s: float = 0.0  # where the answer begins in that video
    error: dict[str, str] | None = None
    interrupted: bool = False
    avatar_id: str | None = None
    enhance: bool | None = None
    voice: str | None = None
    speed: float | None = None
    saying: str | None = None  # as much of the reply as the voice was given, while it speaks
    frames: int = 0  # that were made of it
    heard: str | None = None  # its sentences that have begun to be heard by who watches; None: nobody does
    # first_token_ms, first_frame_ms; of what is made so far: ttff_ms, duration_s, stages; at the end: rtf
    latency: dict[str, Any] = field(default_factory=dict)
    attempt: int = 0  # how often a Chat replica has taken it up

    @property
    def finished(self) -> bool:
        return self.status not in UNFINISHED

    def public(self) -> dict[str, Any]:
        hidden = ("attempt", "heard", "avatar_id", "enhance", "voice", "speed")
        return {key: value for key, value in asdict(self).items() if key not in hidden}


class JobStore:
    """Jobs under one folder, which replicas may share. A file's modification time is its owner's sign of life."""

    def __init__(self, root: Path, keep_s: float) -> None:
        self.root = root
        self._keep_s = keep_s
        self._over: set[str] = set()  # names of files whose jobs are finished, and stay so: not to be read again
        root.mkdir(parents=True, exist_ok=True)

    def new(self, session_id: str, message: str, **options: Any) -> Job:
        """A job that is not written yet."""
        return Job(uuid.uuid4().hex, session_id, message, time.time(), **options)

    def write(self, job: Job) -> None:
        """Raises OSError."""
        replace_file(self._path(job.job_id), json.dumps(asdict(job)).encode(), sync=job.finished)

    def read(self, job_id: str) -> Job:
        """Raises IdError, NotFoundError, CorruptError."""
        path = self._path(job_id)
        try:
            return _job(json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise NotFoundError(
                f"There is no job {job_id!r}.", "POST /chat starts one; finished jobs are forgotten after a while."
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(f"The file of the job {job_id!r} is damaged.", "Send the message again.") from error

    def abandoned(self, lease_s: float) -> Iterator[Job]:
        """Unfinished jobs that nobody has written for `lease_s`; each is given to one caller only, ever, an attempt.

        Asked again and again, it reads each file once: its cost is that of what is new, and of a list of names.
        """
        names = {name for name in os.listdir(self.root) if name.endswith(".json")}  # noqa: PTH208 - names, and no more
        self._over &= names
        for name in names - self._over:
            with contextlib.suppress(OSError, NotFoundError, CorruptError, IdError):
                if time.time() - (self.root / name).stat().st_mtime < lease_s:
                    continue
                job = self.read(name.removesuffix(".json"))
                if job.finished:
                    self._over.add(name)
                elif self._claim(job):
                    yield job

    def expire(self) -> int:
        """Remove jobs, and claims of them, that were last written more than `keep_s` ago; how many there were."""
        old = [path for path in self.root.iterdir() if self._age_s(path) > self._keep_s]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _claim(self, job: Job) -> bool:
        """Whether this caller is the one that takes the job's next attempt: a file can be created once only."""
        job.attempt += 1
        try:
            (self.root / f"{job.job_id}.{job.attempt}.claim").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _age_s(self, path: Path) -> float:
        try:
            return time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _path(self, job_id: str) -> Path:
        return self.root / f"{check_id(job_id, 'job id')}.json"


def _job(values: dict[str, Any]) -> Job:
    known = {entry.name for entry in fields(Job)}
    return Job(**{key: value for key, value in values.items() if key in known})


class Conversations:
    """What was said in each session, bounded, under one folder: `[{"role", "content"}, …]`, the oldest first."""

    def __init__(self, root: Path, max_messages: int, max_chars: int, keep_s: float) -> None:
        self.root = root
        self._max_messages = max_messages
        self._max_chars = max_chars
        self._keep_s = keep_s
        root.mkdir(parents=True, exist_ok=True)

    def read(self, session_id: str) -> list[dict[str, str]]:
        """Empty where nothing was said, or the file is damaged. Raises IdError."""
        try:
            messages = json.loads(self._path(session_id).read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        return [m for m in messages if isinstance(m, dict) and m.keys() >= {"role", "content"}]

    def add(self, session_id: str, user: str, assistant: str) -> None:
        """Append an exchange and forget the oldest beyond the bounds. Raises IdError, OSError."""
        messages = [*self.read(session_id), {"role": "user", "content": user}]
        if assistant:
            messages.append({"role": "assistant", "content": assistant})
        messages = messages[-self._max_messages :]
        while len(messages) > 1 and sum(len(m["content"]) for m in messages) > self._max_chars:
            messages.pop(0)
        replace_file(self._path(session_id), json.dumps(messages).encode())

    def forget(self, session_id: str) -> None:
        """Raises IdError."""
        self._path(session_id).unlink(missing_ok=True)

    def expire(self) -> None:
        for path in self.root.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > self._keep_s:
                    path.unlink()

    def _path(self, session_id: str) -> Path:
        return path_under(self.root, session_id, "session id").with_suffix(".json")
