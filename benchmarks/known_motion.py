"""A clip with exactly known motion: the presenter's head moves in front of a still, textured wall, with one cut.

The head is drawn once, large, and placed in each frame by one transform. Translation, roll and zoom are exactly those
in `motions`, and nothing else moves. `talking` opens and closes the mouth, to detect trackers that follow lips or chin.
Also measures how well transforms follow the motion, and the error of a paste.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.common import rms
from models.geometry import apply, invert
from models.media.frames import write_frames
from models.types import CROP_PX, Float32, UInt8

Float64 = npt.NDArray[np.float64]

STILL_PX = 768  # side of the drawn picture
STILL_FACE_PX = 345.0  # height of the face in it by FaceMesh: 230 px of a frame of 512 px
FACES_TO_FRAME = 2.25  # side of a frame relative to the face's height
JAWS = (0.0, 0.5, 1.0)  # mouth openings in the pictures of a talking head
SAYING = (0, 0, 1, 2, 2, 1, 0, 1, 1, 2, 1, 0)  # index into JAWS per frame, repeated
MOUTH_ROWS = slice(348, 732)  # the part of the picture that an opening mouth changes
MOUTH_COLUMNS = slice(192, 576)
SLOPE = np.array([1, -8, 0, 8, -1]) / 12  # derivative: fourth-order central differences
NO_SLOPE = np.array([0.0, 0, 1, 0, 0])
GROUND = 0.5  # brightness of a second background, which separates the head from the wall


@dataclass(frozen=True, slots=True, eq=False)
class KnownMotion:
    """A clip of `len(motions)` frames of `size_px`², computed per frame.

    motions: float64 `(n, 2, 3)`, px of the still picture → frame px, pixel centres at integers. cuts: the first frame
    of each scene except the first one. landmarks: iBUG's 68 points in px of the still picture, with the mouth closed.
    """

    motions: Float64
    cuts: tuple[int, ...]
    size_px: int
    face_px: float
    fps: int
    landmarks: Float64
    talking: bool = False

    def __len__(self) -> int:
        return len(self.motions)

    @property
    def scenes(self) -> list[slice]:
        edges = [0, *self.cuts, len(self)]
        return [slice(first, last) for first, last in itertools.pairwise(edges)]

    def frame(self, k: int) -> UInt8:
        """Frame `k`, RGB uint8 `(size_px, size_px, 3)`."""
        scene = sum(k >= cut for cut in self.cuts)
        jaw = SAYING[k % len(SAYING)] if self.talking else 0
        head = _sampled(_heads()[jaw], self.motions[k], self.size_px)
        wall = _wall(self.size_px, scene)
        mixed = head[..., :3] * head[..., 3:] + wall * (1 - head[..., 3:])
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)

    def frames(self) -> Iterator[UInt8]:
        for k in range(len(self)):
            yield self.frame(k)

    def write(self, path: Path, crf: float = 12.0) -> Path:
        """Write the clip as H.264. The measurements then include the loss of the codec."""
        write_frames(path, self.frames(), self.fps, crf)
        return path

    def true_landmarks(self) -> Float64:
        """The exact landmarks in every frame, `(n, 68, 2)`, with the mouth closed."""
        return np.stack([apply(motion, self.landmarks) for motion in self.motions])


def known_motion(
    face_px: float = 160.0, frames: int = 100, fps: int = 25, cut: int | None = 60, talking: bool = False
) -> KnownMotion:
    """A head of `face_px` that sways, rolls and zooms by a few percent; at another place and smaller after `cut`."""
    size = 2 * round(face_px * FACES_TO_FRAME / 2)
    cuts = () if cut is None or cut >= frames else (cut,)
    motions = []
    for k in range(frames):
        t, scene = k / fps, sum(k >= c for c in cuts)
        place = (0.0, 0.0) if scene == 0 else (-0.22 * face_px, 0.10 * face_px)
        motions.append(
            _motion(
                size,
                zoom=face_px / STILL_FACE_PX * (1.0, 0.86)[scene] * (1 + 0.03 * _sine(0.31 * t)),
                roll_deg=(0.0, -3.0)[scene] + 4.0 * _sine(0.43 * t + 0.1),
                x=place[0] + 0.055 * face_px * _sine(0.57 * t),
                y=place[1] + 0.030 * face_px * _sine(0.71 * t + 0.2),
            )
        )
    return KnownMotion(np.stack(motions), cuts, size, face_px, fps, _still_landmarks(), talking)


# --- how well transforms follow the motion


@dataclass(frozen=True, slots=True)
class Following:
    """The error of crop transforms relative to the known motion of the head, in frame px.

    place_rms: position of the crop's middle on the head, about its mean, per coordinate. corner_rms: position of the
    corners, which includes size and roll. jitter_rms: second difference of the middle / √6, the standard deviation of
    independent noise with that result. roll_rms_deg: angle. lag_frames: delay of the middle, fitted over the sequence.
    """

    place_rms: float
    corner_rms: float
    jitter_rms: float
    roll_rms_deg: float
    lag_frames: float


def following(clip: KnownMotion, transforms: Float32 | Float64) -> Following:
    """Compare crop transforms `(n, 2, 3)` with the clip's motion, scene by scene."""
    middle, corners, roll, jitter, late = [], [], [], [], []
    for scene in clip.scenes:
        cut, true = np.asarray(transforms, np.float64)[scene], clip.motions[scene]
        places = apply(invert(cut), np.tile(_corners(), (len(cut), 1, 1)))  # (m, 5, 2) in frame px
        on_head = apply(invert(true), places)
        ideal = apply(true, np.tile(on_head.mean(0), (len(cut), 1, 1)))
        error = places - ideal
        middle.append(error[:, 0])
        corners.append(error[:, 1:])
        jitter.append(np.diff(error[:, 0], 2, axis=0) / math.sqrt(6))
        angle = np.unwrap(_angle(cut) + _angle(true))
        roll.append(np.degrees(angle - angle.mean()))
        late.append(_lag(ideal[:, 0], error[:, 0]))
    place, corner, turn, trembling = (rms(np.concatenate(part)) for part in (middle, corners, roll, jitter))
    return Following(place, corner, trembling, turn, float(np.mean(late)))


