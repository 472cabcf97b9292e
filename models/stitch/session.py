"""The growing file of one session.

    <root>/<session id>/
        session.json        id, avatar, media spec, init segment; a reset gives it a new generation
        full_session.mp4    the init segment and all fragments so far
        full_session.sidecar.jsonl   how each frame was made (models.stitch.sidecar)
        index.jsonl         one line per fragment and per utterance event (models.stitch.index)
        epoch               the fencing epoch: how often the session has changed its writer
        lock                locked during each change, never replaced

Write order. The data of a fragment is written to the video first, then its line to the index; the line is the commit.
session.json is the commit of a new or reset session: an index of another generation is replaced by an empty one. So a
crash at any byte leaves incomplete data at the end, which `recover` removes, and never an incomplete fragment.

Durability. `append` returns after the data has reached the operating system, so a crash of the process loses nothing.
With `sync="utterance"`, fsync runs at the end of each utterance, so a power failure loses at most the last utterance.

One writer. Taking over a session increments its epoch. Each change is made under the lock and compares the epoch first,
so a replica that has lost the session gets FencedError and writes nothing. The lock is flock(2): a shared file system
must support it across hosts (NFS 4, CephFS, EFS, Lustre with `-o flock`).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from models.errors import ConfigError, FencedError, SessionNotFound
from models.live.cues import Cue
from models.media.encode import VIDEO_TIMESCALE, Clock, MediaSpec
from models.runtime.atomic_file import replace_files
from models.runtime.disk_full import writing_to
from models.runtime.file_lock import hold_lock
from models.stitch import index
from models.stitch.disk import (
    INDEX,
    LOCK,
    META,
    VIDEO,
    Recovery,
    SessionMeta,
    raise_epoch,
    starts_with,
    stored_epoch,
    write_at,
)
from models.stitch.repair import empty_files, empty_totals, is_damaged, meta_file, read_meta, repair_files
from models.stitch.sidecar import Record, SidecarWriter, header, sidecar_path
from models.types import Fragment

UNVERIFIED = -1  # no writer's epoch
Sync = Literal["never", "utterance", "fragment"]


class SessionFile:
    """One session on disk: append-only, crash-safe, with one writer at a time and any number of readers.

    A new object only reads. `append` and the other changes take over the session when first called. With `spec`, a
    session is created if the folder contains none. Not thread-safe.

    Raises: SessionNotFound without `spec` if there is no session; CorruptError for a damaged session.json; ConfigError
    if the picture or audio format of the session differs from `spec`.
    """

    def __init__(
        self,
        folder: Path,
        spec: MediaSpec | None = None,
        *,
        avatar_id: str = "",
        avatar_version: str = "",
        sync: Sync = "utterance",
    ) -> None:
        self.folder = Path(folder)
        self._sync, self._synced = sync, sync != "never"
        self._epoch: int | None = None
        self._video: io.FileIO | None = None  # open only in a writer
        self._index: io.FileIO | None = None
        self._sidecar: SidecarWriter | None = None
        if not (self.folder / META).is_file():
            if spec is None:
                raise SessionNotFound(
                    f"There is no session {self.folder.name!r}.",
                    "Check the id, or speak in it to create it.",
                )
            self._create(SessionMeta.new(self.folder.name, avatar_id, avatar_version, spec))
        self._meta = read_meta(self.folder)
        if spec is not None and spec.format != self.spec.format:
            raise ConfigError(
                f"The session is {self.spec.format}, not {spec.format}.",
                "Reset the session, or use another session id.",
            )
        self._totals = self._empty()
        self._transcript = index.TranscriptIndex("", self._totals)
        self.refresh()

    @property
    def path(self) -> Path:
        """The video file."""
        return self.folder / VIDEO

    @property
    def spec(self) -> MediaSpec:
        """The spec to encode with: the one that the session was created with."""
        return self._meta.spec

    @property
    def session_id(self) -> str:
        return self._meta.session_id

    @property
    def avatar_id(self) -> str:
        return self._meta.avatar_id

    @property
    def avatar_version(self) -> str:
        return self._meta.avatar_version

    @property
    def init_segment(self) -> bytes:
        return self._meta.init

    @property
    def clock(self) -> Clock:
        """Where the next utterance starts."""
        return self._totals.clock

    @property
    def frames(self) -> int:
        return self._totals.frames

    @property
    def position(self) -> int:
        """The timeline position after the last frame shown, idle motion included."""
        return self._totals.position

    @property
    def closed(self) -> bool:
        """Whether speaking in the session is refused until it is reset."""
        return self._totals.closed

    @property
    def duration_s(self) -> float:
        return self._totals.clock.video_ticks / VIDEO_TIMESCALE

    @property
    def size(self) -> int:
        """Size of the committed video in bytes. Readers must stop here: the file may contain an incomplete fragment."""
        return self._totals.video_bytes

    @property
    def video_tag(self) -> str:
        """An id of the video file: constant while the file grows, new after a reset. Raises OSError."""
        return f"{self._meta.generation}-{self.path.stat().st_ino:x}"

    @property
    def epoch(self) -> int | None:
        """The fencing epoch that this object writes under; None if it only reads."""
        return self._epoch

    def refresh(self) -> None:
        """Read what another process has added. The cost is proportional to what is new."""
        meta = read_meta(self.folder)
        if meta.generation != self._meta.generation:
            self._meta = meta
            self._totals = self._empty()  # the length of the init segment may have changed
        self._totals = self._read_records(self._totals)[-1][1]

    def is_damaged(self) -> bool:
        """Whether the index has damage in its middle: readers see only what comes before. `recover` repairs it."""
        return is_damaged(self.folder / INDEX, self._totals)

    def records(self) -> Iterator[index.Record]:
        """The records of the index, oldest first: fragments (`at`, `bytes`, `frames`, …) and utterance events."""
        for record, _ in self.read_since(None)[1:]:
            yield record

    def read_since(self, since: index.Totals | None) -> list[tuple[index.Record, index.Totals]]:
        """({}, since), then each later record with the totals after it; all records if `since` is None."""
        return self._read_records(since or self._empty())

    def change_marker(self) -> tuple[int, int, int]:
        """A cheap value that changes with every write. Its first item, the epoch, changes with every writer."""
        found = (self.folder / INDEX).stat()
        return stored_epoch(self.folder) or 0, found.st_size, found.st_mtime_ns

    def transcript(self) -> list[index.UtteranceRecord]:
        """What was said and when. The cost is proportional to what is new."""
        if self._transcript.generation != self._meta.generation:
            self._transcript = index.TranscriptIndex(self._meta.generation, self._empty())
        return self._transcript.extend(self._read_records(self._transcript.read))

    # --- writing

    def append(self, fragment: Fragment, position: int | None = None, pause: bool = False) -> None:
        """Add a fragment that starts at `clock`, at constant cost.

        position: timeline position of its first frame; None if it continues the last fragment. pause: the fragment
        belongs to no utterance.

        Raises: FencedError if the session was taken over, reset or extended by another writer; ConfigError for a
        fragment with other codec settings; OSError if the disk is full, in which case the session is unchanged.
        """
        with self._writing():
            assert self._video is not None
            if fragment.init and fragment.init != self._meta.init:
                raise ConfigError("The fragment has other encoder settings than the session.", "Reset the session.")
            record = index.fragment_record(fragment, self._totals, self._epoch or 0, position, pause)
            if self._totals.after(record, 0) is None:
                raise FencedError(
                    f"The fragment starts at {fragment.video_start, fragment.audio_start}, the session ends at "
                    f"{self.clock.video_ticks, self.clock.audio_samples}.",
                    "Start the utterance again at the end of the session.",
                )
            write_at(self._video, self._totals.video_bytes, fragment.data)
            if self._sync == "fragment":
                with self._syncing():
                    os.fsync(self._video.fileno())
            self._commit(record)

    def add_to_sidecar(self, *records: Record) -> None:
        """Add sidecar records; call it before the frames they describe are appended. Raises FencedError, OSError."""
        with self._writing():
            assert self._sidecar is not None
            self._sidecar.append(records)

    def start_utterance(self, text: str) -> int:
        """Record that an utterance with this text starts here. Returns its number, from 1. Raises FencedError."""
        with self._writing():
            number = self._totals.utterances + 1
            self._commit({"type": "start", "utterance": number, "tick": self.clock.video_ticks, "text": text})
            return number

    def add_sentence(self, cue: Cue) -> None:
        """Record a sentence, in seconds of the video. A later call with its number replaces it. Raises FencedError."""
        with self._writing():
            self._commit(index.sentence_record(cue, self._totals.utterances))

    def end_utterance(self, *, text: str | None = None, interrupted: bool = False) -> None:
        """Record the end of the utterance and sync it to the disk. Raises FencedError.

        text: the whole text, if it was not known at the start. interrupted: the utterance was ended early on purpose.
        """
        known: index.Record = {} if text is None else {"text": text}
        known |= {"interrupted": True} if interrupted else {}
        with self._writing(), self._syncing():
            assert self._video is not None and self._index is not None and self._sidecar is not None
            number, tick = self._totals.utterances, self.clock.video_ticks
            if self._synced:
                os.fsync(self._video.fileno())
                self._sidecar.sync()
            self._commit({"type": "end", "utterance": number, "tick": tick, **known})
            if self._synced:
                os.fsync(self._index.fileno())

    def finish(self) -> None:
        """Close the session: it stays readable, and nothing more can be said in it. Raises FencedError."""
        with self._writing():
            if not self.closed:
                self._commit({"type": "close"})

    def acquire(self) -> int:
        """Become the session's writer. Call it before each utterance; cheap if still the writer. Returns the epoch."""
        with self._lock():
            if self._epoch is None or stored_epoch(self.folder) != self._epoch:
                self._take_over()
            return self._epoch or 0

    def recover(self) -> Recovery:
        """Take over the session and truncate the video and the index to the last complete fragment."""
        with self._lock():
            return self._take_over()

    def reset(
        self, spec: MediaSpec | None = None, *, avatar_id: str | None = None, avatar_version: str | None = None
    ) -> None:
        """Take over the session and empty it. Open readers keep the old file, because the new one has another inode."""
        with self._lock():
            epoch = self._raise_epoch()
            old = read_meta(self.folder)
            new = SessionMeta.new(
                old.session_id,
                old.avatar_id if avatar_id is None else avatar_id,
                old.avatar_version if avatar_version is None else avatar_version,
                spec or old.spec,
            )
            replace_files(meta_file(self.folder, new) | empty_files(self.folder, new), self._synced)
            self._meta = new
            self._totals = self._empty()
            self._open_files(epoch)

    def close(self) -> None:
        """Close the files. The object can still read, and takes over the session again when it writes."""
        for file in (self._video, self._index, self._sidecar):
            if file is not None:
                file.close()
        self._video = self._index = self._sidecar = self._epoch = None

    # --- internal

    def _empty(self) -> index.Totals:
        return empty_totals(self._meta)

    def _read_records(self, since: index.Totals) -> list[tuple[index.Record, index.Totals]]:
        """({}, since), then each later record with its totals. No records if the index has another generation."""
        records: list[tuple[index.Record, index.Totals]] = [({}, since)]
        if starts_with(self.folder / INDEX, index.header(self._meta.generation)) and self.path.is_file():
            records += index.read(self.folder / INDEX, since, self.path.stat().st_size)
        return records

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return hold_lock(self.folder / LOCK)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock as the session's writer. Raises FencedError if another writer has taken over, DiskFullError."""
        with writing_to(self.folder), self._lock():
            if self._epoch is None:
                self._take_over()
            elif stored_epoch(self.folder) != self._epoch:
                raise FencedError(
                    f"The session {self.session_id!r} has a new writer; epoch {self._epoch} is no longer valid.",
                    "Send the request again. It is routed to the new writer.",
                )
            yield

    @contextlib.contextmanager
    def _syncing(self) -> Iterator[None]:
        """After a failed fsync the written data may be lost: the next writer, also this one, must verify it."""
        try:
            yield
        except OSError:
            self._epoch = UNVERIFIED
            raise

    def _create(self, meta: SessionMeta) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not (self.folder / META).is_file():  # another process may have created it first
                replace_files(empty_files(self.folder, meta) | meta_file(self.folder, meta), self._synced)

    def _raise_epoch(self) -> int:
        """Fence off other writers. The new epoch is ours only after `_open_files`."""
        self.close()
        return raise_epoch(self.folder, self._synced)

    def _take_over(self) -> Recovery:
        epoch = self._raise_epoch()
        # 1. repair session.json and the index, and find the last complete fragment
        self._meta = read_meta(self.folder)
        repair_files(self.folder, self._meta, self._synced)
        records = self._read_records(self._empty())
        with self.path.open("rb") as video:
            self._totals = records[index.verified(records[1:], video)][1]
        self._transcript = index.TranscriptIndex("", self._totals)  # it may contain records that are removed now
        # 2. remove what follows
        self._open_files(epoch)
        assert self._video is not None and self._index is not None
        recovery = Recovery(
            self.frames,
            os.fstat(self._video.fileno()).st_size - self._totals.video_bytes,
            os.fstat(self._index.fileno()).st_size - self._totals.index_bytes,
        )
        self._video.truncate(self._totals.video_bytes)
        self._index.truncate(self._totals.index_bytes)
        return recovery

    def _open_files(self, epoch: int) -> None:
        self._epoch = epoch
        self._video = (self.folder / VIDEO).open("r+b", buffering=0)
        self._index = (self.folder / INDEX).open("r+b", buffering=0)
        self._sidecar = SidecarWriter(sidecar_path(self.path), header(self._meta))

    def _commit(self, record: index.Record) -> None:
        assert self._index is not None
        line = index.encode_record(record)
        after = self._totals.after(record, len(line))
        assert after is not None, record
        write_at(self._index, self._totals.index_bytes, line)
        self._totals = after
