"""models.avatar.survey: which face is tracked when the first one is hidden, and how long it is waited for."""

import numpy as np
import pytest

from models.avatar.detect import landmarks_68
from models.avatar.face import Face
from models.avatar.survey import FaceTracker
from models.types import UInt8

TIMEOUT = 5  # frames
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


def tracked(*script: str, frames: dict[int, UInt8] | None = None) -> str:
    """The tracked face per frame: a letter, or `.` for none. script: the faces in each frame, by size."""
    scene, out = Scene(), ""
    tracker = FaceTracker(scene, TIMEOUT)
    for k, names in enumerate(script):
        scene.faces = [face(name, 50 + 60 * (name == "B")) for name in names]
        tracker.take((frames or {}).get(k, GREY))
        last = tracker._faces[-1]
        out += "." if last is None else max("AB", key=lambda name: float(LOOKS[name] @ last.appearance))
    return out


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (["AB", "AB", "BA", "BA"], "AAAA"),  # the largest of the first frame, even if others grow
        (["AB", "B", "B", "AB", "AB"], "A..AA"),
        (["A", "B", "", "B", "A"], "A...A"),
        (["", "", "B", "AB"], "..BB"),
    ],
)
def test_a_hidden_face_is_waited_for(script, expected):
    assert tracked(*script) == expected


def test_after_the_timeout_another_face_is_tracked():
    gone = ["B"] * (TIMEOUT + 2)
    assert tracked("A", *gone, "AB", "AB") == "A" + "." * TIMEOUT + "BB" + "BB"


def test_after_a_cut_another_face_is_tracked_at_once():
    assert tracked("A", "A", "B", "B", frames={2: BLUE, 3: BLUE}) == "AABB"
    assert tracked("A", "A", "BA", "BA", frames={2: BLUE, 3: BLUE}) == "AAAA"  # the known face has precedence
    assert tracked("A", "A", "", "B", frames={2: BLUE, 3: BLUE}) == "AA.B"
