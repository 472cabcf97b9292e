"""Finds faces and their landmarks in one picture: BlazeFace and FaceMesh, run with OpenCV.

Sources of the constants: MediaPipe's model cards and graphs for "BlazeFace (short range)" and "Face Mesh": 128 px
letterboxed input in [-1, 1], 896 anchors of strides 8 (2 per cell) and 16 (6 per cell), outputs in input pixels; 192 px
mesh input in [0, 1], cut as a square 1.5 times the face and rotated so that the eyes are level.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.appearance import sample_appearance
from models.avatar.face import Face, FaceDetector
from models.errors import ConfigError, WeightsError
from models.geometry import apply, invert, warp
from models.types import Float32, UInt8

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded" / "detect"
DETECTOR_FILE, MESH_FILE = "face_detection_short_range.tflite", "face_landmark.tflite"
DETECTORS = ("blazemesh", "dwpose")
DETECTOR_PX, MESH_PX = 128, 192
MESH_POINTS = 468
MESH_MARGIN = 1.5  # side of the mesh's input square over the face's longer side
MIN_SCORE = 0.8  # of the detector
MIN_FLAG = 0.9  # of the mesh network: probability that its input shows a face
MAX_SETTLE_ROUNDS = 16  # the mesh depends on its input square and the square on the mesh: repeated until both agree
SETTLED = 2e-4  # mean movement, in face sizes, below which they agree: 0.04 px for a face of 200 px
SAME_FACE_IOU = 0.3  # boxes that overlap more are the same face
PROFILE = 0.05  # Face.turn nearer than this to 0 or 1 is a profile: half of the mouth is hidden
ZOOM_OUT = 0.5  # a face that fills the frame is found in a picture with a border
MIN_TILE_PX, MIN_TILE_SHARE = 160, 0.25  # smallest tile, in px and relative to the frame's short side
RIGHT_EYE, LEFT_EYE = 33, 263  # outer corners in the mesh, the subject's right and left

# iBUG's 68 points in the 468-point mesh; an iBUG point between two mesh points has both. Mirror pairs of iBUG are
# mirror pairs of the mesh. The jaw is the mesh's face oval from temple to temple. The bridge of the nose runs from
# between the eyes to the tip in equal steps, as iBUG's does.
MESH_OF_68: tuple[tuple[int, ...], ...] = (
    *((127,), (234,), (132,), (58,), (172,), (136,), (149,), (176,)),  # 0–7 jaw, from the subject's right temple
    (152,),  # 8 chin
    *((400,), (378,), (365,), (397,), (288,), (361,), (454,), (356,)),  # 9–16 jaw, to the left temple
    *((70,), (63,), (105,), (66,), (107,)),  # 17–21 right brow
    *((336,), (296,), (334,), (293,), (300,)),  # 22–26 left brow
    *((168, 6), (197,), (195, 5), (4,)),  # 27–30 bridge of the nose to its tip
    *((98,), (97,), (2,), (326,), (327,)),  # 31–35 nostrils
    *((33,), (160,), (158,), (133,), (153,), (144,)),  # 36–41 right eye
    *((362,), (385,), (387,), (263,), (373,), (380,)),  # 42–47 left eye
    *((61,), (40,), (37,), (0,), (267,), (270,), (291,)),  # 48–54 outer lip, upper edge
    *((321,), (314,), (17,), (84,), (91,)),  # 55–59 outer lip, lower edge
    *((78,), (81,), (13,), (311,), (308,)),  # 60–64 inner lip, upper edge
    *((402,), (14,), (178,)),  # 65–67 inner lip, lower edge
)
_FIRST = np.array([points[0] for points in MESH_OF_68])
_SECOND = np.array([points[-1] for points in MESH_OF_68])


def open_detector(name: str, weights: str | Path | None = None) -> FaceDetector:
    """Open `blazemesh`, whose weights are part of WarmTalk, or `dwpose` with the ONNX file `weights`.

    Raises:
        ConfigError: unknown name.
        WeightsError: the file is missing or does not fit.
    """
    if name == "blazemesh":
        return BlazeMesh()
    if name == "dwpose":
        from models.avatar.dwpose import DWPose

        if weights is None:
            raise WeightsError(
                "The detector dwpose has no weights.", "Set detector_weights to the path of dw-ll_ucoco_384.onnx."
            )
        return DWPose.load(weights)
    raise ConfigError(f"Unknown detector {name!r}.", f"Use one of {', '.join(DETECTORS)}.")


@dataclass(frozen=True, slots=True)
class _Found:
    """A detection: centre and size of the box, and the two eyes, in frame px."""

    centre: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64]
    eyes: npt.NDArray[np.float64]  # (2, 2): the subject's right, left
    score: float


class BlazeMesh:
    """A FaceDetector: BlazeFace (short range) finds faces, FaceMesh reads 468 points of each. Thread-safe.

    folder: contains the two .tflite files. A face counts if the detector's score exceeds `min_score` and the mesh's
    flag exceeds `min_flag`. Raises WeightsError for a missing file.
    """

    def __init__(self, folder: Path = EMBEDDED, min_score: float = MIN_SCORE, min_flag: float = MIN_FLAG) -> None:
        self.min_score, self.min_flag = min_score, min_flag
        self._detector, self._mesh = _read_net(folder / DETECTOR_FILE), _read_net(folder / MESH_FILE)
        self._anchors = _anchors()
        self._lock = threading.Lock()

    def detect(self, frame: UInt8, near: Face | None = None) -> list[Face]:
        """See FaceDetector. A frame without a face takes longest: it is searched in overlapping tiles."""
        assert frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8, (frame.shape, frame.dtype)
        with self._lock:
            if near is not None:
                tracked = self._read_mesh(frame, *_square_around(near.mesh), near.score)
                known = near.recognised(tracked) if tracked is not None else None
                if known is not None:
                    return [known]
            for view in _views(*frame.shape[:2]):
                faces = [self._read_mesh(frame, *_square_of(found), found.score) for found in self._find(frame, *view)]
                kept = _distinct([self._settle(frame, face) for face in faces if face is not None])
                if near is not None:
                    kept = [known for face in kept if (known := near.recognised(face)) is not None]
                if kept:
                    return kept
        return []

    def _settle(self, frame: UInt8, face: Face) -> Face:
        """Read the mesh again from its own square until it stays: the result of tracking it in a still picture."""
        for _ in range(MAX_SETTLE_ROUNDS):
            again = self._read_mesh(frame, *_square_around(face.mesh), face.score)
            if again is None:
                break
            moved, face = float(np.abs(again.mesh - face.mesh).mean()), again
            if moved < SETTLED * face.size_px:
                break
        return face

    def _find(self, frame: UInt8, left: float, top: float, side: float) -> list[_Found]:
        """Faces in a square part of `frame`, black outside the frame."""
        picture, scale = _letterbox(frame, left, top, side)
        self._detector.setInput(np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / 127.5 - 1)
        outputs = sorted(self._detector.forward(self._detector.getUnconnectedOutLayersNames()), key=np.size)
        scores = 1 / (1 + np.exp(-np.clip(outputs[0].reshape(-1), -80, 80).astype(np.float64)))  # (896,)
        points = outputs[1].reshape(-1, 8, 2).astype(np.float64)  # (896, centre + size + 6 key points, 2) in input px
        points[:, [0, *range(2, 8)]] += self._anchors[:, None]
        origin = np.array([left, top])
        found = []
        for chosen in _clusters(points, scores, self.min_score):
            weights = scores[chosen][:, None, None]
            mean = (points[chosen] * weights).sum(0) / weights.sum()  # BlazeFace blends overlapping detections
            mean[[0, *range(2, 8)]] = mean[[0, *range(2, 8)]] / scale + origin - 0.5  # px edges → px centres
            found.append(_Found(mean[0], mean[1] / scale, mean[2:4], float(scores[chosen].max())))
        return found

    def _read_mesh(
        self, frame: UInt8, centre: npt.NDArray[np.float64], side: float, angle: float, score: float
    ) -> Face | None:
        """The face in the rotated square; None if the mesh sees none there, or one in profile."""
        if not 8 <= side <= 16 * max(frame.shape):
            return None
        forward = _turned_square(centre, side, angle, MESH_PX)
        crop = warp(frame, forward, MESH_PX, fine=False)
        self._mesh.setInput(np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32) / 255)
        outputs = sorted(self._mesh.forward(self._mesh.getUnconnectedOutLayersNames()), key=np.size)
        flag = float(1 / (1 + np.exp(-np.clip(float(outputs[0].reshape(-1)[0]), -80, 80))))
        if flag <= self.min_flag:
            return None
        in_crop = outputs[1].reshape(MESH_POINTS, 3)[:, :2].astype(np.float64) - 0.5
        mesh = apply(invert(forward), in_crop).astype(np.float32)
        box = (*mesh.min(0).tolist(), *mesh.max(0).tolist())
        inside = np.all((mesh >= 0) & (mesh <= np.subtract(frame.shape[1::-1], 1)), axis=1)
        face = Face(box, score, flag, mesh, landmarks_68(mesh), sample_appearance(crop, in_crop, inside))
        return face if PROFILE < face.turn < 1 - PROFILE else None


def landmarks_68(mesh: Float32) -> Float32:
    """Return iBUG's 68 points `(…, 68, 2)` of a mesh `(…, 468, 2)`."""
    return cast(Float32, (mesh[..., _FIRST, :] + mesh[..., _SECOND, :]) / 2)


