"""What stands beside a video that we made: how each of its frames came about. JSON lines, only ever appended.

    full_session.mp4, full_session.sidecar.jsonl        out/demo.mp4, out/demo.sidecar.jsonl

One JSON object a line, told apart by `type`. Frames count from 0 within the video, times are in seconds.

    video      the first line. format, generation (the session's, another one after a reset), session_id, avatar_id,
               avatar_version, spec (MediaSpec: picture, sound, and how they are coded)
    utterance  first_frame, text, engines (stage → engine)
    speech     frame (its first), seconds, text, phonemes [[symbol, start, end], …] from that frame on, [] if not known
    pause      first_frame: from here on nothing is said, until a line of speech or an utterance says otherwise
    frames     first, avatar_frames [k, …], transforms [[a, b, x, c, d, y], …] (frame px → 256 px crop), mouth [w, …]:
               which avatar frame is shown, where its face lies, how much of the generated mouth it has, 0 to 1

Crashes. Lines of frames are written before those frames are committed to the video, so no committed frame lacks its
line; lines of frames that never came are left standing. Hence two rules for readers: an utterance, and a pause, take
back all that was said of their first frame and later, and what lies behind the video's end says nothing. A line counts
only if it ends in a newline and is JSON; a writer that takes over cuts off half a line first. A lost or foreign sidecar
is begun anew.
"""

from __future__ import annotations

import dataclasses
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
from models.stitch.disk import SessionMeta, replace_file, starts_with, write_at
from models.stitch.index import decode_record, encode_record
from models.types import Float32, Phoneme, PreparedAvatar, Speech

FORMAT = 1
SUFFIX = ".sidecar.jsonl"
NEWEST_LINE_BYTES = 1 << 20  # no line is longer: 64 frames or a sentence
UNKNOWN = -1  # avatar frame of a frame that no line speaks of

Record = dict[str, Any]


def sidecar_path(video: Path) -> Path:
    """Where the sidecar of a video lies."""
    return video.with_suffix(SUFFIX)


def header(meta: SessionMeta) -> bytes:
    """The first line of a session's sidecar."""
    names = ("generation", "session_id", "avatar_id", "avatar_version")
    about = {name: getattr(meta, name) for name in names}
    return encode_record({"type": "video", "format": FORMAT, **about, "spec": dataclasses.asdict(meta.spec)})


def utterance_record(first_frame: int, text: str, engines: dict[str, str]) -> Record:
    return {"type": "utterance", "first_frame": first_frame, "text": text, "engines": dict(engines)}


def pause_record(first_frame: int) -> Record:
    return {"type": "pause", "first_frame": first_frame}


def speech_record(frame: int, speech: Speech) -> Record:
    phonemes = [[p.symbol, round(p.start_s, 4), round(p.end_s, 4)] for p in speech.phonemes]
    about = {"frame": frame, "seconds": round(speech.duration_s, 4), "text": speech.text}
    return {"type": "speech", **about, "phonemes": phonemes}


