"""Stores chat jobs and conversations on disk: one small JSON file each, which is always replaced as a whole.

No age depends on the wall clock: whether a job is abandoned is measured by watching its file, and files expire in time
during which the server ran (models.runtime.service_clock).
"""

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

from deployments.common.messages import SpeechOptions
from models.errors import CorruptError, IdError, NotFoundError
from models.runtime.atomic_file import replace_file
from models.runtime.ids import check_id, path_under
from models.runtime.service_clock import ServiceClock

Status = Literal["queued", "thinking", "speaking", "done", "failed"]
UNFINISHED = ("queued", "thinking", "speaking")
OPTIONS = frozenset(option.name for option in fields(SpeechOptions))
PRIVATE = OPTIONS | {"attempt", "heard"}  # clients do not get these


@dataclass(slots=True)
class ChatJob:
    """One message and its spoken answer. Clients get `public()`."""

    job_id: str
    session_id: str
    message: str
    created_s: float
    status: Status = "queued"
    progress: float = 0.0  # 0 to 1: share of the reply that was heard, or generated without viewers; never decreases
    reply: str = ""  # the answer so far
    written: bool = False  # the reply is complete
    video_url: str | None = None  # set when the session's video has a part of the answer
    start_s: float = 0.0  # where the answer begins in that video
    error: dict[str, str] | None = None  # also while the part before the error is still spoken
    warnings: list[str] = field(default_factory=list)  # parts of the reply that cannot be spoken
    interrupted: bool = False
    options: SpeechOptions = field(default_factory=SpeechOptions)
    saying: str | None = None  # the part of the reply that Stitch has received, while it speaks
    frames: int = 0  # video frames of the answer so far
    heard: str | None = None  # the sentences that viewers have begun to hear; None: there are no viewers
    # first_token_ms, first_frame_ms; for the answer so far: ttff_ms, duration_s, stages; at the end: rtf
    latency: dict[str, Any] = field(default_factory=dict)
    attempt: int = 0  # how often a Chat replica has resumed the job

    @property
    def finished(self) -> bool:
        return self.status not in UNFINISHED

    def to_json(self) -> dict[str, Any]:
        """All fields, as in the job's file. The options are on the same level as the other fields."""
        values = asdict(self)
        options = values.pop("options")
        return {**values, **options}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ChatJob:
        """The inverse of `to_json`; ignores unknown keys. Raises TypeError."""
        known = {entry.name for entry in fields(cls)} - {"options"}
        options = SpeechOptions(**{key: value for key, value in values.items() if key in OPTIONS})
        return cls(**{key: value for key, value in values.items() if key in known}, options=options)

    def public(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_json().items() if key not in PRIVATE}