def _read_net(path: Path) -> Any:
    try:
        # The default engine of OpenCV 5 drops one of BlazeFace's outputs.
        return cv2.dnn.readNetFromTFLite(str(path), engine=cv2.dnn.ENGINE_CLASSIC)
    except cv2.error as error:
        raise WeightsError(
            f"The face detector's file {path} cannot be read.", "Install WarmTalk again, or restore the file."
        ) from error


def _anchors() -> npt.NDArray[np.float64]:
    """Centres of BlazeFace's 896 anchors in input px, `(896, 2)`."""
    centres = []
    for stride, each in ((8, 2), (16, 6)):
        cells = DETECTOR_PX // stride
        y, x = np.mgrid[:cells, :cells]
        grid = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride
        centres.append(np.repeat(grid, each, axis=0))
    return np.concatenate(centres)


def _views(height: int, width: int) -> Iterator[tuple[float, float, float]]:
    """Squares (left, top, side) to search in this order: the whole frame, the frame with a border, smaller tiles.

    BlazeFace finds faces from about a sixth of its input, so a 1080p frame is searched down to faces of 45 px.
    """
    long, short = max(height, width), min(height, width)
    for side in (long, long / ZOOM_OUT):
        yield (width - side) / 2, (height - side) / 2, side
    side = short if short < long else short / 2
    while side >= max(MIN_TILE_PX, MIN_TILE_SHARE * short):
        for top in _steps(height, side):
            for left in _steps(width, side):
                yield left, top, side
        side /= 2


