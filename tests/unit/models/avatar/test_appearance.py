"""models.avatar.appearance and Face.recognised: the same face, another one, a covered one, one in profile."""

import cv2
import numpy as np
import pytest

from models.avatar.appearance import SAME, adapted, correlation
from models.avatar.detect import _square_around
from models.avatar.face import Face
from models.types import UInt8
from tests.support.avatar import astronaut, hopper, moved, similarity
from tests.support.staged_faces import bearded, behind_a_hand, detector, face_of, turned


def read(picture: UInt8, near: Face) -> Face:
    """Read the mesh at the position of `near`, without comparing appearances."""
    face = detector()._read_mesh(picture, *_square_around(near.mesh), 1.0)
    assert face is not None
    return face


@pytest.mark.parametrize(
    "change",
    [
        lambda p: moved(p, similarity(p.shape, 20)),
        lambda p: moved(p, similarity(p.shape, 0, 0.6)),
        lambda p: (p * 0.4).astype(np.uint8),
        lambda p: np.clip(p * np.linspace(0.4, 1.4, p.shape[1])[None, :, None], 0, 255).astype(np.uint8),
        lambda p: cv2.GaussianBlur(p, (0, 0), 4),
    ],
    ids=["rolled", "smaller", "darker", "lit from the side", "out of focus"],
)
def test_the_same_face_is_recognised(change):
    known, seen = face_of(hopper()), face_of(change(hopper()))
    assert correlation(known.appearance, seen.appearance) > 0.9
    assert known.recognised(seen) is not None


def test_another_face_is_not_recognised():
    one, other = face_of(hopper()), face_of(astronaut())
    assert correlation(one.appearance, other.appearance) < 0.45 < SAME
    assert one.recognised(other) is None and other.recognised(one) is None


@pytest.mark.parametrize("yaw", [20, 50])
def test_a_turned_head_is_recognised(yaw):
    front, aside = face_of(turned(0)), face_of(turned(yaw))
    assert aside.turn < front.turn - yaw / 150
    assert front.recognised(aside) is not None


@pytest.mark.parametrize("bow", [-30, 10, 30])
def test_a_nodding_head_is_recognised(bow):
    upright, nodding = face_of(turned(0)), face_of(turned(0, bow))
    assert np.sign(nodding.bow - upright.bow) == np.sign(bow)
    assert upright.recognised(nodding) is not None


def test_a_profile_is_not_a_face():
    assert 0.45 < face_of(turned(0)).turn < 0.55
    assert [detector().detect(turned(yaw)) for yaw in (65, 75, 90)] == [[], [], []]


@pytest.mark.parametrize("picture", [hopper, astronaut])
def test_a_face_is_not_recognised_while_a_hand_covers_its_mouth(picture):
    known = face_of(picture())
    hidden = behind_a_hand(picture(), known)
    assert read(hidden, known).flag > 0.9  # the mesh network invents a mouth
    assert detector().detect(hidden, known) == []
    assert len(detector().detect(picture(), known)) == 1


def test_a_bearded_face_is_recognised():
    shaved = face_of(hopper())
    known = face_of(bearded(hopper(), shaved))
    error = np.linalg.norm(known.landmarks - shaved.landmarks, axis=1).max()
    assert error < 0.08 * shaved.size_px  # the mesh finds lips and chin below the beard
    aside = moved(hopper(), similarity(hopper().shape, 5, 1, 8, 5))
    swayed = bearded(aside, read(aside, shaved))
    assert len(detector().detect(swayed, known)) == 1


def test_points_outside_the_frame_are_not_compared():
    whole = face_of(hopper())
    middle = round(float(whole.mesh[:, 0].mean()))
    cut = read(np.ascontiguousarray(hopper()[:, : middle + 20]), whole)
    assert 0.2 < np.isnan(cut.appearance).mean() < 0.5
    assert whole.recognised(cut) is not None


def test_a_tracked_faces_appearance_is_averaged():
    a, b = np.float32([1, -1, np.nan, 2]), np.float32([2, -1, 5, np.nan])
    np.testing.assert_allclose(adapted(a, b), [1.1, -1, 5, 2], rtol=1e-6)
