"""`warmtalk enhance`: restores the face in a finished video, in this process or on a running cluster.

Frames stream through: decode, track the face, restore, deflicker, paste, encode. Finished pieces are kept beside the
output (`OUT.part/`), so that a rerun after a crash resumes after the last one. The output appears whole or not at all.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from models.avatar.detect import BlazeMesh
from models.avatar.face import FaceDetector
from models.errors import BusyError, ConfigError, CorruptError, StageError, WarmTalkError
from models.media.transcode import (
    CONTAINERS,
    FrameTime,
    PartWriter,
    SourceVideo,
    TranscodedPart,
    check_output,
    join,
    part_signature,
)
from models.restore.base import needs_landmarks
from models.restore.tracking import lookahead_frames
from models.restore.video import EnhanceOptions, enhance_frames
from models.stitch.sidecar import committed_lines, enhanced_lines, replace_with_sidecar, sidecar_path
from models.types import FaceCrops, UInt8

FORMAT = 1  # of OUT.part; one of another format is discarded
PIECE_S = 8.0  # length of a piece: a crash loses at most one
CRF, PRESET = 16.0, "veryfast"
CALL_TIMEOUT_S = 120.0
MAX_ATTEMPTS = 4  # per call to the cluster, when a replica dies or its queue is full
RETRY_PAUSE_S = 0.5
CALLS_PER_REPLICA = 3  # one computes, the others are queued
MIN_CALLS = 12  # in flight on a cluster: above the target per replica, so that Serve adds replicas

Progress = Callable[[int, int], None]  # frames done, frames expected (0: not known)


class Backend(Protocol):
    """Restores batches of faces."""

    name: str  # stored in OUT.part: another backend does not resume it
    template: bool  # needs 512 px faces on the FFHQ template
    in_flight: int  # batches submitted ahead

    def submit(self, faces: UInt8) -> Callable[[], UInt8]: ...


class LocalBackend:
    """An engine in this process; it computes on a thread while the next frames are decoded."""

    in_flight = 2

    def __init__(self, name: str, engine: Any) -> None:
        self.name, self.template = name, needs_landmarks(engine)
        self._engine = engine
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="restore")

    @classmethod
    def load(cls, engine: str, weights: Path | None = None, device: str = "cpu") -> LocalBackend:
        """The restorer `engine` (a short name or module:Class) with its weights. Raises ConfigError, WeightsError."""
        from deployments.enhance import load_engine

        options: dict[str, Any] = {}
        if weights is not None:
            options["weights" if engine == "small" else "path"] = weights.resolve()
        elif engine == "spandrel":
            raise ConfigError("The engine 'spandrel' needs the file of a model.", "Pass it with --weights.")
        if device != "cpu":
            options["device"] = device
            options.update(
                {"engine": "torch"} if engine == "small" else {"dtype": "float16"} if engine == "gfpgan" else {}
            )
        return cls(f"{engine}:{weights or ''}", load_engine(engine, options))

    def submit(self, faces: UInt8) -> Callable[[], UInt8]:
        return self._pool.submit(self._engine.restore, faces).result


class ClusterBackend:
    """The Enhance stage of a running graph, with enough calls in flight to use every replica. Results keep order."""

    name = "cluster"

    def __init__(self, handle: Any, replicas: int = 1) -> None:
        self._handle = handle
        self.in_flight = max(MIN_CALLS, CALLS_PER_REPLICA * replicas)
        self.template = bool(_call(handle.needs_landmarks.remote, ()))

    @classmethod
    def connect(cls, address: str, application: str = "warmtalk") -> ClusterBackend:
        """address: of Ray (`auto`, `ray://host:10001`, `host:6379`). Raises StageError if no graph answers there."""
        import ray
        from ray import serve

        remedy = "Start the graph (`warmtalk serve`), or leave out --address to enhance in this process."
        try:
            ray.init(
                address=address, namespace="serve", log_to_driver=False, logging_level="error", ignore_reinit_error=True
            )
            deployments = serve.status().applications[application].deployments
            running = deployments["Enhance"].replica_states.get("RUNNING", 0)
            handle = serve.get_deployment_handle("Enhance", application)
        except KeyError as error:
            raise StageError(f"The cluster at {address} has no Enhance stage.", remedy) from error
        except Exception as error:  # Ray raises many types for an address that does not answer
            raise StageError(f"No Ray cluster answers at {address}: {error}.", remedy) from error
        return cls(handle, running)

    def submit(self, faces: UInt8) -> Callable[[], UInt8]:
        from deployments.common.stage import Stamped

        crops = Stamped(FaceCrops(faces, 0, ""), ())
        response = self._handle.restore.remote(crops, 1.0)
        return lambda: _call(self._handle.restore.remote, (crops, 1.0), response).value.images  # type: ignore[no-any-return]


def _call(remote: Callable[..., Any], args: tuple[Any, ...], response: Any = None) -> Any:
    """The result of a call, retried if a replica is lost. Raises the stage's own error, or StageError."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            response = remote(*args) if response is None else response
            return response.result(timeout_s=CALL_TIMEOUT_S)
        except Exception as error:  # an error of Ray, or of the stage as its cause
            cause = getattr(error, "cause", None)
            if isinstance(cause, WarmTalkError):
                raise cause from None
            if attempt == MAX_ATTEMPTS - 1:
                raise StageError(f"Enhance failed: {type(cause or error).__name__}.", "Read its log.") from error
            response = None
            time.sleep(RETRY_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


@dataclass(slots=True)
class Report:
    """resumed: frames from an earlier run. faces: faces restored in this run."""

    frames: int = 0
    faces: int = 0
    resumed: int = 0
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


def enhance_video(
    video: Path,
    output: Path,
    backend: Backend,
    options: EnhanceOptions | None = None,
    crf: float = CRF,
    detector: FaceDetector | None = None,
    progress: Progress | None = None,
    piece_s: float = PIECE_S,
) -> Report:
    """Write `video` to `output` with its largest face restored in every frame that shows one.

    Frame times are kept to the tick in MP4 and MOV, to the millisecond in MKV; audio packets are copied. (MKV starts at
    0 or later: everything is shifted if the sound starts before 0.) The picture becomes 8 bit H.264, BT.709. Other
    streams (subtitles, data) are dropped. A sidecar is copied, with the engine's name. Raises VideoError, BusyError
    (another run writes this output), StageError (cluster), WeightsError.
    """
    begin_s = time.monotonic()
    source = SourceVideo(video)
    check_output(video, output)
    options = replace(options or EnhanceOptions(), template=backend.template, in_flight=backend.in_flight)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f"{output.name}.part")
    report = Report(warnings=["The picture is reduced to 8 bit."] if source.high_bit_depth else [])
    with _locked(folder, output):
        parts = Parts.open(folder, _job(source, backend, options, crf))
        report.resumed = parts.frames
        if not parts.complete:
            _make_pieces(source, parts, backend, options, crf, detector or BlazeMesh(), progress, piece_s, report)
        joined = folder / f"joined{output.suffix}"
        report.frames = join(parts.pieces, source, joined, CONTAINERS[output.suffix.lower()])
        lines = committed_lines(sidecar_path(video))  # still valid: the frames are the same
        replace_with_sidecar(joined, output, enhanced_lines(lines, backend.name.partition(":")[0]))
        shutil.rmtree(folder)
    report.seconds = time.monotonic() - begin_s
    return report


