"""The mask from landmarks beside MuseTalk's region from a parser, on the embedded presenter's own frames.

No parser's weights ship with the project. What a perfect one would say of these frames is known all the same: the
presenter's renderer draws skin, nose, lips, neck and hair one after the other, at the poses of its clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.avatar.parse import REGION_MODES, paste_region, region_mask
from models.avatar.store import AvatarStore
from models.avatar.track import musetalk_box
from models.geometry import apply, crop_box_of
from models.stitch.blends import Alpha
from models.stitch.musetalk_paste import alpha_of
from models.stitch.paste import warp_alpha
from models.types import UInt8
from tests.support.paths import ROOT
from tests.support.presenter_labels import HAIR, NECK, NOSE, labels_of, with_nose
from training.make_presenter import idle_poses
from training.presenter import Pose, default_identity, rest_mouth

FRAMES = (0, 37, 75, 120)
EMBEDDED = ROOT / "models" / "embedded"
Mask = npt.NDArray[np.bool_]


@dataclass
class Compared:
    """One frame: both masks at half weight, the parser's labels in frame px, landmarks, and frame px per crop px."""

    parsed: dict[str, Mask]
    landmark: Mask
    weights: UInt8  # of the mask from landmarks
    labels: npt.NDArray[np.int64]
    points: npt.NDArray[Any]
    px: float


def whole(alpha: Alpha, size: tuple[int, int]) -> UInt8:
    out = np.zeros(size, np.uint8)
    out[alpha.region] = alpha.weights
    return out


@pytest.fixture(scope="module")
def compared() -> list[Compared]:
    avatar, poses = AvatarStore(EMBEDDED, EMBEDDED / "avatars").load("presenter", latents=False), idle_poses()
    size, found = (avatar.height, avatar.width), []
    for k in FRAMES:
        pose = Pose({name: value[k : k + 1] for name, value in poses.items()})
        box = musetalk_box(avatar.landmarks[k], avatar.height)
        square = crop_box_of(box)
        zoom = 512 / (square[2] - square[0])
        shift = [(zoom - 1) / 2 - zoom * edge for edge in square[:2]]
        transform = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
        labels = labels_of(default_identity(1), pose, rest_mouth(1), torch.tensor(transform[None], dtype=torch.float32))
        labels = with_nose(labels, apply(transform, avatar.landmarks[k]))
        weights = whole(warp_alpha(avatar.transforms[k], avatar.masks[k], size), size)
        parsed = {
            mode: whole(alpha_of(region_mask(paste_region(labels, mode), box, square), square, size), size) > 127
            for mode in REGION_MODES
        }
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        inside = cv2.warpAffine(labels.astype(np.uint8), transform, size[::-1], flags=flags).astype(np.int64)
        px = 1 / float(np.sqrt(np.linalg.det(avatar.transforms[k][:, :2])))
        found.append(Compared(parsed, weights > 127, weights, inside, avatar.landmarks[k], px))
    return found


def overlap(a: Mask, b: Mask) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


def apart(a: Mask, b: Mask) -> float:
    """Mean distance in px from the edge of `a` to the edge of `b`, both ways."""
    edges = [mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) for mask in (a, b)]
    away = [cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for edge in edges]
    return float((away[1][edges[0]].mean() + away[0][edges[1]].mean()) / 2)


def below_the_nose(frame: Compared) -> Mask:
    rows = np.zeros(frame.landmark.shape, bool)
    rows[int(frame.points[33, 1]) + 1 :] = True
    return rows


def test_the_parser_labels_match_the_presenter(compared: list[Compared]) -> None:
    """The renderer's lips are where FaceMesh finds them, and skin is between them and the hair."""
    for frame in compared:
        lips = np.isin(frame.labels, (11, 12, 13))
        rows, columns = np.nonzero(lips)
        outer = frame.points[48:60]
        assert abs(columns.mean() - outer[:, 0].mean()) < 3 and abs(rows.mean() - outer[:, 1].mean()) < 4
        assert abs(np.ptp(columns) - np.ptp(outer[:, 0])) < 12
        assert all((frame.labels == label).sum() > 300 for label in (1, NOSE, NECK, HAIR))


def test_both_masks_cover_the_same_face_below_the_nose(compared: list[Compared]) -> None:
    """This is where the mouth moves. Above, MuseTalk excludes the nose, and the mask from landmarks starts softly."""
    for frame in compared:
        below = below_the_nose(frame)
        parsed, landmark = frame.parsed["jaw"] & below, frame.landmark & below
        everywhere, share, distance = (
            overlap(frame.parsed["jaw"], frame.landmark),
            overlap(parsed, landmark),
            apart(parsed, landmark) / frame.px,
        )
        print(f"overlap {share:.3f} below the nose, {everywhere:.3f} in all; edges {distance:.1f} crop px apart")
        assert share > 0.92 and everywhere > 0.78 and distance < 2.5


def test_both_masks_contain_lips_and_chin(compared: list[Compared]) -> None:
    for frame in compared:
        lips = np.isin(frame.labels, (11, 12, 13))
        assert all(frame.parsed[mode][lips].all() for mode in REGION_MODES)
        assert frame.weights[lips].min() == 255
        x, y = frame.points[8].astype(int)
        assert frame.landmark[y - 4, x] and frame.parsed["jaw"][y - 4, x]


def test_the_mask_from_landmarks_excludes_hair_and_background(compared: list[Compared]) -> None:
    """It covers skin, and a little of the neck below the chin, as MuseTalk's jaw region does."""
    for frame in compared:
        weight = frame.weights.astype(float)
        outside = weight[np.isin(frame.labels, (0, HAIR))].sum() / weight.sum()
        neck = weight[frame.labels == NECK].sum() / weight.sum()
        jaw_neck = (frame.parsed["jaw"] & (frame.labels == NECK)).sum() / frame.parsed["jaw"].sum()
        print(f"hair and room {outside:.4f}, neck {neck:.3f}; MuseTalk's jaw: neck {jaw_neck:.3f}")
        assert outside < 0.02 and neck < 0.06
