"""models.avatar.cuts: the cuts of a video, and sequences that only resemble them."""

import cv2
import numpy as np
import pytest

from models.avatar.cuts import CutEvidence, colours, distance, find_cuts, scenes_of
from models.avatar.detect import BlazeMesh
from models.avatar.survey import FaceTracker
from models.types import UInt8
from tests.support.avatar import astronaut, hopper, moved, similarity, swaying
from tests.support.staged_faces import head_mask, put

DETECTOR = BlazeMesh()
STILL = CutEvidence(picture=0.03, jump=0.005, share=1.0)


def cuts_in(frames: list[UInt8]) -> list[int]:
    follower = FaceTracker(DETECTOR)
    for frame in frames:
        follower.take(frame)
    return follower.survey(copied=False).cuts


def portrait(k: int) -> UInt8:
    return moved(hopper(), swaying(hopper(), 40)[k])


def test_another_person_in_the_same_place_is_a_cut() -> None:
    other = cv2.resize(astronaut(), None, fx=1.7, fy=1.7)[:480]
    other = cv2.copyMakeBorder(other, 0, 480 - other.shape[0], 1, 1, cv2.BORDER_REPLICATE)[:, :512]
    assert cuts_in([portrait(k) for k in range(8)] + [other] * 6) == [8]


def test_a_jump_in_the_same_room_is_a_cut() -> None:
    """A jump cut in an interview: the same wall, and the head moves by a quarter of its size within one frame."""
    head = head_mask(astronaut())
    wall = np.random.default_rng(0).integers(60, 160, (20, 28, 3), dtype=np.uint8)
    wall = cv2.resize(wall, (420, 300), interpolation=cv2.INTER_CUBIC)
    places = [20 + 0.5 * k + 30 * (k >= 6) for k in range(12)]  # px, of a face of 109 px
    assert cuts_in([put(wall, astronaut(), x, 0, 1.0, head) for x in places]) == [6]


def test_a_flash_is_not_a_cut() -> None:
    frames = [portrait(k) for k in range(12)]
    frames[6] = np.clip(frames[6] * 1.3, 0, 255).astype(np.uint8)
    assert distance(colours(frames[5]), colours(frames[6])) > 0.3
    assert cuts_in(frames) == []


def test_a_quick_nod_is_not_a_cut() -> None:
    """4 % of the face's size per frame and back: one face size per second."""
    path = 8 * np.array([0, 0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0])
    assert cuts_in([moved(hopper(), similarity((480, 512), 0, 1, 0, dy)) for dy in path]) == []


def test_grey_frames_are_a_cut_only_if_the_head_is_elsewhere_after_them() -> None:
    grey = [np.full_like(hopper(), 128)] * 3
    before = [portrait(k) for k in range(6)]
    assert cuts_in([*before, *grey, *(portrait(k) for k in range(9, 14))]) == []
    elsewhere = [moved(hopper(), similarity((480, 512), 0, 0.7, 90, 40))] * 5
    assert cuts_in([*before, *grey, *elsewhere]) == [9]


@pytest.mark.parametrize(
    ("evidence", "cut"),
    [
        (CutEvidence(0.6, 0.3, 0.0), True),  # everything changes
        (CutEvidence(0.6, 0.01, 1.0), False),  # changing light
        (CutEvidence(0.03, 0.3, 1.0), True),  # a large jump in the same room
        (CutEvidence(0.03, 0.1, 0.1), True),  # a small jump, with lost features
        (CutEvidence(0.03, 0.1, 1.0), False),  # a quick movement, or an error of the detector
        (CutEvidence(0.03, 0.02, 0.1), False),  # motion blur
    ],
)
def test_two_indications_must_agree(evidence: CutEvidence, cut: bool) -> None:
    assert find_cuts([None, STILL, STILL, evidence, STILL, STILL]) == ([3] if cut else [])


def test_fast_motion_over_several_frames_is_not_a_cut() -> None:
    for fast in (CutEvidence(0.03, 0.1, 0.2), CutEvidence(0.05, 0.3, 1.0)):
        assert find_cuts([None, STILL, fast, fast, fast, STILL]) == []


def test_scenes_are_between_cuts() -> None:
    assert scenes_of([], 5) == [slice(0, 5)]
    assert scenes_of([3, 4], 5) == [slice(0, 3), slice(3, 4), slice(4, 5)]
    assert scenes_of([0, 5, 3, 3], 5) == [slice(0, 3), slice(3, 5)]