class JobStore:
    """Jobs in one folder, which replicas may share. Writing a job's file is the heartbeat of its replica."""

    def __init__(self, root: Path, keep_s: float) -> None:
        """keep_s: after this time without a change, `expire` removes a job."""
        self.root = root
        self._keep_s = keep_s
        self._finished: set[str] = set()  # file names of finished jobs, which `abandoned` need not read again
        self._seen: dict[str, tuple[int, float]] = {}  # unfinished: modification time, and since when it is unchanged
        root.mkdir(parents=True, exist_ok=True)
        self._clock = ServiceClock(root)

    def new(self, session_id: str, message: str, **values: Any) -> ChatJob:
        """A job with a new id. It is not written yet."""
        return ChatJob(uuid.uuid4().hex, session_id, message, time.time(), **values)

    def write(self, job: ChatJob) -> None:
        """Raises OSError."""
        replace_file(self._path(job.job_id), json.dumps(job.to_json()).encode(), sync=job.finished)

    def read(self, job_id: str) -> ChatJob:
        """Raises IdError, NotFoundError, CorruptError."""
        path = self._path(job_id)
        try:
            return ChatJob.from_json(json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise NotFoundError(
                f"There is no job {job_id!r}.", "POST /chat starts a job; finished jobs are deleted after a while."
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(f"The file of the job {job_id!r} is damaged.", "Send the message again.") from error

    def abandoned(self, lease_s: float) -> Iterator[ChatJob]:
        """Claim the unfinished jobs that were not written for lease_s while they were watched, from the first call on.

        Of all replicas, one gets each attempt.

        Repeated calls read each finished job once, so a call costs a listing of the folder plus the new files.
        """
        names = {name for name in os.listdir(self.root) if name.endswith(".json")}  # noqa: PTH208 - only names
        self._finished &= names
        self._seen = {name: seen for name, seen in self._seen.items() if name in names - self._finished}
        for name in names - self._finished:
            with contextlib.suppress(OSError, NotFoundError, CorruptError, IdError):
                if self._unchanged_s(name) < lease_s:
                    continue
                job = self.read(name.removesuffix(".json"))
                if job.finished:
                    self._finished.add(name)
                elif self._claim(job):
                    yield job

    def expire(self) -> int:
        """Remove jobs and claims that were last written more than keep_s ago; return how many. Call it every minute."""
        return _expire(self.root, self._clock, self._keep_s)

    def _claim(self, job: ChatJob) -> bool:
        """Whether this caller gets the job's next attempt: only one process can create the claim file."""
        job.attempt += 1
        try:
            (self.root / f"{job.job_id}.{job.attempt}.claim").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _unchanged_s(self, name: str) -> float:
        """For how long this object has seen the file unchanged. Raises OSError."""
        written_ns, now_s = (self.root / name).stat().st_mtime_ns, time.monotonic()
        seen_ns, since_s = self._seen.get(name, (written_ns, now_s))
        self._seen[name] = (written_ns, since_s if seen_ns == written_ns else now_s)
        return now_s - self._seen[name][1]

    def _path(self, job_id: str) -> Path:
        return self.root / f"{check_id(job_id, 'job id')}.json"


class Conversations:
    """The messages of each session, in one folder: `[{"role", "content"}, …]`, the oldest first, of limited length."""

    def __init__(self, root: Path, max_messages: int, max_chars: int, keep_s: float) -> None:
        """keep_s: after this time without a change, `expire` removes a conversation."""
        self.root = root
        self._max_messages = max_messages
        self._max_chars = max_chars
        self._keep_s = keep_s
        root.mkdir(parents=True, exist_ok=True)
        self._clock = ServiceClock(root)

    def read(self, session_id: str) -> list[dict[str, str]]:
        """The messages; none if there is no file, or if it is damaged. Raises IdError."""
        try:
            messages = json.loads(self._path(session_id).read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        return [m for m in messages if isinstance(m, dict) and m.keys() >= {"role", "content"}]

    def add(self, session_id: str, user: str, assistant: str) -> None:
        """Append a message and its answer, and drop the oldest beyond the limits. Raises IdError, OSError."""
        messages = [*self.read(session_id), {"role": "user", "content": user}]
        if assistant:
            messages.append({"role": "assistant", "content": assistant})
        messages = messages[-self._max_messages :]
        while len(messages) > 1 and sum(len(m["content"]) for m in messages) > self._max_chars:
            messages.pop(0)
        replace_file(self._path(session_id), json.dumps(messages).encode())

    def delete(self, session_id: str) -> None:
        """Raises IdError."""
        self._path(session_id).unlink(missing_ok=True)

    def expire(self) -> None:
        """Remove conversations that were last written more than keep_s ago. Call it every minute."""
        _expire(self.root, self._clock, self._keep_s)

    def _path(self, session_id: str) -> Path:
        return path_under(self.root, session_id, "session id").with_suffix(".json")


def _expire(root: Path, clock: ServiceClock, keep_s: float) -> int:
    """Remove the files that were last written more than keep_s ago; return how many. Raises OSError."""
    clock.tick()
    count = 0
    for path in root.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):
            if clock.age_s(path.stat().st_mtime) > keep_s:
                path.unlink()
                count += 1
    return count
