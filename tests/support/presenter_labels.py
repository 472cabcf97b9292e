"""The output of an ideal face parser for the presenter: its renderer's layers as CelebAMask-HQ labels."""

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
PAINTERS = {  # the label of each painter, from back to front; the mouth's labels are below
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
MOUTH_STROKES = (12, 13, 11)  # upper lip, lower lip, inside of the mouth
BLANK = 1000.0  # brighter than any colour: a layer is where it hides at least half of it


def labels_of(
    identity: Identity, pose: Pose, mouth: torch.Tensor, transform: torch.Tensor, size: int = 512
) -> npt.NDArray[np.int64]:
    """Return labels int64 `(size, size)` of one frame, warped by `transform` `(1, 2, 3)`, frame px → output px."""
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
    """Add the nose, which the renderer shades but does not outline, to the labels: iBUG's bridge and wings.

    landmarks: `(68, 2)` in px of the labels.
    """
    nose = np.zeros(labels.shape, np.uint8)
    outline = np.concatenate([landmarks[27:28], landmarks[31:36]])
    cv2.fillPoly(nose, [np.rint(cv2.convexHull(outline.astype(np.float32))).astype(np.int32)], 1)
    return np.where((nose > 0) & (labels == 1) | (labels == NOSE), NOSE, labels)