def misplacement(before: UInt8, after: UInt8, weights: npt.NDArray[np.number]) -> tuple[float, float]:
    """The shift of `after` against `before`, (x, y) in px, where `weights` `(h, w)` is positive.

    Least squares on brightness: after - before ≈ -shift · gradient (Lucas and Kanade 1981). The gradient is that of the
    mean of both, so the error is of third order: accurate to 0.02 px for shifts of up to one pixel.
    """
    first, second = (cv2.GaussianBlur(_grey(image), (0, 0), 2.0) for image in (before, after))
    slopes = [
        cv2.sepFilter2D((first + second) / 2, cv2.CV_32F, *kernels)[weights > 0].astype(np.float64)
        for kernels in ((SLOPE, NO_SLOPE), (NO_SLOPE, SLOPE))
    ]
    shift, *_ = np.linalg.lstsq(np.stack(slopes, 1), (first - second)[weights > 0].astype(np.float64), rcond=None)
    return float(shift[0]), float(shift[1])


def level_rms(before: UInt8, after: UInt8, weights: npt.NDArray[np.number]) -> float:
    """Root mean square difference in grey levels over all channels, where `weights` `(h, w)` is positive."""
    return rms((after.astype(np.float64) - before)[weights > 0])


# --- internal


def _sine(turns: float) -> float:
    return math.sin(2 * math.pi * turns)


def _motion(size: int, zoom: float, roll_deg: float, x: float, y: float) -> Float64:
    """Rotate and zoom about the middle of the still face, and move it to (x, y) from the middle of the frame."""
    angle = math.radians(roll_deg)
    linear = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    face = _still_landmarks()[27:31].mean(0)  # the bridge of the nose
    target = np.array([(size - 1) / 2 + x, 0.47 * size + y])
    return np.concatenate([linear, (target - linear @ face)[:, None]], axis=1)