def _steps(length: int, side: float) -> npt.NDArray[np.float64]:
    """Starts of tiles that cover `length` and overlap by half or more."""
    return np.linspace(0, length - side, int(np.ceil((length - side) / (side / 2))) + 1)


def _letterbox(frame: UInt8, left: float, top: float, side: float) -> tuple[UInt8, float]:
    """The view scaled to the detector's 128 px, black outside the frame; and its scale (input px per frame px)."""
    height, width = frame.shape[:2]
    x1, y1 = max(0, round(left)), max(0, round(top))
    x2, y2 = min(width, round(left + side)), min(height, round(top + side))
    scale = DETECTOR_PX / side
    x, y = round((x1 - left) * scale), round((y1 - top) * scale)
    w = min(DETECTOR_PX - x, max(1, round((x2 - x1) * scale)))
    h = min(DETECTOR_PX - y, max(1, round((y2 - y1) * scale)))
    picture = np.zeros((DETECTOR_PX, DETECTOR_PX, 3), np.uint8)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture[y : y + h, x : x + w] = cv2.resize(frame[y1:y2, x1:x2], (w, h), interpolation=method)
    return picture, scale


def _clusters(
    points: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], min_score: float
) -> Iterator[npt.NDArray[np.int64]]:
    """Groups of overlapping anchors above `min_score`, best first."""
    order = np.flatnonzero(scores > min_score)
    order = order[np.argsort(-scores[order], kind="stable")]
    corners = np.concatenate([points[:, 0] - points[:, 1] / 2, points[:, 0] + points[:, 1] / 2], axis=1)
    while len(order):
        overlap = np.array([_iou(corners[order[0]], corners[k]) for k in order]) > SAME_FACE_IOU
        overlap[0] = True
        yield order[overlap]
        order = order[~overlap]


def _iou(a: Any, b: Any) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return float(both / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both, 1e-9))


def _distinct(faces: list[Face]) -> list[Face]:
    """Faces without duplicates, largest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.size_px):
        if all(_iou(face.box, other.box) <= SAME_FACE_IOU for other in kept):
            kept.append(face)
    return kept


def _square_of(found: _Found) -> tuple[npt.NDArray[np.float64], float, float]:
    """Centre, side and angle of the mesh's input for a detection."""
    across = found.eyes[1] - found.eyes[0]
    return found.centre, float(found.size.max()) * MESH_MARGIN, float(np.arctan2(across[1], across[0]))


def _square_around(mesh: Float32) -> tuple[npt.NDArray[np.float64], float, float]:
    """Centre, side and angle of the mesh's input for a face from the frame before."""
    points = mesh.astype(np.float64)
    across = points[LEFT_EYE] - points[RIGHT_EYE]
    angle = float(np.arctan2(across[1], across[0]))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    upright = points @ turn.T
    low, high = upright.min(0), upright.max(0)
    return (low + high) / 2 @ turn, float((high - low).max()) * MESH_MARGIN, angle


def _turned_square(centre: npt.NDArray[np.float64], side: float, angle: float, size: int) -> npt.NDArray[np.float64]:
    """Transform `(2, 3)`, frame px → `size`² px of a square, rotated by `angle` radians."""
    scale = size / side
    linear = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.concatenate([linear, (np.full(2, (size - 1) / 2) - linear @ centre)[:, None]], axis=1)
