"""Rebuilds damaged session files from the others: session.json from the sidecar, the index from the video.

A crash only leaves an incomplete end, which `SessionFile.recover` removes. This module is for other damage: an empty or
unreadable session.json, and lines of the index that cannot be read although later ones were synced to the disk.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from models.errors import ConfigError, CorruptError
from models.media.encode import VIDEO_TIMESCALE, MediaSpec, init_segment
from models.runtime.atomic_file import replace_files
from models.stitch import index
from models.stitch.disk import INDEX, LOCK, META, VIDEO, SessionMeta, starts_with
from models.stitch.index import Record, Totals
from models.stitch.sidecar import header, sidecar_path


def empty_totals(meta: SessionMeta) -> Totals:
    """The state of a session without video."""
    return Totals(len(meta.init), len(index.header(meta.generation)))


def meta_file(folder: Path, meta: SessionMeta) -> dict[Path, bytes]:
    return {folder / META: meta.to_json()}


def empty_files(folder: Path, meta: SessionMeta) -> dict[Path, bytes]:
    """The files of a session without video. The index is last: it is valid only together with the video."""
    video = folder / VIDEO
    return {
        video: meta.init,
        sidecar_path(video): header(meta),
        folder / INDEX: index.header(meta.generation),
    }


def read_meta(folder: Path) -> SessionMeta:
    """The content of session.json, or what the sidecar says if it is damaged. Raises CorruptError, OSError."""
    try:
        return SessionMeta.from_json((folder / META).read_bytes())
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        if (meta := _rebuilt_meta(folder)) is not None:
            return meta
        raise CorruptError(
            f"{folder / META} is damaged: {error}.", f"Delete the session: DELETE /sessions/{folder.name}."
        ) from error


def repair_files(folder: Path, meta: SessionMeta, sync: bool) -> None:
    """Complete a reset that a crash has interrupted, and repair damage; the caller holds the session's lock.

    Raises CorruptError for damage that cannot be repaired, OSError.
    """
    for part in folder.glob(".*"):  # of files that a killed process was replacing
        part.unlink(missing_ok=True)
    if (folder / META).read_bytes() != meta.to_json():
        replace_files(meta_file(folder, meta), sync)
    video, ours = folder / VIDEO, starts_with(folder / INDEX, index.header(meta.generation))
    size = video.stat().st_size if video.is_file() else 0
    remedy = f"Copy the video, then reset the session: GET /reset?session_id={folder.name}."
    if size < len(meta.init) or (not ours and index.has_header(folder / INDEX)):
        return replace_files(empty_files(folder, meta), sync)
    if not ours or not starts_with(video, meta.init):
        raise CorruptError(f"The files in {folder} do not match.", remedy)
    totals = [empty_totals(meta), *(after for _, after in index.read(folder / INDEX, empty_totals(meta), size))][-1]
    if is_damaged(folder / INDEX, totals):
        repaired = _repaired_index(folder, totals, meta.spec.fps)
        if repaired is None:
            raise CorruptError(f"{folder / INDEX} is damaged after frame {totals.frames}.", remedy)
        replace_files({folder / INDEX: repaired}, sync)


def _rebuilt_meta(folder: Path) -> SessionMeta | None:
    """The content of session.json, from the sidecar; None if sidecar, video and index are not of one session."""
    try:
        with sidecar_path(folder / VIDEO).open("rb") as file:
            first = index.decode_record(file.readline()) or {}
        created_s = (folder / LOCK).stat().st_mtime  # the lock is created with the session and never written
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created_s))
        spec = MediaSpec(**first["spec"])
        about = {name: str(first[name]) for name in ("session_id", "avatar_id", "avatar_version", "generation")}
        meta = SessionMeta(**about, created=created, spec=spec, init=init_segment(spec))
    except (OSError, KeyError, TypeError, ValueError, ConfigError):
        return None
    ours = starts_with(folder / INDEX, index.header(meta.generation)) and starts_with(folder / VIDEO, meta.init)
    return meta if ours else None


def is_damaged(path: Path, totals: Totals) -> bool:
    """Whether the index goes on after `totals` with a line that no crash can leave: it comes before a synced one.

    Fragments before an `end` are synced to the disk, so an unreadable line before an `end` is damage.
    """
    with path.open("rb") as file:
        file.seek(totals.index_bytes)
        first = file.readline()
        record = index.decode_record(first)
        if not first or (record is not None and totals.after(record, len(first)) is not None):
            return False  # the end, or a line whose fragment is missing in the video
        return any((index.decode_record(line) or {}).get("type") == "end" for line in file)


@dataclass(slots=True)
class _IndexRepair:
    """Builds the rest of an index from its readable lines. A gap between them becomes one fragment of the video."""

    totals: Totals  # of the lines so far
    fps: int
    video: BinaryIO
    lines: list[bytes] = field(default_factory=list)
    _starts: dict[int, Record] = field(default_factory=dict)  # utterance → its start, if that came before a gap

    def add(self, line: bytes) -> None:
        """Add the next line of the damaged index; unreadable ones are skipped."""
        record = index.decode_record(line)
        if record is None or self._keep(record):
            return
        if record.get("type") == "start":
            self._starts[record.get("utterance", 0)] = record
        elif record.get("type") == "fragment" and self._is_intact(record):
            self._bridge(record)
            self._keep(record)

    def _keep(self, record: Record) -> bool:
        """Add a record if it continues the index."""
        line = index.encode_record(record)
        after = self.totals.after(record, len(line))
        if after is not None:
            self.lines.append(line)
            self.totals = after
        return after is not None

    def _is_intact(self, record: Record) -> bool:
        """Whether the fragment lies after a gap, and the video holds its data."""
        try:
            if record["at"] < self.totals.video_bytes or record["utterance"] < self.totals.utterances:
                return False
            self.video.seek(record["at"])
            return bool(zlib.crc32(self.video.read(record["bytes"])) == record["crc32"])
        except (KeyError, TypeError, ValueError):
            return False

    def _bridge(self, record: Record) -> None:
        """Add what is missing before the fragment: starts of utterances, and the video in between as one fragment."""
        for number in range(self.totals.utterances + 1, record["utterance"] + 1):
            start = {"type": "start", "utterance": number, "tick": self.totals.clock.video_ticks, "text": ""}
            self._keep(self._starts.get(number, start))
        totals, size = self.totals, record["at"] - self.totals.video_bytes
        if not size:
            return
        self.video.seek(totals.video_bytes)
        ticks = record["video"][0] - totals.clock.video_ticks
        gap = {
            "type": "fragment",
            "at": totals.video_bytes,
            "bytes": size,
            "crc32": zlib.crc32(self.video.read(size)),
            "frames": ticks * self.fps // VIDEO_TIMESCALE,
            "video": [totals.clock.video_ticks, ticks],
            "audio": [totals.clock.audio_samples, record["audio"][0] - totals.clock.audio_samples],
            "key": True,
            "epoch": record["epoch"],
            "utterance": totals.utterances,
        }
        self._keep(gap)


def _repaired_index(folder: Path, totals: Totals, fps: int) -> bytes | None:
    """The content of index.jsonl without its damage after `totals`; None if the rest cannot be used."""
    with (folder / INDEX).open("rb") as old, (folder / VIDEO).open("rb") as video:
        head = old.read(totals.index_bytes)
        repair = _IndexRepair(totals, fps, video)
        for line in old:
            repair.add(line)
    return head + b"".join(repair.lines) if repair.totals.frames > totals.frames else None
