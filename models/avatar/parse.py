"""Paste masks: a soft mask from landmarks, or MuseTalk's region from a face parser's labels.

The parser is BiSeNet (19 classes of CelebAMask-HQ). Regions are those of MuseTalk v1.5's
musetalk/utils/face_parsing/__init__.py. torch is imported only when a parser is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from models.avatar.smoothing import smooth
from models.errors import ConfigError, InputError
from models.types import CROP_PX, Box, Float32, UInt8

HALF = CROP_PX // 2  # first generated row; the rows above are visible to the UNet
JAW = slice(1, 16)  # iBUG jaw line, ear to ear
DENSE = 2  # the outline is drawn at twice the crop's resolution
SHIFT_BITS = 4  # cv2.fillPoly's sub-pixel bits
STILL_PX = 4.0  # rms distance to their median below which all jaw lines share one mask
MASK_SMOOTH_S = 0.2  # a moving mask follows the jaw's slow motion, not the landmarks' noise

PARSE_PX = 512  # side of the parser's input and labels
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SKIN, NOSE, MOUTH, UPPER_LIP, LOWER_LIP, NECK = 1, 10, 11, 12, 13, 14  # CelebAMask-HQ
REGIONS = {
    "raw": (SKIN, MOUTH, UPPER_LIP, LOWER_LIP),
    "neck": (SKIN, MOUTH, UPPER_LIP, LOWER_LIP, NECK),
    "jaw": (MOUTH, UPPER_LIP, LOWER_LIP),
}
REGION_MODES = tuple(REGIONS)
CHEEK_PX = 90  # cheek width of the manual and of MuseTalk's inference scripts, from the centre to either side
CONE_ROWS, TAIL_ROWS = 21, 12  # of the kernel that grows the jaw's region
CHEEK_ELLIPSE = (35, 3)  # width, height of the kernel that erodes it at the cheeks, twice
UPPER_SHARE = 0.5  # share of the parsed square's rows, from the top, that are never pasted
BLUR_SHARE = 0.1  # size of the blur's kernel over the square's side; MuseTalk's get_image, for whole files, uses 0.05


@dataclass(frozen=True, slots=True)
class MaskShape:
    """Sizes in crop px. The mask is 0 outside the outer outline, 255 inside the inner one, and smooth between.

    top_fade: rows from the first generated one to full weight; ends above the upper lip. side_in: distance of the outer
    outline inside the cheeks, so that hair and background come from the frame. chin_out: distance of the outer outline
    below the chin, for a jaw that opens. side_fade, chin_fade: from outer to inner outline. border: rows that stay 0 at
    the crop's lower edge.
    """

    top_fade: float = 26.0
    side_in: float = 6.0
    side_fade: float = 22.0
    chin_out: float = 14.0
    chin_fade: float = 8.0
    border: float = 1.0


def lower_face_mask(landmarks: npt.NDArray[np.floating], shape: MaskShape | None = None) -> UInt8:
    """Return the paste mask, uint8 `(256, 256)`, of landmarks `(68, 2)` in crop px: 0 in the upper half."""
    shape = shape or MaskShape()
    jaw = np.asarray(landmarks, np.float64)[JAW]  # (15, 2)
    outer = _outline(jaw, -shape.side_in, shape.chin_out, HALF, CROP_PX - 1 - shape.border)
    inner = _outline(
        jaw,
        -shape.side_in - shape.side_fade,
        shape.chin_out - shape.chin_fade,
        HALF + shape.top_fade,
        CROP_PX - 1 - shape.border - shape.chin_fade,
    )
    inside, beyond = _fill(outer), 255 - _fill(inner)
    from_outer, to_inner = _distances(inside), _distances(beyond)
    t = from_outer / np.maximum(from_outer + to_inner, 1e-6)
    weight = cv2.resize(t * t * (3 - 2 * t), (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA)
    weight[:HALF] = 0
    return cast(UInt8, np.rint(255 * weight).astype(np.uint8))


def _distances(inside: UInt8) -> Float32:
    """Distance of each pixel to the nearest zero, px.

    Rounded to roots of integers: OpenCV's result depends on the number of threads in the last bits.
    """
    squares = np.rint(cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64) ** 2)
    return cast(Float32, np.sqrt(squares).astype(np.float32))


def masks_of(
    landmarks: Float32, fps: float, shape: MaskShape | None = None, scenes: Sequence[slice] | None = None
) -> tuple[UInt8, npt.NDArray[np.int32]]:
    """Return masks `(u, 256, 256)` for landmarks `(n, 68, 2)` in crop px, and the mask index of each frame `(n,)`.

    A head that keeps its pose in the crop has one mask for all frames (u = 1), which cannot flicker. A head that turns
    has one mask per frame, whose outline is smoothed over time, but not across `scenes`.
    """
    n = len(landmarks)
    median = np.median(landmarks, axis=0)
    moved = np.sqrt(((landmarks[:, JAW] - median[JAW]) ** 2).sum(-1).mean(-1))  # (n,)
    if np.percentile(moved, 95) <= STILL_PX:
        return lower_face_mask(median, shape)[None], np.zeros(n, np.int32)
    rows = landmarks.reshape(n, -1).astype(np.float64)
    for scene in scenes or [slice(0, n)]:
        rows[scene] = smooth(rows[scene], np.ones(len(rows[scene])), MASK_SMOOTH_S * fps)
    masks = np.stack([lower_face_mask(points, shape) for points in rows.reshape(n, 68, 2)])
    return masks, np.arange(n, dtype=np.int32)


class FaceParser:
    """BiSeNet with weights in the format of zllrunning/face-parsing.PyTorch. About 0.5 s per face on one core."""

    def __init__(self, net: Any, device: Any = "cpu") -> None:
        self.net, self.device = net, device

    @classmethod
    def load(cls, path: str | Path, device: Any = "cpu") -> FaceParser:
        """Load `79999_iter.pth`, or a safetensors file with the same keys; it includes the ResNet's weights.

        Raises WeightsError for a missing or partial file; the message names the first wrong keys.
        """
        import torch

        from models.avatar.bisenet import BiSeNet
        from models.weights.loading import build_module, load_state_dict

        state = load_state_dict(path)
        counters = {
            key.replace("running_mean", "num_batches_tracked"): torch.zeros((), dtype=torch.long)
            for key in state
            if key.endswith("running_mean")
        }  # unused after training, and missing in files of torch before 0.4.1
        net = build_module(BiSeNet, counters | state, path, device, torch.float32)
        return cls(net.to(memory_format=torch.channels_last), device)  # 20 % faster on a CPU

    def logits(self, face_rgb: UInt8) -> Float32:
        """Return class scores, float32 `(19, 512, 512)`, for a picture of a face, RGB uint8 `(h, w, 3)` of any size.

        The picture is resized to 512² with Pillow's BILINEAR (which averages when shrinking) and normalised with
        ImageNet's mean and deviation. Raises InputError.
        """
        import torch

        face = np.asarray(face_rgb)
        if face.ndim != 3 or face.shape[2] != 3 or face.dtype != np.uint8 or not face.size:
            raise InputError(
                f"A face of shape {face.shape} and type {face.dtype} cannot be parsed.", "Pass RGB uint8 (h, w, 3)."
            )
        picture = Image.fromarray(np.ascontiguousarray(face)).resize((PARSE_PX, PARSE_PX), Image.Resampling.BILINEAR)
        unit = np.asarray(picture, np.float32) / np.float32(255)  # (512, 512, 3)
        x = (unit - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)[None]))  # (1, 3, 512, 512)
            batch = batch.to(self.device, memory_format=torch.channels_last)
            scores: Float32 = self.net(batch)[0].contiguous().cpu().numpy()
        return scores

    def labels(self, face_rgb: UInt8) -> npt.NDArray[np.int64]:
        """Return the class of each pixel, int64 `(512, 512)`; see `logits`. Raises InputError."""
        return cast("npt.NDArray[np.int64]", self.logits(face_rgb).argmax(0))


def paste_region(labels: npt.NDArray[np.int64], mode: str, cheek_width: int = CHEEK_PX) -> UInt8:
    """Return the region that is pasted back, uint8 0/255 `(512, 512)`, for labels int64 `(512, 512)`.

    mode: `raw`: skin, mouth and lips. `neck`: also the neck. `jaw`: mouth, lips, and the skin without the nose, grown
    below the chin and eroded at the cheeks (more than `cheek_width` px from the centre). Raises ConfigError for another
    mode.
    """
    if mode not in REGIONS:
        raise ConfigError(f"Unknown parsing mode {mode!r}.", f"Use one of {', '.join(REGIONS)}.")
    labels = np.asarray(labels)
    assert labels.shape == (PARSE_PX, PARSE_PX), labels.shape
    inside = np.isin(labels, REGIONS[mode])
    if mode == "jaw":
        skin = np.where(labels == SKIN, 255, 0).astype(np.uint8)
        grown = cv2.dilate(skin, _jaw_kernel(), iterations=1)
        thinned = cv2.erode(grown, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, CHEEK_ELLIPSE), iterations=2)
        jaw = np.where(_cheeks(cheek_width), thinned, grown)
        inside |= (jaw == 255) & (labels != NOSE)
    return np.where(inside, 255, 0).astype(np.uint8)


def region_mask(region: UInt8, box: Box, crop_box: Box, blur: float = BLUR_SHARE) -> UInt8:
    """Return the paste mask `(s, s)` of a region `(512, 512)`: resized to `crop_box`, cut to the box, blurred.

    Only the lower half of the square and the part inside `box` are kept. The arithmetic of MuseTalk v1.5's
    musetalk/utils/blending.py, get_image_prepare_material.
    """
    side = crop_box[2] - crop_box[0]
    resized = np.asarray(Image.fromarray(region).resize((side, side)))  # Pillow's default for grey pictures: bicubic
    mask = np.zeros((side, side), np.uint8)
    columns = slice(max(0, box[0] - crop_box[0]), max(0, box[2] - crop_box[0]))
    rows = slice(max(int(side * UPPER_SHARE), box[1] - crop_box[1]), max(0, box[3] - crop_box[1]))
    mask[rows, columns] = resized[rows, columns]
    kernel = int(blur * side // 2 * 2) + 1
    blurred: UInt8 = cv2.GaussianBlur(mask, (kernel, kernel), 0)
    return blurred


@cache
def _jaw_kernel() -> UInt8:
    """0/1 `(33, 33)`: a cone, 1 px wider to each side per row from row 10 to row 20, then rows of its full width."""
    size = CONE_ROWS + TAIL_ROWS
    middle, first = size // 2, CONE_ROWS // 2
    half = np.clip(np.arange(size), None, CONE_ROWS - 1) - first  # (33,): half the width in each row
    return (np.abs(np.arange(size)[None] - middle) <= half[:, None]).astype(np.uint8)


def _cheeks(width: int) -> npt.NDArray[np.bool_]:
    """Mask of the cheeks, bool `(512, 512)`: at least `width` px from the centre column."""
    mask, middle = np.zeros((PARSE_PX, PARSE_PX), np.uint8), PARSE_PX // 2
    cv2.rectangle(mask, (0, 0), (middle - width, PARSE_PX), 255, -1)
    cv2.rectangle(mask, (middle + width, 0), (PARSE_PX, PARSE_PX), 255, -1)
    return mask > 0


def _outline(
    jaw: npt.NDArray[np.float64], side: float, chin: float, top: float, bottom: float
) -> npt.NDArray[np.float64]:
    """The jaw line moved outwards by `side` px at the cheeks and `chin` px at the chin, within rows `top` … `bottom`.

    Between cheek and chin, iBUG's points 3 to 6, the distance is interpolated.
    """
    along = np.gradient(jaw, axis=0)
    outwards = np.stack([-along[:, 1], along[:, 0]], 1)
    outwards /= np.maximum(np.linalg.norm(outwards, axis=1, keepdims=True), 1e-6)
    if outwards[len(jaw) // 2, 1] < 0:  # at the chin, outwards is down
        outwards = -outwards
    down = np.interp(np.abs(np.arange(len(jaw)) - len(jaw) // 2), [2.0, 5.0], [1.0, 0.0])[:, None]
    moved = jaw + outwards * (side + (chin - side) * down)
    moved = np.clip(moved, [0, top], [CROP_PX - 1, bottom])
    below = moved[moved[:, 1] > top]
    if len(below) < 3:
        return np.empty((0, 2))
    return np.concatenate([[[below[0, 0], top]], _rounded(below), [[below[-1, 0], top]]])


def _rounded(line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """An open line smoothed by cutting its corners twice (Chaikin 1974); its ends stay."""
    for _ in range(2):
        near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
        line = np.concatenate([line[:1], np.stack([near, far], 1).reshape(-1, 2), line[-1:]])
    return line


def _fill(outline: npt.NDArray[np.float64]) -> UInt8:
    """The inside of an outline in crop px, uint8 0/255 `(512, 512)`, at twice the crop's resolution."""
    canvas = np.zeros((CROP_PX * DENSE, CROP_PX * DENSE), np.uint8)
    if len(outline):
        points = np.rint(((outline + 0.5) * DENSE - 0.5) * (1 << SHIFT_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [points], 255, lineType=cv2.LINE_8, shift=SHIFT_BITS)
    return canvas
