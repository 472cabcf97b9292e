"""Aligns faces to the FFHQ template, runs a network and pastes back, in torch on the network's device, per batch.

The fast twin of models/restore/align.py, which runs on a CPU: with a GPU, those warps would take ten times as long as
the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from models.geometry import invert
from models.restore.align import OUTSIDE, check_faces, soft_square, to_template, upsampled
from models.types import CROP_PX, RESTORED_PX, UInt8

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

    faces: uint8 `(n, s, s, 3)`, s = 256 or 512. into: `(n, 2, 3)`, template px → face px. back: `(n, 2, 3)`, px of the
    512 px result → template px. around: uint8 `(n, 512, 512, 3)` on the template. placed: `(n,)`, 0 where the face
    fills the template: then nothing surrounds it and no edge fades. soft: `(n,)`, 1 where the face's edge fades into
    the surroundings, 0 where it is cut. strength: `(n,)`. Returns uint8 `(n, 512, 512, 3)`.
    """
    squares = {side: _square(side, device) for side in (CROP_PX, RESTORED_PX)}

    def run(
        faces: torch.Tensor,
        into: torch.Tensor,
        back: torch.Tensor,
        around: torch.Tensor,
        placed: torch.Tensor,
        soft: torch.Tensor,
        strength: torch.Tensor,
    ) -> torch.Tensor:
        side = faces.shape[1]
        image = faces.permute(0, 3, 1, 2).float()  # (n, 3, s, s)
        # 1. onto the template
        cut = grid(into, RESTORED_PX, (side, side))
        laid = _levels(F.grid_sample(image, cut, "bicubic", "border", align_corners=False))
        placed, soft, strength = (value[:, None, None, None] for value in (placed, soft, strength))  # (n, 1, 1, 1)
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


def restore_on_device(
    run: Callable[..., torch.Tensor],
    device: Any,
    faces: UInt8,
    strength: float,
    landmarks: npt.NDArray[Any] | None,
    around: UInt8 | None = None,
    batch: int = 4,
) -> UInt8:
    """Do what `models.restore.align.restore_aligned` does, with `run`: an `aligned_pass`, recorded or not."""
    check_faces(faces := np.asarray(faces), strength, landmarks)
    n, side = len(faces), faces.shape[1]
    factor = RESTORED_PX / side
    # Without landmarks, the face fills the template.
    laid = np.tile(upsampled(np.eye(2, 3), 1 / factor), (n, 1, 1)) if landmarks is None else to_template(landmarks)
    back = np.stack([upsampled(one, factor) for one in laid])  # (n, 2, 3)
    beyond = (
        np.broadcast_to(np.array(OUTSIDE, np.uint8), (n, RESTORED_PX, RESTORED_PX, 3)) if around is None else around
    )
    placed, soft = landmarks is not None, landmarks is not None and around is not None
    flags = [np.full(n, value, np.float32) for value in (placed, soft, strength)]
    matrices = [matrix.astype(np.float32) for matrix in (invert(laid), back)]
    rows: list[npt.NDArray[Any]] = [faces, *matrices, beyond, *flags]
    return np.concatenate(
        [run(*(_tensor(value[k : k + batch]).to(device) for value in rows)).cpu().numpy() for k in range(0, n, batch)]
    )


def enlarges(landmarks: npt.NDArray[Any] | None) -> bool:
    """Return whether no face `(n, 5, 2)` gets smaller on the template: shrinking would alias in `aligned_pass`."""
    return landmarks is None or bool((np.linalg.det(to_template(landmarks)[..., :2]) >= 1).all())


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # copied: it may be a read-only view of another process's memory


def _levels(image: torch.Tensor) -> torch.Tensor:
    """Rounded to whole grey levels, as every step on a CPU does."""
    return image.clamp(0, 255).round()


def _square(side: int, device: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(soft_square(side))).to(device)[None, None]  # (1, 1, side, side)