def _make_pieces(
    source: SourceVideo,
    parts: Parts,
    backend: Backend,
    options: EnhanceOptions,
    crf: float,
    detector: FaceDetector,
    progress: Progress | None,
    piece_s: float,
    report: Report,
) -> None:
    """Enhance the frames that are missing in `parts`, piece by piece."""
    # 1. start a few frames before the first missing one, for the temporal filter
    start = parts.frames
    first = max(0, start - 2 * lookahead_frames(source.fps))
    stream = enhance_frames(source.frames(first), detector, source.fps, backend.submit, options, first)
    # 2. write the rest in pieces
    writer: PartWriter | None = None
    length = max(1, round(piece_s * source.fps))
    try:
        for index, (rgb, at, found) in enumerate(stream, start=first):
            if index < start:
                continue
            writer = writer or PartWriter(parts.next_path(), source, crf, PRESET)
            _write(writer, rgb, at)
            report.faces += found
            if progress is not None:
                progress(index + 1, max(source.expected_frames, index + 1))
            if writer.frames == length:
                parts.add(writer.close(), writer.frames)
                writer = None
        if writer is not None:
            parts.add(writer.close(), writer.frames)
            writer = None
    finally:
        if writer is not None:
            writer.abandon()
    parts.finish()


def _write(writer: PartWriter, rgb: UInt8, at: FrameTime) -> None:
    try:
        writer.write(rgb, at)
    except OSError as error:
        raise StageError(
            f"{writer.path} cannot be written: {error.strerror}.", "Free disk space, then run it again."
        ) from error


