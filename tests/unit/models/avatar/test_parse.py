"""models.avatar.parse: the soft paste mask from landmarks."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from models.avatar.detect import BlazeMesh
from models.avatar.parse import STILL_PX, MaskShape, lower_face_mask, masks_of
from models.avatar.track import crop_transforms, landmarks_in_crop
from tests.support.avatar import FPS, astronaut, hopper

Points = npt.NDArray[np.floating]


@pytest.fixture(scope="module", params=["astronaut", "hopper"])
def landmarks(request: pytest.FixtureRequest) -> Points:
    """Landmarks of a real face in its crop, `(68, 2)`."""
    picture = {"astronaut": astronaut, "hopper": hopper}[request.param]()
    (face,) = BlazeMesh().detect(picture)
    return landmarks_in_crop(crop_transforms(np.stack([face.landmarks] * 3), np.ones(3, bool), FPS))[1]


def weight_at(mask: npt.NDArray[np.uint8], x: float, y: float) -> int:
    return int(mask[round(float(y)), round(float(x))])


def test_the_upper_half_is_not_pasted(landmarks: Points) -> None:
    mask = lower_face_mask(landmarks)
    assert mask.shape == (256, 256) and mask.dtype == np.uint8
    assert mask[:128].max() == 0
    assert mask[128].max() <= 4  # and it begins smoothly


def test_mouth_and_chin_are_pasted(landmarks: Points) -> None:
    mask = lower_face_mask(landmarks)
    assert all(weight_at(mask, x, y) == 255 for x, y in landmarks[48:68])
    assert weight_at(mask, *landmarks[8]) > 240


def test_there_is_room_for_an_opening_jaw(landmarks: Points) -> None:
    """Four crop px below the chin, the mask is at least one half; at the crop's edge it is 0."""
    mask = lower_face_mask(landmarks)
    assert weight_at(mask, landmarks[8, 0], landmarks[8, 1] + 4) > 127
    assert mask[255].max() == 0 and mask[:, [0, 255]].max() == 0


def test_hair_and_background_beside_the_jaw_are_not_pasted(landmarks: Points) -> None:
    mask = lower_face_mask(landmarks)
    for index, outwards in ((2, -1), (3, -1), (13, 1), (14, 1)):
        x, y = landmarks[index]
        assert weight_at(mask, np.clip(x + outwards, 0, 255), y) <= 8, index


def test_the_edge_is_soft_everywhere(landmarks: Points) -> None:
    """No step of more than 12 % between neighbouring pixels, or 20 % around the chin."""
    mask = lower_face_mask(landmarks).astype(int)
    steps = np.maximum(np.abs(np.diff(mask, axis=0))[:, :-1], np.abs(np.diff(mask, axis=1))[:-1])
    assert steps[:200].max() < 0.12 * 255
    assert steps.max() < 0.20 * 255


def test_the_mask_is_one_region_without_holes(landmarks: Points) -> None:
    mask = lower_face_mask(landmarks)
    for level in (1, 127, 254):
        count, _ = cv2.connectedComponents((mask > level).astype(np.uint8))
        holes, _ = cv2.connectedComponents((mask <= level).astype(np.uint8))
        assert (count, holes) == (2, 2), level


def test_the_mask_follows_the_jaw(landmarks: Points) -> None:
    """A jaw moved by half a pixel moves the mask's centre line by half a pixel."""
    moved = landmarks + np.array([0.5, 0])
    columns = np.arange(256)
    rows = slice(170, 230)

    def middle(mask: npt.NDArray[np.uint8]) -> float:
        part = mask[rows].astype(float)
        return float((part * columns).sum() / part.sum())

    assert middle(lower_face_mask(moved)) - middle(lower_face_mask(landmarks)) == pytest.approx(0.5, abs=0.1)


def test_a_still_head_has_one_mask(landmarks: Points) -> None:
    random = np.random.default_rng(0)
    masks, index = masks_of((landmarks + random.normal(size=(30, 68, 2))).astype(np.float32), FPS)
    assert len(masks) == 1 and index.tolist() == [0] * 30
    assert np.abs(masks[0].astype(int) - lower_face_mask(landmarks)).max() < 60


def test_a_turning_head_has_one_smooth_mask_per_frame(landmarks: Points) -> None:
    random, n = np.random.default_rng(0), 40
    turn = 4 * STILL_PX * np.sin(np.arange(n) / FPS * 2 * np.pi * 0.5)
    turning = landmarks + np.stack([turn, 0 * turn], 1)[:, None] + random.normal(size=(n, 68, 2))
    masks, index = masks_of(turning.astype(np.float32), FPS)
    assert len(masks) == n and index.tolist() == list(range(n))
    middles = (masks.astype(float) * np.arange(256)).sum((1, 2)) / masks.sum((1, 2))
    assert np.corrcoef(middles, turn)[0, 1] > 0.99
    assert np.abs(np.diff(middles, 2)).max() < 0.5


def test_the_shape_is_a_parameter(landmarks: Points) -> None:
    narrow = lower_face_mask(landmarks, MaskShape(side_in=20))
    assert (narrow > 0).sum() < 0.96 * (lower_face_mask(landmarks) > 0).sum()


def test_degenerate_landmarks_give_an_empty_mask() -> None:
    assert lower_face_mask(np.full((68, 2), 60.0)).max() == 0
