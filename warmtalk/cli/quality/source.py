"""The source of a video: which frames of the avatar it shows, and how they look after the same encoding."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import av
import cv2
import numpy as np
import numpy.typing as npt

from models.errors import CorruptError
from models.media.encode import MediaSpec, UtteranceEncoder
from models.media.frames import rgb_array
from models.stitch.paste import warp_alpha
from models.stitch.sidecar import Sidecar
from models.types import Float32, PreparedAvatar, UInt8

Indices = npt.NDArray[np.int64]

THUMB_PX = 48  # side of the thumbnails used to recognise frames
JUMP_COST = 0.5  # grey levels: playback moves by -1, 0 or 1 frames; any other step costs this much
PUSH_FRAMES = 12  # frames passed to the encoder at a time


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrames:
    """The avatar frames that a video of n frames shows.

    indices: of the avatar's frames, int64 `(n,)`. known: bool `(n,)`; the others are guessed. edges: frames at which a
    new encoder started, 0 first, n last. spec: how the video was encoded.
    """

    indices: Indices
    known: npt.NDArray[np.bool_]
    edges: tuple[int, ...]
    spec: MediaSpec


def shown_by(sidecar: Sidecar, avatar: PreparedAvatar, keys: Sequence[int]) -> SourceFrames:
    """From the sidecar. keys: indices of the video's keyframes.

    Raises CorruptError if the sidecar names frames that the avatar does not have.
    """
    known = sidecar.known
    indices = np.maximum.accumulate(np.where(known, np.arange(len(known)), 0))  # unknown: the last known one
    frames = np.maximum(sidecar.avatar_frames[indices], 0)
    if len(frames) and frames.max() >= len(avatar):
        raise CorruptError(
            f"The sidecar names frame {int(frames.max())} of {avatar.avatar_id!r}, which has {len(avatar)}.",
            "Remove the sidecar, and name the avatar with --avatar-id.",
        )
    return SourceFrames(frames, known, (*_encoder_starts(keys, sidecar.spec), len(known)), sidecar.spec)


def _encoder_starts(keys: Sequence[int], spec: MediaSpec) -> list[int]:
    """The keyframes at which a new encoder started: those that a continuing encoder would not have placed there.

    Idle motion is encoded in separate pieces.
    """
    edges, size = [0], spec.next_fragment_frames(0)
    due = size
    for key in keys:
        if key and key != due:
            edges.append(key)
            size = 0
        if key:
            size = spec.next_fragment_frames(size)
            due = key + size
    return edges


def recognised(frames: Iterable[UInt8], avatar: PreparedAvatar, fps: int) -> SourceFrames:
    """For a video without a sidecar: the avatar frames that resemble it most outside the pasted region."""
    assert avatar.frames is not None
    outside = _outside(avatar)
    own = np.stack([_thumb(avatar.frames[k])[outside] for k in range(len(avatar))])  # (m, p, 3)
    costs = np.stack([np.abs(own - _thumb(frame)[outside]).mean((1, 2)) for frame in frames])  # (n, m)
    indices = cheapest_path(costs)
    spec = MediaSpec.for_source(avatar.width, avatar.height, fps)
    return SourceFrames(indices, np.ones(len(indices), bool), (0, len(indices)), spec)


def cheapest_path(costs: Float32) -> Indices:
    """The cheapest path through the costs `(n, m)` of showing frame m at time n; jumps cost JUMP_COST."""
    n, m = costs.shape
    total, came = costs[0].astype(np.float64), np.zeros((n, m), np.int64)
    for k in range(1, n):
        steps = np.full((4, m), np.inf)
        steps[0], steps[1, 1:], steps[2, :-1] = total, total[:-1], total[1:]
        jump = int(total.argmin())
        steps[3] = total[jump] + JUMP_COST
        best = steps.argmin(0)
        came[k] = np.choose(best, [np.arange(m), np.arange(m) - 1, np.arange(m) + 1, np.full(m, jump)])
        total = steps[best, np.arange(m)] + costs[k]
    path = np.zeros(n, np.int64)
    path[-1] = int(total.argmin())
    for k in range(n - 1, 0, -1):
        path[k - 1] = came[k, path[k]]
    return path


def coded_source(avatar: PreparedAvatar, shown: SourceFrames) -> Iterator[UInt8]:
    """The avatar's frames at those indices, RGB uint8 `(h, w, 3)`, encoded like the video, with the same keyframes."""
    assert avatar.frames is not None
    spec = replace(shown.spec, width=avatar.width // 2 * 2, height=avatar.height // 2 * 2)
    silence = np.zeros(0, np.float32)
    for begin, end in zip(shown.edges[:-1], shown.edges[1:], strict=True):
        encoder = UtteranceEncoder(spec)
        data = io.BytesIO(encoder.init_segment)
        data.seek(0, io.SEEK_END)
        for start in range(begin, end, PUSH_FRAMES):
            part = shown.indices[start : min(start + PUSH_FRAMES, end)]
            frames = np.stack([avatar.frames[int(k)] for k in part])
            for fragment in encoder.push(frames, silence, last=start + len(part) == end):
                data.write(fragment.data)
        data.seek(0)
        with av.open(data) as container:
            yield from (rgb_array(frame) for frame in container.decode(video=0))


def _outside(avatar: PreparedAvatar) -> npt.NDArray[np.bool_]:
    """Thumbnail pixels that no paste reaches, bool `(THUMB_PX, THUMB_PX)`."""
    touched = np.zeros((avatar.height, avatar.width), np.uint8)
    for k in range(0, len(avatar), max(1, len(avatar) // 16)):
        alpha = warp_alpha(avatar.transforms[k], avatar.masks[k], touched.shape)
        np.maximum(touched[alpha.region], alpha.weights, out=touched[alpha.region])
    small: npt.NDArray[np.bool_] = cv2.resize(touched, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA) == 0
    return small if small.any() else ~small


def _thumb(frame: UInt8) -> Float32:
    small = cv2.resize(frame.astype(np.float32), (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)