class Parts:
    """The finished pieces of a job in `OUT.part/`, and `state.jsonl` with one line for the job and one per piece.

    A piece is finished when its line is on disk. A truncated line and everything after it are ignored.
    """

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.folder, self.job = folder, job
        self.pieces: list[TranscodedPart] = []
        self.frames, self.complete = 0, False
        self._signature = ""

    @classmethod
    def open(cls, folder: Path, job: dict[str, Any]) -> Parts:
        """The pieces of an earlier run of the same job; those of another job are deleted."""
        parts = cls(folder, job)
        kept = list(parts._recover())
        for path in folder.iterdir():
            if path.name != "lock" and path not in [piece.path for piece in parts.pieces]:
                path.unlink()
        (folder / "state.jsonl").write_text("".join(f"{line}\n" for line in [json.dumps(job), *kept]), encoding="utf-8")
        return parts

    def next_path(self) -> Path:
        """The path of the next piece."""
        return self.folder / f"{len(self.pieces):06d}.mp4"

    def add(self, piece: TranscodedPart, frames: int) -> None:
        """Record a closed piece. Raises CorruptError if it cannot be joined to the pieces before."""
        signature = hashlib.sha256(part_signature(piece.path)).hexdigest()[:16]
        if self._signature not in ("", signature):
            raise CorruptError(
                f"{self.folder} was written by another encoder version.", "Delete that folder, then run it again."
            )
        self._append({"piece": piece.path.name, "frames": frames, "first_pts": piece.first_pts, "signature": signature})
        self._count(piece, frames, signature)

    def finish(self) -> None:
        """Record that all frames are done."""
        self._append({"complete": True})
        self.complete = True

    def _append(self, line: dict[str, Any]) -> None:
        with (self.folder / "state.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _count(self, piece: TranscodedPart, frames: int, signature: str) -> None:
        self.pieces.append(piece)
        self.frames += frames
        self._signature = signature

    def _recover(self) -> Iterator[str]:
        """Read the valid part of the state; yield its lines after the job's line."""
        try:
            lines = (self.folder / "state.jsonl").read_text(encoding="utf-8").splitlines()
            if not lines or json.loads(lines[0]) != self.job:
                return
            for line in lines[1:]:
                entry = json.loads(line)
                if entry.get("complete"):
                    self.complete = True
                else:
                    path = self.folder / entry["piece"]
                    if hashlib.sha256(part_signature(path)).hexdigest()[:16] != entry["signature"]:
                        return
                    self._count(TranscodedPart(path, entry["first_pts"]), entry["frames"], entry["signature"])
                yield line
        except (OSError, ValueError, KeyError, AttributeError, CorruptError):
            return


def _job(source: SourceVideo, backend: Backend, options: EnhanceOptions, crf: float) -> dict[str, Any]:
    """Everything that must be equal to resume an earlier run."""
    stat = source.path.stat()
    settings = {key: value for key, value in asdict(options).items() if key not in ("in_flight", "batch")}
    file = {"name": source.path.name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return {"format": FORMAT, "source": file, "engine": backend.name, "crf": crf, "preset": PRESET, **settings}


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """Lock the folder for this process. Raises BusyError."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(f"Another run is writing {output}.", "Wait for it, or choose another output.") from error
        yield
