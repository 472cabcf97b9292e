"""models.avatar.cuts: where a video is cut, and what only looks like it."""

import cv2
import numpy as np
import pytest

from benchmarks.known_motion import known_motion
from models.avatar.cuts import CutEvidence, colours, distance, find_cuts, scenes_of
from models.avatar.detect import BlazeMesh
from models.avatar.survey import FaceTracker
from models.types import UInt8
from tests.support.avatar import astronaut, hopper, moved, similarity, swaying

DETECTOR = BlazeMesh()
STILL = CutEvidence(picture=0.03, jump=0.005, share=1.0)


def cuts_in(frames: list[UInt8]) -> list[int]:
    follower = FaceTracker(DETECTOR)
    for frame in frames:
        follower.take(frame)
    return follower.survey(copied=False).cuts


def portrait(k: int) -> UInt8:
    return moved(hopper(), swaying(hopper(), 40)[k])


def test_the_known_cut_is_found_and_no_other() -> None:
    clip = known_motion(160, 40, cut=23, talking=True)
    assert cuts_in(list(clip.frames())) == [23]


def test_another_person_in_the_same_place_is_a_cut() -> None:
    other = cv2.resize(astronaut(), None, fx=1.7, fy=1.7)[:480]
    other = cv2.copyMakeBorder(other, 0, 480 - other.shape[0], 1, 1, cv2.BORDER_REPLICATE)[:, :512]
    assert cuts_in([portrait(k) for k in range(8)] + [other] * 6) == [8]


def test_a_jump_in_the_same_room_is_a_cut() -> None:
    """A jump cut of an interview: the same wall, and the head a quarter of a face aside from one frame to the next."""
    clip = known_motion(160, 30, cut=None)
    clip.motions[14:, 0, 2] += 45
    assert cuts_in(list(clip.frames())) == [14]


def test_a_flash_is_none() -> None:
    frames = [portrait(k) for k in range(12)]
    frames[6] = np.clip(frames[6] * 1.3, 0, 255).astype(np.uint8)
    assert distance(colours(frames[5]), colours(frames[6])) > 0.3
    assert cuts_in(frames) == []


def test_a_quick_nod_is_none() -> None:
    """4 % of the face's size a frame and back: 1 face a second."""
    path = 8 * np.array([0, 0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0])
    assert cuts_in([moved(hopper(), similarity((480, 512), 0, 1, 0, dy)) for dy in path]) == []


def test_grey_frames_in_between_are_none_where_the_head_goes_on_and_one_where_it_does_not() -> None:
    grey = [np.full_like(hopper(), 128)] * 3
    before = [portrait(k) for k in range(6)]
    assert cuts_in([*before, *grey, *(portrait(k) for k in range(9, 14))]) == []
    elsewhere = [moved(hopper(), similarity((480, 512), 0, 0.7, 90, 40))] * 5
    assert cuts_in([*before, *grey, *elsewhere]) == [9]


@pytest.mark.parametrize(
    ("sign", "cut"),
    [
        (CutEvidence(0.6, 0.3, 0.0), True),  # all at once
        (CutEvidence(0.6, 0.01, 1.0), False),  # the light changes
        (CutEvidence(0.03, 0.3, 1.0), True),  # a jump in the same room
        (CutEvidence(0.03, 0.1, 0.1), True),  # a small one
        (CutEvidence(0.03, 0.1, 1.0), False),  # a jerk, or a slip of the detector
        (CutEvidence(0.03, 0.02, 0.1), False),  # blur
    ],
)
def test_two_signs_must_agree(sign: CutEvidence, cut: bool) -> None:
    assert find_cuts([None, STILL, STILL, sign, STILL, STILL]) == ([3] if cut else [])


def test_fast_motion_that_lasts_is_none() -> None:
    for fast in (CutEvidence(0.03, 0.1, 0.2), CutEvidence(0.05, 0.3, 1.0)):
        assert find_cuts([None, STILL, fast, fast, fast, STILL]) == []


def test_scenes_lie_between_cuts() -> None:
    assert scenes_of([], 5) == [slice(0, 5)]
    assert scenes_of([3, 4], 5) == [slice(0, 3), slice(3, 4), slice(4, 5)]
    assert scenes_of([0, 5, 3, 3], 5) == [slice(0, 3), slice(3, 5)]
