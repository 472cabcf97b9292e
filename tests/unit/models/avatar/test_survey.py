"""models.avatar.survey: which face is taken when the followed one is out of sight, and how long it is waited for."""

import numpy as np
import pytest

from models.avatar.detect import landmarks_68
from models.avatar.face import Face
from models.avatar.survey import FaceTracker
from models.types import UInt8

PATIENCE = 5  # frames
GREY, BLUE = (np.full((120, 160, 3), colour, np.uint8) for colour in ((110, 110, 110), (30, 60, 200)))
POINTS = np.random.default_rng(0).uniform(-30, 30, (468, 2)).astype(np.float32)
POINTS[[33, 263, 4]] = (-20, -10), (20, -10), (0, 0)  # eyes and nose of a face from the front
LOOKS = {name: np.random.default_rng(k).normal(size=468).astype(np.float32) for k, name in enumerate("AB")}


def face(name: str, x: float) -> Face:
    mesh = POINTS + np.float32((x, 60))
    return Face((x - 30, 30, x + 30, 90), 0.9, 1.0, mesh, landmarks_68(mesh), LOOKS[name])


class Scene:
    """A detector of a scripted scene: a frame's faces, largest first; follows as the real one does."""

    def __init__(self) -> None:
        self.faces: list[Face] = []

    def detect(self, frame: UInt8, near: Face | None = None) -> list[Face]:
        if near is None:
            return self.faces
        return [known for seen in self.faces if (known := near.recognised(seen)) is not None]


def taken(*script: str, frames: dict[int, UInt8] | None = None) -> str:
    """Who is taken in each frame: a letter, or `.` for nobody. script: who is there, in order of size."""
    scene, out = Scene(), ""
    follower = FaceTracker(scene, PATIENCE)
    for k, names in enumerate(script):
        scene.faces = [face(name, 50 + 60 * (name == "B")) for name in names]
        follower.take((frames or {}).get(k, GREY))
        last = follower._faces[-1]
        out += "." if last is None else max("AB", key=lambda name: float(LOOKS[name] @ last.appearance))
    return out


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (["AB", "AB", "BA", "BA"], "AAAA"),  # the larger of the first frame, however large others grow
        (["AB", "B", "B", "AB", "AB"], "A..AA"),
        (["A", "B", "", "B", "A"], "A...A"),
        (["", "", "B", "AB"], "..BB"),
    ],
)
def test_the_followed_face_is_waited_for(script, expected):
    assert taken(*script) == expected


def test_after_a_while_another_is_taken_and_kept():
    gone = ["B"] * (PATIENCE + 2)
    assert taken("A", *gone, "AB", "AB") == "A" + "." * PATIENCE + "BB" + "BB"


def test_another_shot_may_show_another_face_at_once():
    assert taken("A", "A", "B", "B", frames={2: BLUE, 3: BLUE}) == "AABB"
    assert taken("A", "A", "BA", "BA", frames={2: BLUE, 3: BLUE}) == "AAAA"  # who is known goes first
    assert taken("A", "A", "", "B", frames={2: BLUE, 3: BLUE}) == "AA.B"