def frames_record(first: int, indices: npt.NDArray[np.int64], avatar: PreparedAvatar, mouth: Float32) -> Record:
    """indices: the avatar's frames `(n,)`. mouth: weights `(n,)`; 0 is written for a frame without a face."""
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
    """Appends lines to a sidecar that begins with `head`; anything else there is replaced. One writer at a time."""

    def __init__(self, path: Path, head: bytes) -> None:
        if not starts_with(path, head):
            replace_file(path, head)
        self._file: io.FileIO = path.open("r+b", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        tail = os.pread(self._file.fileno(), min(size, NEWEST_LINE_BYTES), max(0, size - NEWEST_LINE_BYTES))
        self._end = max(len(head), size - (len(tail) - tail.rfind(b"\n") - 1))
        self._file.truncate(self._end)

    def append(self, records: Iterable[Record]) -> None:
        """Raises OSError where the disk is full; the sidecar stays as it was."""
        lines = b"".join(map(encode_record, records))
        write_at(self._file, self._end, lines)
        self._end += len(lines)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class SpokenUtterance:
    """An utterance of the video: its first frame, and the one behind its last."""

    first_frame: int
    end_frame: int
    text: str
    engines: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Sidecar:
    """What is known of a video of n frames.

    avatar_frames: int64 `(n,)`, -1 where not known. transforms: float32 `(n, 2, 3)`. mouth: float32 `(n,)`, weight of
    the generated mouth. phonemes: in seconds of the video.
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
        """Frames that a line speaks of, `(n,)`."""
        known: npt.NDArray[np.bool_] = self.avatar_frames != UNKNOWN
        return known


def read_sidecar(path: Path, frames: int) -> Sidecar:
    """The sidecar of a video of `frames` frames. Raises OSError, and CorruptError for a file that is none."""
    with path.open("rb") as file:
        records = list(_records(file))
    try:
        first = records[0]
        if first["type"] != "video" or first["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        spec = MediaSpec(**first["spec"])
        about = {name: str(first[name]) for name in ("session_id", "avatar_id", "avatar_version")}
        return _described(records[1:], frames, spec, about)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path} is no sidecar: {error!r}.", "Remove it, and make the video again.") from error


def committed_lines(path: Path) -> bytes:
    """The whole lines of a sidecar that somebody may be writing; none where there is no sidecar."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def enhanced_lines(lines: bytes, engine: str) -> bytes:
    """A sidecar's lines for the same frames, restored by `engine` afterwards: its utterances name it as Enhance's."""
    out = []
    for record in _records(io.BytesIO(lines)):
        if record["type"] == "utterance":
            record = {**record, "engines": {**record["engines"], "Enhance": engine}}
        out.append(encode_record(record))
    return b"".join(out)


def replace_with_sidecar(part: Path, video: Path, lines: bytes) -> None:
    """Put `part` in the place of `video`, with these lines beside it, if any: never beside another video's sidecar."""
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


def _described(records: list[Record], frames: int, spec: MediaSpec, about: dict[str, str]) -> Sidecar:
    indices = np.full(frames, UNKNOWN, np.int64)
    transforms = np.full((frames, 2, 3), np.nan, np.float32)
    mouth = np.full(frames, np.nan, np.float32)
    said: list[Record] = []
    speeches: list[Record] = []
    pauses: list[Record] = []
    for record in records:
        if record["type"] in ("utterance", "pause"):  # it takes back what was said of its first frame and later
            begin = record["first_frame"]
            said = [old for old in said if old["first_frame"] < begin]
            (said if record["type"] == "utterance" else pauses).append(record)
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
        utterances=_ends(said, frames),
        phonemes=list(_phonemes(speeches, [*said, *pauses], frames, spec.fps)),
    )


def _ends(said: list[Record], frames: int) -> list[SpokenUtterance]:
    """The utterances that the video shows, each up to the next."""
    edges = [*(record["first_frame"] for record in said), frames]
    return [
        SpokenUtterance(edges[k], edges[k + 1], str(record["text"]), dict(record["engines"]))
        for k, record in enumerate(said)
        if edges[k] < frames
    ]


def _phonemes(speeches: list[Record], begun: list[Record], frames: int, fps: int) -> Iterator[Phoneme]:
    """All phonemes in seconds of the video. What lies behind the end, or where something else begins, was not heard."""
    edges = sorted({*(record["first_frame"] for record in begun), frames})
    for record in sorted(speeches, key=lambda record: int(record["frame"])):
        end_s = next((edge for edge in edges if edge > record["frame"]), frames) / fps
        at_s = record["frame"] / fps
        for symbol, start_s, stop_s in record["phonemes"]:
            if at_s + start_s < end_s:
                yield Phoneme(str(symbol), at_s + start_s, min(at_s + stop_s, end_s))
