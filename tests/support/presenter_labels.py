"""What a perfect face parser would say of the presenter: the layers of its own renderer, as CelebAMask-HQ's labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import cv2
import numpy as np
import numpy.typing as npt
import torch

from training import presenter
from training.presenter_canvas import COARSE, Canvas, View
from training.presenter_identity import Identity, Pose
from training.presenter_shape import body_matrix, columns, compose, head_matrix, inverse

NOSE, NECK, CLOTH, HAIR = 10, 14, 16, 17
PAINTERS = {  # each painter's label, from the back to the front; the mouth's are below
    "paint_hair_back": HAIR,
    "paint_neck": NECK,
    "paint_clothes": CLOTH,
    "paint_ear": 7,
    "paint_skin": 1,
    "paint_nostrils": NOSE,
    "paint_eye": 4,
    "paint_brow": 2,
    "paint_hair_front": HAIR,
}
MOUTH_STROKES = (12, 13, 11)  # upper lip, lower lip, what is between them
BLANK = 1000.0  # brighter than any colour: what half hides it is there


def labels_of(
    identity: Identity, pose: Pose, mouth: torch.Tensor, transform: torch.Tensor, size: int = 512
) -> npt.NDArray[np.int64]:
    """Labels int64 `(size, size)` of one frame, seen through `transform` `(1, 2, 3)`, frame px → output px."""
    paint = presenter.paint_mouth
    painters: dict[str, Any] = {name: _labelled(getattr(presenter, name), label) for name, label in PAINTERS.items()}

    def paint_mouth(view: View) -> None:
        strokes = iter(MOUTH_STROKES)

        def stroke(view: View, colour: torch.Tensor, alpha: torch.Tensor) -> None:
            view.image[:, 0][alpha > 0.5] = next(strokes)

        with mock.patch.object(View, "paint", stroke):
            paint(view)

    to_frame = inverse(transform)
    matrices = (compose(inverse(matrix(pose)), to_frame) for matrix in (head_matrix, body_matrix))
    canvas = Canvas(columns(identity, pose, mouth), *matrices, size, size, presenter.textures())
    with (
        torch.no_grad(),
        mock.patch.multiple(presenter, paint_mouth=paint_mouth, **painters),
        mock.patch.object(View, "darken", lambda view, alpha: None),
    ):
        image, soft = presenter._soft_maps(canvas, to_frame, size // COARSE)
        view = canvas.full(torch.zeros_like(image), soft)
        presenter._paint(canvas, view)
    labels: npt.NDArray[np.int64] = np.rint(view.image[0, 0].numpy()).astype(np.int64)
    return labels


def _labelled(painter: Callable[..., None], label: int) -> Callable[..., None]:
    def paint(view: View, *arguments: Any) -> None:
        blank = replace(view, image=torch.full_like(view.image, BLANK))
        painter(blank, *arguments)
        view.image[:, 0][blank.image[:, 0] < BLANK / 2] = label

    return paint


def with_nose(labels: npt.NDArray[np.int64], landmarks: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The labels with the whole nose, which the renderer shades and does not outline: iBUG's bridge and wings.

    landmarks: `(68, 2)` in px of the labels.
    """
    nose = np.zeros(labels.shape, np.uint8)
    outline = np.concatenate([landmarks[27:28], landmarks[31:36]])
    cv2.fillPoly(nose, [np.rint(cv2.convexHull(outline.astype(np.float32))).astype(np.int32)], 1)
    return np.where((nose > 0) & (labels == 1) | (labels == NOSE), NOSE, labels)
