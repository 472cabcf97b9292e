"""The synthetic presenter: a batched renderer of a talking head, as a whole frame or directly as a crop.

A picture is a function of an identity, a pose and seven mouth parameters, computed with torch on the CPU or a GPU. The
painters are in `presenter_*.py`; other modules import the names from here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.presenter_canvas import COARSE, Box, Canvas, View, pixel_axes, textures, windows
from training.presenter_face import paint_brow, paint_ear, paint_eye, paint_mouth, paint_nostrils, paint_skin, skin_maps
from training.presenter_hair import ground_map, paint_clothes, paint_hair_back, paint_hair_front, paint_neck
from training.presenter_identity import Identity, Pose, default_identity, random_identities, random_poses, rest_pose
from training.presenter_shape import (
    FRAME_PX,
    MOUTH,
    REST_MOUTH,
    UNIT_PX,
    apply,
    body_matrix,
    columns,
    compose,
    face_crop_transform,
    head_matrix,
    inverse,
    landmarks,
    parallax,
)

__all__ = [
    "FRAME_PX",
    "MOUTH",
    "REST_MOUTH",
    "Identity",
    "Pose",
    "default_identity",
    "face_crop_transform",
    "landmarks",
    "random_identities",
    "random_poses",
    "render",
    "rest_mouth",
    "rest_pose",
    "textures",
]

GAMMA = 1 / 1.25
# The area of each feature in head units, with margins for parallax, brows and the widest mouth.
_BOXES: dict[str, Box] = {
    "left eye": (-0.52, -0.19, -0.06, 0.15),
    "right eye": (0.06, -0.19, 0.52, 0.15),
    "left brow": (-0.56, -0.32, -0.04, -0.02),
    "right brow": (0.04, -0.32, 0.56, -0.02),
    "left ear": (-0.80, -0.20, -0.40, 0.42),
    "right ear": (0.40, -0.20, 0.80, 0.42),
    "nose": (-0.28, 0.28, 0.28, 0.54),
    "mouth": (-0.42, 0.42, 0.42, 1.02),
    "face": (-0.76, -1.12, 0.76, 1.30),
    "neck": (-9.0, 0.55, 9.0, 9.0),
    "clothes": (-9.0, 0.95, 9.0, 9.0),
    "hair": (-1.0, -1.35, 1.0, 1.85),
}


def rest_mouth(batch: int, device: str = "cpu") -> Tensor:
    """The closed, neutral mouth, `(batch, 7)`."""
    return torch.tensor(REST_MOUTH, device=device).repeat(batch, 1)


def render(
    identity: Identity,
    pose: Pose,
    mouth: Tensor,
    textures: dict[str, Tensor],
    size: int = FRAME_PX,
    supersample: int = 2,
    transform: Tensor | None = None,
) -> Tensor:
    """Draw the presenter: RGB float32 `(B, 3, size, size)` in [0, 1], without gradients.

    mouth: `(B, 7)`, columns as in `MOUTH`, each 0 to 1, on the device to draw on. textures: from `textures(device)`.
    transform: `(B, 2, 3)`, frame px (of a 512 px frame) -> output px in pixel-centre coordinates, as `cv2.warpAffine`
    takes it; None draws the whole frame. A crop equals the frame warped by `transform`, but is sharper.
    """
    cells = size * supersample
    assert cells % COARSE == 0, (size, supersample)
    if transform is None:
        zoom = size / FRAME_PX
        whole = torch.tensor([[zoom, 0, (zoom - 1) / 2], [0, zoom, (zoom - 1) / 2]], device=mouth.device)
        transform = whole.expand(len(mouth), -1, -1)
    with torch.no_grad():  # not inference_mode, because the pictures are inputs of networks in training
        to_frame = inverse(transform.to(mouth))
        to_head = compose(inverse(head_matrix(pose)).to(mouth), to_frame)
        to_body = compose(inverse(body_matrix(pose)).to(mouth), to_frame)
        canvas = Canvas(columns(identity, pose, mouth), to_head, to_body, size, cells, textures)
        image, soft = _soft_maps(canvas, to_frame, cells // COARSE)
        view = canvas.full(image, soft)
        _paint(canvas, view)
        image = view.image.clamp_(0, 1).pow_(GAMMA)
        return F.avg_pool2d(image, supersample) if supersample > 1 else image


def _soft_maps(canvas: Canvas, to_frame: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The canvas: coordinates at full resolution, slowly varying maps of the head at a quarter of it."""
    head_x, head_y, x, y, body_x, body_y = canvas.coordinates(cells)
    move_x, move_y = parallax(canvas.params, head_x, head_y)
    lit, light = skin_maps(canvas.params, x, y)
    frame_units = to_frame.clone()
    frame_units[:, :, 2] -= (FRAME_PX - 1) / 2
    frame_x, frame_y = apply(frame_units / UNIT_PX, *pixel_axes(canvas.size, cells, lit.device))
    ground = ground_map(canvas.params, body_x, body_y, frame_x, frame_y)
    image = F.interpolate(ground, size=(canvas.cells, canvas.cells), mode="bilinear", align_corners=False)
    return image, torch.cat([torch.stack([move_x, move_y, light], 1), lit], 1)


def _paint(canvas: Canvas, view: View) -> None:
    """Draw all layers from back to front."""
    spans = canvas.spans(_BOXES)
    for part in windows(view, spans, ("hair",)):
        paint_hair_back(part)
    for part in windows(view, spans, ("neck",)):
        paint_neck(part)
    for part in windows(view, spans, ("clothes",)):
        paint_clothes(part)
    for sign, side in ((-1, "left"), (1, "right")):
        for part in windows(view, spans, (f"{side} ear",)):
            paint_ear(part, sign)
    for part in windows(view, spans, ("face",)):
        paint_skin(part)
    for part in windows(view, spans, ("nose",)):
        paint_nostrils(part)
    for part in windows(view, spans, ("mouth",)):
        paint_mouth(part)
    for sign, side in ((-1, "left"), (1, "right")):
        for part in windows(view, spans, (f"{side} eye",)):
            paint_eye(part, sign)
        for part in windows(view, spans, (f"{side} brow",)):
            paint_brow(part, sign)
    for part in windows(view, spans, ("hair",)):
        paint_hair_front(part)