def _sampled(picture: Float32, motion: Float64, size: int) -> Float32:
    """The picture in a frame: sampled at four times the resolution and averaged, to avoid aliasing."""
    dense = 4
    matrix = dense * motion
    matrix[:, 2] += (dense - 1) / 2
    large = cv2.warpAffine(
        picture, matrix, (size * dense, size * dense), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]


@cache
def _heads() -> list[Float32]:
    """The head with its mouth closed, half open and open: RGB and the opacity of the head, `(768, 768, 4)`."""
    dark, bright = _drawn(0.0, JAWS[0]), _drawn(GROUND, JAWS[0])
    # the wall's own light falls to half of GROUND in the corners: pixels that change by that much show only wall
    wall = np.clip((bright**1.25 - dark**1.25).mean(-1, keepdims=True) / (0.5 * GROUND), 0, 1)
    shut = np.concatenate([dark * 255, 1 - wall], -1).astype(np.float32)
    heads = [shut]
    for jaw in JAWS[1:]:
        head = shut.copy()
        head[MOUTH_ROWS, MOUTH_COLUMNS, :3] = _drawn(0.0, jaw, (MOUTH_COLUMNS.start, MOUTH_ROWS.start), 384) * 255
        heads.append(head)
    return heads


def _drawn(ground: float, jaw: float, corner: tuple[int, int] = (0, 0), size: int = STILL_PX) -> Float64:
    """The presenter before a background of brightness `ground` in [0, 1], `(size, size, 3)`; a part of the picture."""
    import torch

    from training.presenter import FRAME_PX, default_identity, render, rest_mouth, rest_pose, textures

    identity, mouth = default_identity(1), rest_mouth(1)
    for letter in "rgb":
        identity[f"ground_{letter}"] = torch.full((1,), ground)
    if jaw > 0:
        mouth[0] = torch.tensor((jaw, 0.3, 0.1, 0.5, 0.2, 0.0, 0.0))
    zoom = STILL_PX / FRAME_PX
    part = torch.tensor([[[zoom, 0, (zoom - 1) / 2 - corner[0]], [0, zoom, (zoom - 1) / 2 - corner[1]]]])
    image = render(identity, rest_pose(1), mouth, textures(), size, 2, part)
    return image[0].permute(1, 2, 0).double().numpy()  # type: ignore[no-any-return]


@cache
def _still_landmarks() -> Float64:
    from training.presenter import FRAME_PX, default_identity, landmarks, rest_mouth, rest_pose

    points = landmarks(default_identity(1), rest_pose(1), rest_mouth(1))[0].double().numpy()
    return (points + 0.5) * (STILL_PX / FRAME_PX) - 0.5  # type: ignore[no-any-return]


@cache
def _wall(size: int, scene: int) -> Float32:
    """A still wall with texture of 2 to 40 px, different in each scene, `(size, size, 3)`."""
    random = np.random.default_rng(scene)
    tint = np.array(((150, 140, 120), (95, 120, 150), (120, 150, 110))[scene % 3], np.float32)
    wall = np.zeros((size, size, 1), np.float32)
    for sigma, strength in ((1.5, 14), (5, 18), (18, 26)):
        noise = cv2.GaussianBlur(random.normal(size=(size, size)).astype(np.float32), (0, 0), sigma)
        wall += (strength / noise.std() * noise)[..., None]
    clipped: Float32 = np.clip(tint + wall, 0, 255).astype(np.float32)
    return clipped


def _corners() -> Float64:
    """The middle and the four corners of a crop, in crop px."""
    low, high = -0.5, CROP_PX - 0.5
    return np.array([[CROP_PX / 2 - 0.5] * 2, [low, low], [high, low], [high, high], [low, high]])


def _angle(transforms: Float64) -> Float64:
    return np.arctan2(transforms[:, 1, 0], transforms[:, 0, 0])


def _lag(path: Float64, error: Float64) -> float:
    """The delay of a path in frames: its error as a share of its own speed, negated."""
    speed = np.gradient(path, axis=0)
    power = float((speed**2).sum())
    return -float((error * speed).sum()) / power if power > 1e-9 else 0.0


def _grey(image: UInt8) -> Float32:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)  # type: ignore[no-any-return]
