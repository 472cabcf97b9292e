"""The avatar's own frames beside a video: which of them it shows, and how they look after the video's own encoder."""

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

THUMB_PX = 48  # side of the pictures that frames are recognised by
JUMP_COST = 0.5  # grey levels: playback goes a frame on, a frame back, or stays; anything else must be worth it
PUSH_FRAMES = 12  # frames that wait for the encoder at a time


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What a video of n frames shows of an avatar.

    indices: the avatar's frames, int64 `(n,)`. known: bool `(n,)`; elsewhere they are guessed. edges: frames at which
    the encoder began anew, 0 first, n last. spec: how the video was coded, as far as is known. told: by a sidecar.
    """

    indices: Indices
    known: npt.NDArray[np.bool_]
    edges: tuple[int, ...]
    spec: MediaSpec
    told: bool


def shown_by(sidecar: Sidecar, avatar: PreparedAvatar, keys: Sequence[int]) -> Shown:
    """As the sidecar tells. keys: the video's key frames.

    Raises CorruptError where it names frames that the avatar does not have.
    """
    known = sidecar.known
    indices = np.maximum.accumulate(np.where(known, np.arange(len(known)), 0))  # where not known, the last that was
    frames = np.maximum(sidecar.avatar_frames[indices], 0)
    if len(frames) and frames.max() >= len(avatar):
        raise CorruptError(
            f"The sidecar names frame {int(frames.max())} of {avatar.avatar_id!r}, which has {len(avatar)}.",
            "Remove the sidecar, and name the avatar with --avatar-id.",
        )
    return Shown(frames, known, (*_anew(keys, sidecar.spec), len(known)), sidecar.spec, True)


def _anew(keys: Sequence[int], spec: MediaSpec) -> list[int]:
    """The key frames at which an encoder began: those that one which goes on would not have set there.

    Idle motion is coded in pieces, each by itself.
    """
    edges, due = [0], spec.first_fragment_frames
    for key in keys:
        if key == due:
            due += spec.fragment_frames
        elif key:
            edges.append(key)
            due = key + spec.first_fragment_frames
    return edges


def recognised(frames: Iterable[UInt8], avatar: PreparedAvatar, fps: int) -> Shown:
    """Of a video without a sidecar: the avatar's frames that it resembles most where nothing is pasted."""
    assert avatar.frames is not None
    outside = _outside(avatar)
    own = np.stack([_thumb(avatar.frames[k])[outside] for k in range(len(avatar))])  # (m, p, 3)
    costs = np.stack([np.abs(own - _thumb(frame)[outside]).mean((1, 2)) for frame in frames])  # (n, m)
    indices = cheapest_path(costs)
    spec = MediaSpec.for_source(avatar.width, avatar.height, fps)
    return Shown(indices, np.ones(len(indices), bool), (0, len(indices)), spec, False)


def cheapest_path(costs: Float32) -> Indices:
    """Through costs `(n, m)` of showing frame m at time n: the path whose steps are -1, 0 or 1, with dear jumps."""
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


def coded_source(avatar: PreparedAvatar, shown: Shown) -> Iterator[UInt8]:
    """The avatar's frames at those indices, RGB uint8 `(h, w, 3)`, after the same encoder with the same key frames."""
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
    """Where no frame's paste reaches, in thumbnails."""
    touched = np.zeros((avatar.height, avatar.width), np.uint8)
    for k in range(0, len(avatar), max(1, len(avatar) // 16)):
        alpha = warp_alpha(avatar.transforms[k], avatar.masks[k], touched.shape)
        np.maximum(touched[alpha.region], alpha.weights, out=touched[alpha.region])
    small: npt.NDArray[np.bool_] = cv2.resize(touched, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA) == 0
    return small if small.any() else ~small


def _thumb(frame: UInt8) -> Float32:
    small = cv2.resize(frame.astype(np.float32), (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)
