"""The sidecar of a video: JSON lines that describe how each of its frames was made. Append-only.

    full_session.mp4, full_session.sidecar.jsonl        out/demo.mp4, out/demo.sidecar.jsonl

One JSON object per line, distinguished by `type`. Frames count from 0 within the video, times are in seconds.

    video      the first line. format, generation (of the session, new after a reset), session_id, avatar_id,
               avatar_version, spec (MediaSpec: picture and audio format, and encoder settings)
    utterance  first_frame, text, engines (stage → engine)
    speech     frame (its first), seconds, text, phonemes [[symbol, start, end], …] relative to that frame, or []
    pause      first_frame: from here on nothing is said, until the next `speech` or `utterance` line
    frames     first, avatar_frames [k, …], transforms [[a, b, x, c, d, y], …] (frame px → 256 px crop), mouth [w, …]:
               avatar frame, face position, and weight of the generated mouth (0 to 1) of each frame

Crashes. `frames` lines are written before the frames are committed to the video, so every committed frame has its line,
and lines of frames that were never committed may remain. This gives two rules for readers: an `utterance` or `pause`
line invalidates all earlier lines about its first frame and later ones; and lines beyond the end of the video are
ignored. A line is valid if it ends in a newline and is JSON; a new writer first removes an incomplete last line. A
missing sidecar, or that of another session, is replaced by an empty one.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import CorruptError
from models.media.encode import MediaSpec
from models.runtime.atomic_file import replace_file
from models.stitch.disk import SessionMeta, starts_with, write_at
from models.stitch.index import decode_record, encode_record
from models.types import Float32, Phoneme, PreparedAvatar, Speech

FORMAT = 1
SUFFIX = ".sidecar.jsonl"
NEWEST_LINE_BYTES = 1 << 20  # upper limit of a line: 64 frames or a sentence
UNKNOWN = -1  # avatar frame of a video frame without a line

Record = dict[str, Any]


def sidecar_path(video: Path) -> Path:
    """The path of a video's sidecar."""
    return video.with_suffix(SUFFIX)


def header(meta: SessionMeta) -> bytes:
    """The first line of a session's sidecar."""
    names = ("generation", "session_id", "avatar_id", "avatar_version")
    about = {name: getattr(meta, name) for name in names}
    return encode_record({"type": "video", "format": FORMAT, **about, "spec": meta.spec.stored()})


def utterance_record(first_frame: int, text: str, engines: dict[str, str]) -> Record:
    return {"type": "utterance", "first_frame": first_frame, "text": text, "engines": dict(engines)}


def pause_record(first_frame: int) -> Record:
    return {"type": "pause", "first_frame": first_frame}


def speech_record(frame: int, speech: Speech) -> Record:
    phonemes = [[p.symbol, round(p.start_s, 4), round(p.end_s, 4)] for p in speech.phonemes]
    about = {"frame": frame, "seconds": round(speech.duration_s, 4), "text": speech.text}
    return {"type": "speech", **about, "phonemes": phonemes}


def frames_record(first: int, indices: npt.NDArray[np.int64], avatar: PreparedAvatar, mouth: Float32) -> Record:
    """indices: avatar frames `(n,)`. mouth: weights `(n,)`; frames without a face get weight 0."""
    transforms = np.round(avatar.transforms[indices].reshape(-1, 6).astype(np.float64), 6)
    weights = np.round(np.where(avatar.has_face[indices], mouth, 0).astype(np.float64), 3)
    return {
        "type": "frames",
        "first": first,
        "avatar_frames": indices.tolist(),
        "transforms": transforms.tolist(),
        "mouth": weights.tolist(),
    }


