"""Restores the face in every frame of a video: track, cut out, restore, filter over time, paste back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.face import FaceDetector
from models.deflicker import TemporalFilter, stillness, thumbnail
from models.errors import InputError
from models.geometry import warp
from models.restore.align import soft_square
from models.restore.tracking import TrackedFrame, track_faces
from models.stitch.paste import paste
from models.types import CROP_PX, RESTORED_PX, Float32, UInt8

Float64 = npt.NDArray[np.float64]
P = TypeVar("P")
Submit = Callable[[UInt8], Callable[[], UInt8]]  # faces (n, s, s, 3) → a call that waits for them, (n, 512, 512, 3)

# The square that MuseTalk's box cuts out of a face, in px of the FFHQ template: left, top, side. Measured on the
# embedded presenter and on two portraits, whose boxes differ by at most 20 px. The small restorer is trained on it.
BOX = (76.0, 115.0, 362.0)
MAX_EVERY = 25
MAX_HELD_BYTES = 640 << 20  # frames of all batches in flight: about a hundred of 1080p


@dataclass(frozen=True, slots=True)
class EnhanceOptions:
    """How a video is enhanced. Raises InputError.

    strength: 0 leaves the frames unchanged, 1 is the full model. every: each n-th face goes through the network; the
    faces between get the detail of their neighbours in time, where nothing changed. template: the engine takes 512 px
    faces on the FFHQ template; otherwise 256 px crops. batch: faces per call. in_flight: calls at the same time.
    """

    strength: float = 1.0
    every: int = 1
    template: bool = False
    batch: int = 8
    in_flight: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise InputError(
                f"The strength {self.strength} is not between 0 and 1.",
                "Use 0 to change nothing, 1 for the full model, or a value between.",
            )
        if not 1 <= self.every <= MAX_EVERY:
            raise InputError(
                f"--every {self.every} is not between 1 and {MAX_EVERY}.", "Use 1 to restore every frame, or more."
            )


@dataclass(slots=True, eq=False)
class _Work(Generic[P]):
    """A frame in progress: the face that was cut out of it (None without a face), and the restored face."""

    tracked: TrackedFrame[P]
    transform: Float64 | None = None  # (2, 3), frame px → 256 px crop
    face: UInt8 | None = None  # the engine's input
    key: bool = False  # goes through the network
    restored: UInt8 | None = None  # (512, 512, 3)

    @property
    def base(self) -> UInt8:
        """The face before restoration, `(512, 512, 3)`."""
        assert self.face is not None
        if self.face.shape[0] == RESTORED_PX:
            return self.face
        return cast(UInt8, cv2.resize(self.face, (RESTORED_PX, RESTORED_PX), interpolation=cv2.INTER_CUBIC))


def enhance_frames(
    frames: Iterable[tuple[UInt8, P]],
    detector: FaceDetector,
    fps: float,
    submit: Submit,
    options: EnhanceOptions,
    first_index: int = 0,
) -> Iterator[tuple[UInt8, P, bool]]:
    """Yield every frame of `frames` in order, with its payload and whether a face was restored in it.

    A frame without a face is yielded as the same object.

    frames: RGB uint8 `(h, w, 3)`, each with a payload. submit: starts a restoration, see `Submit`. first_index: index
    of the first frame in its video, so that a resumed run restores the same frames with `every`.
    """
    if options.strength == 0:
        yield from ((frame, payload, False) for frame, payload in frames)
        return
    temporal, shot = TemporalFilter(), -1
    mask = np.rint(soft_square(CROP_PX) * (255 * options.strength)).astype(np.uint8)
    for work in _filled(_restored(track_faces(frames, detector, fps, first_index), submit, options), options.every):
        tracked = work.tracked
        if work.transform is None or work.restored is None:
            yield tracked.frame, tracked.payload, False
            continue
        if tracked.shot != shot:
            temporal.reset()
            shot = tracked.shot
        face = temporal(work.base, work.restored)
        yield paste(tracked.frame, face, work.transform.astype(np.float32), mask), tracked.payload, True


def crop_transform(to_template: Float64, template: bool) -> Float64:
    """Return frame px → 256 px crop, given frame px → 512 px template.

    template: the crop is the whole template; otherwise MuseTalk's box within it (BOX).
    """
    left, top, side = (0.0, 0.0, float(RESTORED_PX)) if template else BOX
    scale = CROP_PX / side
    crop = to_template * scale
    crop[:, 2] += scale * (0.5 - np.array([left, top])) - 0.5  # pixel centres map as (x + 0.5 − left) · scale − 0.5
    return crop


def _cut(tracked: TrackedFrame[P], options: EnhanceOptions, new_shot: bool) -> _Work[P]:
    if tracked.transform is None:
        return _Work(tracked)
    key = new_shot or tracked.index % options.every == 0
    crop = crop_transform(tracked.transform, options.template)
    if options.template:
        return _Work(tracked, crop, warp(tracked.frame, tracked.transform, RESTORED_PX), key)
    return _Work(tracked, crop, warp(tracked.frame, crop, CROP_PX), key)


def _restored(stream: Iterator[TrackedFrame[P]], submit: Submit, options: EnhanceOptions) -> Iterator[_Work[P]]:
    """Cut faces out and restore the key faces, in order: one batch per call, several calls at the same time."""
    pending: deque[tuple[list[_Work[P]], Callable[[], UInt8] | None]] = deque()
    batch: list[_Work[P]] = []
    max_batch_bytes = MAX_HELD_BYTES // (options.in_flight + 1)
    shot = -1
    for tracked in stream:
        batch.append(_cut(tracked, options, new_shot=tracked.shot != shot))
        shot = tracked.shot if tracked.transform is not None else -1
        if len(batch) * tracked.frame.nbytes >= max_batch_bytes or len(batch) == options.batch * options.every:
            pending.append(_send(batch, submit))
            batch = []
        if len(pending) > options.in_flight:
            yield from _receive(*pending.popleft())
    if batch:
        pending.append(_send(batch, submit))
    while pending:
        yield from _receive(*pending.popleft())


def _send(batch: list[_Work[P]], submit: Submit) -> tuple[list[_Work[P]], Callable[[], UInt8] | None]:
    faces = [work.face for work in batch if work.key and work.face is not None]
    return batch, submit(np.stack(faces)) if faces else None


def _receive(batch: list[_Work[P]], wait: Callable[[], UInt8] | None) -> Iterator[_Work[P]]:
    if wait is not None:
        keys = [work for work in batch if work.key]
        for work, restored in zip(keys, wait(), strict=True):
            work.restored = restored
    yield from batch


# --- faces between two key faces


class Detail:
    """The detail that a restorer added to one face: `restored` minus `base`, both `(512, 512, 3)`."""

    def __init__(self, base: UInt8, restored: UInt8) -> None:
        self._added = cv2.subtract(restored, base, dtype=cv2.CV_16S)
        self._thumbnail = thumbnail(base)

    def on(self, base: UInt8) -> Float32:
        """Return the detail for another face `(512, 512, 3)`: all of it where that face is equal, none where not."""
        return cast(Float32, self._added * stillness(thumbnail(base), self._thumbnail)[..., None])


def interpolate_detail(base: UInt8, before: Detail, after: Detail | None, share: float) -> UInt8:
    """Add the detail of the restored faces before and after to an unrestored face `(512, 512, 3)`.

    share: weight of `after`. Where the face differs from both (a mouth that moves), it keeps its own pixels.
    """
    added = before.on(base) if after is None else (1 - share) * before.on(base) + share * after.on(base)
    return np.clip(np.rint(base + added), 0, 255).astype(np.uint8)


def _filled(works: Iterator[_Work[P]], every: int) -> Iterator[_Work[P]]:
    """Give the faces between two key faces their detail. With `every` = 1 there are none."""
    if every == 1:
        yield from works
        return
    held: list[_Work[P]] = []  # faces since the last key face, of its shot
    last: tuple[_Work[P], Detail] | None = None
    for work in works:
        if work.restored is not None and not _same_shot(last, work):
            yield from _fill(held, last, None)
            held, last = [], None
        if work.restored is not None:
            key = (work, Detail(work.base, work.restored))
            yield from _fill(held, last, key)
            held, last = [], key
            yield work
        elif work.face is None:
            yield from _fill(held, last, None)
            held, last = [], None
            yield work
        else:
            held.append(work)
    yield from _fill(held, last, None)


def _same_shot(last: tuple[_Work[P], Detail] | None, work: _Work[P]) -> bool:
    return last is not None and last[0].tracked.shot == work.tracked.shot


def _fill(
    held: list[_Work[P]], last: tuple[_Work[P], Detail] | None, following: tuple[_Work[P], Detail] | None
) -> Iterator[_Work[P]]:
    for work in held:
        assert last is not None  # the first face of a shot is a key face
        begin = last[0].tracked.index
        share = 0.0 if following is None else (work.tracked.index - begin) / (following[0].tracked.index - begin)
        work.restored = interpolate_detail(work.base, last[1], None if following is None else following[1], share)
        yield work
