"""DWPose's 68 face points, run with onnxruntime, without mmcv or mmpose: the landmarks that MuseTalk itself uses.

`dw-ll_ucoco_384.onnx` (Yang et al. 2023; IDEA-Research/DWPose) is a top-down pose network: input `(1, 3, 384, 288)`;
outputs are SimCC scores of 133 whole-body points along x `(1, 133, 576)` and y `(1, 133, 768)`, two bins per px.
MuseTalk runs it on the whole frame, without a person detector (musetalk/utils/preprocessing.py: mmpose's
`inference_topdown`), and averages the scores with those of the mirrored picture (`flip_test` of its config).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from models.avatar.face import Face
from models.errors import WeightsError
from models.types import Float32, UInt8
from models.weights.loading import fetch_again
from models.weights.manifest import missing_error

INPUT_WIDTH, INPUT_HEIGHT = 288, 384
POINTS = 133  # COCO-WholeBody: 17 body, 6 feet, 68 face, 42 hands
FACE = slice(23, 91)  # iBUG's 68, in iBUG's order
BINS_PER_PX = 2  # SimCC's split ratio
PADDING = 1.25  # side of the network's view over the person's box, which is the whole frame here
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB, ImageNet's
MIN_SCORE = 0.3  # mean peak over the face points: DWPose's own annotator draws points above it
MIN_EXTENT_PX = 2.0  # points within less than this are not a face
MIRRORED = np.array(
    [
        *range(16, -1, -1),  # jaw
        *range(26, 16, -1),  # brows
        *(27, 28, 29, 30, 35, 34, 33, 32, 31),  # nose
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),  # outer lip
        *(64, 63, 62, 61, 60, 67, 66, 65),  # inner lip
    ]
)  # index of the iBUG point at the mirrored position


class DWPose:
    """A FaceDetector that returns at most one face per frame. Thread-safe.

    min_score: lowest mean peak of the face points that counts as a face. mirror: average with the mirrored picture, as
    MuseTalk does; takes twice the time.
    """

    def __init__(self, session: Any, min_score: float = MIN_SCORE, mirror: bool = True) -> None:
        self._session, self.min_score, self.mirror = session, min_score, mirror
        self._input = session.get_inputs()[0].name

    @classmethod
    def load(
        cls, path: str | Path, min_score: float = MIN_SCORE, mirror: bool = True, threads: int = 0, device: str = "cpu"
    ) -> DWPose:
        """Load the ONNX file. threads: 0 lets onnxruntime choose. device: `cuda` needs onnxruntime-gpu.

        Raises WeightsError for a missing or damaged file, or a network with other shapes.
        """
        import onnxruntime

        if not Path(path).is_file():
            raise missing_error(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's errors share no base class
            raise WeightsError(f"{path} is not a complete ONNX file: {error}.", fetch_again(Path(path))) from error
        _check_shapes(session, path)
        return cls(session, min_score, mirror)

    def detect(self, frame: UInt8, near: Face | None = None) -> list[Face]:
        """See FaceDetector. `near` is ignored: the network always sees the whole frame."""
        points, peaks = self.points(frame)
        score, extent = float(peaks.mean()), float(np.ptp(points, axis=0).min())
        if score < self.min_score or extent < MIN_EXTENT_PX:
            return []
        low, high = points.min(0).tolist(), points.max(0).tolist()
        return [Face((low[0], low[1], high[0], high[1]), score, score, points, points)]

    def points(self, frame: UInt8) -> tuple[Float32, Float32]:
        """Return the 68 face points, float32 `(68, 2)` in frame px, and their peaks `(68,)`, without a threshold."""
        height, width = frame.shape[:2]
        transform, size = top_down(width, height)
        picture = cv2.warpAffine(frame, transform, (INPUT_WIDTH, INPUT_HEIGHT), flags=cv2.INTER_LINEAR)
        x: Float32 = (picture.astype(np.float32) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        along_x, along_y = self._run(x)
        if self.mirror:
            flipped_x, flipped_y = self._run(x[:, ::-1])
            along_x = np.float32(0.5) * (along_x + flipped_x[MIRRORED, ::-1])
            along_y = np.float32(0.5) * (along_y + flipped_y[MIRRORED])
        points, peaks = decode(along_x, along_y)
        seen = points / (INPUT_WIDTH, INPUT_HEIGHT) * size + np.array([width, height]) / 2 - size / 2
        return seen.astype(np.float32), peaks

    def _run(self, x: Float32) -> tuple[Float32, Float32]:
        """Normalised `(384, 288, 3)` → scores of the face points along x `(68, 576)` and y `(68, 768)`."""
        batch = np.ascontiguousarray(x.transpose(2, 0, 1)[None])
        along_x, along_y = self._session.run(None, {self._input: batch})
        return along_x[0, FACE], along_y[0, FACE]


def top_down(width: int, height: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the transform `(2, 3)` from a whole frame to the network's input, and the size of its view in frame px.

    As mmpose's GetBBoxCenterScale and TopdownAffine: the frame, enlarged by a quarter, extended to the input's aspect.
    """
    size = PADDING * np.array([width, height], np.float64)
    ratio = INPUT_WIDTH / INPUT_HEIGHT
    size = np.array([size[0], size[0] / ratio]) if size[0] > size[1] * ratio else np.array([size[1] * ratio, size[1]])
    scale = INPUT_WIDTH / size[0]
    shift = np.array([INPUT_WIDTH, INPUT_HEIGHT]) / 2 - scale * np.array([width, height]) / 2
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), size


def decode(along_x: Float32, along_y: Float32) -> tuple[Float32, Float32]:
    """Decode SimCC scores `(k, 576)`, `(k, 768)` to positions `(k, 2)` in input px and peaks `(k,)`.

    A peak is the lower of both axes' peaks.
    """
    bins = np.stack([along_x.argmax(1), along_y.argmax(1)], axis=1).astype(np.float32)
    peaks = np.minimum(along_x.max(1), along_y.max(1))
    bins[peaks <= 0] = -1  # as mmpose marks points that are not visible
    return bins / np.float32(BINS_PER_PX), peaks


def _check_shapes(session: Any, path: str | Path) -> None:
    """Raise WeightsError unless the network has DWPose's input and outputs; dynamic sizes pass."""
    wanted = {
        "input": (1, 3, INPUT_HEIGHT, INPUT_WIDTH),
        "first output": (1, POINTS, BINS_PER_PX * INPUT_WIDTH),
        "second output": (1, POINTS, BINS_PER_PX * INPUT_HEIGHT),
    }
    outputs = session.get_outputs()
    given = [session.get_inputs()[0].shape, *(output.shape for output in outputs)]
    if len(given) != len(wanted):
        raise WeightsError(f"{path} has {len(outputs)} outputs, not 2.", "Use dw-ll_ucoco_384.onnx.")
    for (what, shape), found in zip(wanted.items(), given, strict=True):
        fits = len(found) == len(shape) and all(
            f == w for f, w in zip(found[1:], shape[1:], strict=True) if isinstance(f, int)
        )
        if not fits:
            raise WeightsError(f"The {what} of {path} has shape {found}, not {shape}.", "Use dw-ll_ucoco_384.onnx.")
