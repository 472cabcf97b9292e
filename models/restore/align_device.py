"""Aligns faces to the FFHQ template, runs a network and pastes back, in torch on the network's device, per batch.

The fast twin of models/restore/align.py, which runs on a CPU: with a GPU, those warps would take ten times as long as
the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from models.geometry import invert
from models.restore.align import OUTSIDE, check_faces, soft_square, to_template, upsampled
from models.runtime.transfers import Transfers
from models.types import CROP_PX, RESTORED_PX, Float32, UInt8

Net = Callable[[torch.Tensor], torch.Tensor]  # RGB (n, 3, 512, 512) in [-1, 1] → the same, unclipped


def grid(matrices: torch.Tensor, size: int, source: tuple[int, int]) -> torch.Tensor:
    """Return the grid of `F.grid_sample` for matrices `(n, 2, 3)`, px of a `size`² picture → px of the source.

    source: (height, width).
    """
    axis = torch.arange(size, device=matrices.device, dtype=torch.float32)
    m = matrices.float()[:, :, :, None, None]  # (n, 2, 3, 1, 1)
    at = m[:, :, 0] * axis + m[:, :, 1] * axis[:, None] + m[:, :, 2]  # (n, 2, size, size): x, y
    height, width = source
    return torch.stack([(2 * at[:, 0] + 1) / width - 1, (2 * at[:, 1] + 1) / height - 1], -1)


def aligned_pass(net: Net, device: Any) -> Callable[..., torch.Tensor]:
    """Return the whole of `restore` as one function of tensors on `device`; it may be recorded as a CUDA graph.

    faces: uint8 `(n, s, s, 3)`, s = 256 or 512. placements: `(n, 15)`, see `placements`. around: uint8
    `(n, 512, 512, 3)` on the template. Returns uint8 `(n, 512, 512, 3)`.
    """
    squares = {side: _square(side, device) for side in (CROP_PX, RESTORED_PX)}

    def run(faces: torch.Tensor, placements: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        side = faces.shape[1]
        image = faces.permute(0, 3, 1, 2).float()  # (n, 3, s, s)
        into, back = (placements[:, k : k + 6].unflatten(1, (2, 3)) for k in (0, 6))
        placed, soft, strength = placements[:, 12:, None, None].split(1, 1)  # (n, 1, 1, 1)
        # 1. onto the template
        cut = grid(into, RESTORED_PX, (side, side))
        laid = _levels(F.grid_sample(image, cut, "bicubic", "border", align_corners=False))
        cover = 1 - soft * (1 - squares[side])  # (n, 1, s, s)
        inside = 1 - placed * (1 - F.grid_sample(cover, cut, "bilinear", "zeros", align_corners=False))
        laid = _levels(inside * laid + (1 - inside) * around.permute(0, 3, 1, 2).float())
        # 2. the network
        restored = _levels((net(laid / 127.5 - 1).float().clamp(-1, 1) + 1) * 127.5)  # (n, 3, 512, 512)
        # 3. pasted over the enlarged face
        large = _levels(F.interpolate(image, size=(RESTORED_PX, RESTORED_PX), mode="bicubic", align_corners=False))
        paste = grid(back, RESTORED_PX, (RESTORED_PX, RESTORED_PX))
        over = _levels(F.grid_sample(restored, paste, "bicubic", "border", align_corners=False))
        frame = squares[RESTORED_PX]
        seen = F.grid_sample(frame.expand(len(faces), -1, -1, -1), paste, "bilinear", "zeros", align_corners=False)
        share = strength * (1 - placed * (1 - seen * frame))
        return (share * over + (1 - share) * large).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    return run


def placements(
    n: int, side: int, strengths: npt.NDArray[Any], landmarks: npt.NDArray[Any] | None, soft: bool
) -> Float32:
    """Return where each of n faces of `side` px lies, `(n, 15)`, as `aligned_pass` takes it.

    Twelve numbers are two matrices `(2, 3)`: template px → face px, and px of the 512 px result → template px. Then: 0
    where the face fills the template (no landmarks), so that nothing surrounds it and no edge fades; 1 where the face's
    edge fades into the surroundings (`soft`), 0 where it is cut; the strength.
    """
    factor = RESTORED_PX / side
    laid = np.tile(upsampled(np.eye(2, 3), 1 / factor), (n, 1, 1)) if landmarks is None else to_template(landmarks)
    placed = landmarks is not None
    flags = np.tile([float(placed), float(placed and soft)], (n, 1))
    matrices = [invert(laid), upsampled(laid, factor)]  # each (n, 2, 3)
    rows = np.concatenate([*(matrix.reshape(n, 6) for matrix in matrices), flags, strengths[:, None]], 1)
    return rows.astype(np.float32)


def start_on_device(
    run: Callable[..., torch.Tensor],
    transfers: Transfers,
    faces: Sequence[UInt8] | UInt8,
    strength: Any,
    landmarks: npt.NDArray[Any] | None,
    around: UInt8 | torch.Tensor | None = None,
    batch: int = 4,
) -> Callable[[], UInt8]:
    """Begin what `models.restore.align.restore_aligned` does, with `run`: an `aligned_pass`, recorded or not.

    faces: n of `(s, s, 3)`. strength: a number, or one per face. around: may be on the device already. The function
    that is returned waits for the faces.
    """
    n = len(faces)
    check_faces((n, *faces[0].shape), faces[0].dtype, strength, landmarks)
    strengths = np.broadcast_to(np.asarray(strength, np.float32), n)
    rows = placements(n, len(faces[0]), strengths, landmarks, around is not None)
    if around is None:
        around = transfers.up([np.array(OUTSIDE, np.uint8)]).expand(n, RESTORED_PX, RESTORED_PX, 3)
    waits = []
    for k in range(0, n, batch):
        part = slice(k, k + batch)
        beyond = around[part] if isinstance(around, torch.Tensor) else transfers.up(around[part])
        waits.append(transfers.down(run(transfers.up(faces[part]), transfers.up(rows[part]), beyond)))
    return waits[0] if len(waits) == 1 else lambda: np.concatenate([wait() for wait in waits])


def enlarges(landmarks: npt.NDArray[Any] | None) -> bool:
    """Return whether no face `(n, 5, 2)` gets smaller on the template: shrinking would alias in `aligned_pass`."""
    return landmarks is None or bool((np.linalg.det(to_template(landmarks)[..., :2]) >= 1).all())


def _levels(image: torch.Tensor) -> torch.Tensor:
    """Rounded to whole grey levels, as every step on a CPU does."""
    return image.clamp(0, 255).round()


def _square(side: int, device: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(soft_square(side))).to(device)[None, None]  # (1, 1, side, side)