class SidecarWriter:
    """Appends lines to a sidecar that starts with `head`; a file with another start is replaced. Single writer."""

    def __init__(self, path: Path, head: bytes) -> None:
        if not starts_with(path, head):
            replace_file(path, head)
        self._file: io.FileIO = path.open("r+b", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        tail = os.pread(self._file.fileno(), min(size, NEWEST_LINE_BYTES), max(0, size - NEWEST_LINE_BYTES))
        self._end = max(len(head), size - (len(tail) - tail.rfind(b"\n") - 1))
        self._file.truncate(self._end)

    def append(self, records: Iterable[Record]) -> None:
        """Append records. Raises OSError if the disk is full; the sidecar is then unchanged."""
        lines = b"".join(map(encode_record, records))
        write_at(self._file, self._end, lines)
        self._end += len(lines)

    def sync(self) -> None:
        """Sync the file to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class SpokenUtterance:
    """An utterance of the video: frames first_frame to end_frame − 1."""

    first_frame: int
    end_frame: int
    text: str
    engines: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Sidecar:
    """The description of a video of n frames.

    avatar_frames: int64 `(n,)`, -1 where unknown. transforms: float32 `(n, 2, 3)`. mouth: float32 `(n,)`, weight of the
    generated mouth. phonemes: in seconds of the video.
    """

    session_id: str
    avatar_id: str
    avatar_version: str
    spec: MediaSpec
    avatar_frames: npt.NDArray[np.int64]
    transforms: Float32
    mouth: Float32
    utterances: list[SpokenUtterance] = field(default_factory=list)
    phonemes: list[Phoneme] = field(default_factory=list)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which frames have a line, `(n,)`."""
        known: npt.NDArray[np.bool_] = self.avatar_frames != UNKNOWN
        return known


def read_sidecar(path: Path, frames: int) -> Sidecar:
    """The sidecar of a video of `frames` frames. Raises OSError, and CorruptError for a file of another kind."""
    with path.open("rb") as file:
        records = list(_records(file))
    try:
        first = records[0]
        if first["type"] != "video" or first["format"] != FORMAT:
            raise ValueError(f"the format is not {FORMAT}")
        spec = MediaSpec(**first["spec"])
        about = {name: str(first[name]) for name in ("session_id", "avatar_id", "avatar_version")}
        return _build(records[1:], frames, spec, about)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(
            f"{path} is not a valid sidecar: {error!r}.", "Delete it and create the video again."
        ) from error


def committed_lines(path: Path) -> bytes:
    """The complete lines of a sidecar that may be growing; empty if there is no sidecar."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def enhanced_lines(lines: bytes, engine: str) -> bytes:
    """The sidecar lines after the faces were restored by `engine`: it becomes the Enhance engine of all utterances."""
    out = []
    for record in _records(io.BytesIO(lines)):
        if record["type"] == "utterance":
            record = {**record, "engines": {**record["engines"], "Enhance": engine}}
        out.append(encode_record(record))
    return b"".join(out)


def replace_with_sidecar(part: Path, video: Path, lines: bytes) -> None:
    """Move `part` to `video` and write `lines`, if any, as its sidecar. The video never has a wrong sidecar."""
    beside = sidecar_path(video)
    beside.unlink(missing_ok=True)
    part.replace(video)
    if lines:
        replace_file(beside, lines, sync=False)


def _records(file: Iterable[bytes]) -> Iterator[Record]:
    for line in file:
        record = decode_record(line)
        if record is not None:
            yield record


def _build(records: list[Record], frames: int, spec: MediaSpec, about: dict[str, str]) -> Sidecar:
    indices = np.full(frames, UNKNOWN, np.int64)
    transforms = np.full((frames, 2, 3), np.nan, np.float32)
    mouth = np.full(frames, np.nan, np.float32)
    utterances: list[Record] = []
    speeches: list[Record] = []
    pauses: list[Record] = []
    for record in records:
        if record["type"] in ("utterance", "pause"):  # invalidates earlier records about its first frame and later
            begin = record["first_frame"]
            utterances = [old for old in utterances if old["first_frame"] < begin]
            (utterances if record["type"] == "utterance" else pauses).append(record)
            speeches = [old for old in speeches if old["frame"] < begin]
            indices[begin:], transforms[begin:], mouth[begin:] = UNKNOWN, np.nan, np.nan
        elif record["type"] == "speech":
            speeches.append(record)
        elif record["type"] == "frames" and record["first"] < frames:
            part = slice(record["first"], record["first"] + len(record["mouth"]))
            room = len(indices[part])
            indices[part] = record["avatar_frames"][:room]
            transforms[part] = np.array(record["transforms"][:room], np.float32).reshape(-1, 2, 3)
            mouth[part] = record["mouth"][:room]
    return Sidecar(
        **about,
        spec=spec,
        avatar_frames=indices,
        transforms=transforms,
        mouth=mouth,
        utterances=_with_ends(utterances, frames),
        phonemes=list(_phonemes(speeches, [*utterances, *pauses], frames, spec.fps)),
    )


def _with_ends(utterances: list[Record], frames: int) -> list[SpokenUtterance]:
    """The utterances in the video. Each ends where the next one starts."""
    edges = [*(record["first_frame"] for record in utterances), frames]
    return [
        SpokenUtterance(edges[k], edges[k + 1], str(record["text"]), dict(record["engines"]))
        for k, record in enumerate(utterances)
        if edges[k] < frames
    ]


def _phonemes(speeches: list[Record], starts: list[Record], frames: int, fps: int) -> Iterator[Phoneme]:
    """All phonemes, in seconds of the video, cut at the next utterance or pause and at the end of the video."""
    edges = sorted({*(record["first_frame"] for record in starts), frames})
    for record in sorted(speeches, key=lambda record: int(record["frame"])):
        end_s = next((edge for edge in edges if edge > record["frame"]), frames) / fps
        at_s = record["frame"] / fps
        for symbol, start_s, stop_s in record["phonemes"]:
            if at_s + start_s < end_s:
                yield Phoneme(str(symbol), at_s + start_s, min(at_s + stop_s, end_s))
