"""Aligns faces to the FFHQ template, runs a network and pastes back, in torch on the network's device, per batch.

The fast twin of models/restore/align.py, which runs on a CPU: with a GPU, those warps would take ten times as long as
the network. On CUDA it is one kernel before the network and one after it, elsewhere torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from models.geometry import invert
from models.restore.align import OUTSIDE, check_faces, soft_square, to_template, upsampled
from models.runtime.transfers import Transfers
from models.types import CROP_PX, RESTORED_PX, Float32, UInt8

PIXELS = 128  # per program of the kernels
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
    lay, paste = (_lay_cuda, _paste_cuda) if torch.device(device).type == "cuda" else (_lay, _paste)

    def run(faces: torch.Tensor, placements: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        restored = net(lay(faces, placements, around, squares[faces.shape[1]])).float()  # (n, 3, 512, 512)
        return paste(restored, faces, placements, squares[RESTORED_PX])

    return run


def _lay(faces: torch.Tensor, placements: torch.Tensor, around: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    """Faces onto the template: RGB `(n, 3, 512, 512)` in [-1, 1]. square: `(1, 1, s, s)`, 0 at the edge, 1 inside."""
    side = faces.shape[1]
    cut = grid(placements[:, :6].unflatten(1, (2, 3)), RESTORED_PX, (side, side))
    placed, soft = placements[:, 12:14, None, None].split(1, 1)  # (n, 1, 1, 1)
    laid = _levels(F.grid_sample(_image(faces), cut, "bicubic", "border", align_corners=False))
    cover = 1 - soft * (1 - square)  # (n, 1, s, s)
    inside = 1 - placed * (1 - F.grid_sample(cover, cut, "bilinear", "zeros", align_corners=False))
    return _levels(inside * laid + (1 - inside) * _image(around)) / 127.5 - 1


def _paste(restored: torch.Tensor, faces: torch.Tensor, placements: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """The network's pictures over the enlarged faces: uint8 `(n, 512, 512, 3)`. frame: `(1, 1, 512, 512)`."""
    size = (RESTORED_PX, RESTORED_PX)
    large = _levels(F.interpolate(_image(faces), size=size, mode="bicubic", align_corners=False))
    paste = grid(placements[:, 6:12].unflatten(1, (2, 3)), RESTORED_PX, size)
    levels = _levels((restored.clamp(-1, 1) + 1) * 127.5)
    over = _levels(F.grid_sample(levels, paste, "bicubic", "border", align_corners=False))
    seen = F.grid_sample(frame.expand(len(faces), -1, -1, -1), paste, "bilinear", "zeros", align_corners=False)
    placed, strength = placements[:, 12, None, None, None], placements[:, 14, None, None, None]
    share = strength * (1 - placed * (1 - seen * frame))
    return (share * over + (1 - share) * large).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _lay_cuda(
    faces: torch.Tensor, placements: torch.Tensor, around: torch.Tensor, square: torch.Tensor
) -> torch.Tensor:
    n, side = faces.shape[:2]
    out = torch.empty((n, 3, RESTORED_PX, RESTORED_PX), device=faces.device)
    _kernels().lay[(RESTORED_PX * RESTORED_PX // PIXELS, n)](
        *(faces.contiguous(), placements.contiguous(), around.contiguous(), square, out, side),
        SIZE=RESTORED_PX,
        PIXELS=PIXELS,
    )
    return out


def _paste_cuda(
    restored: torch.Tensor, faces: torch.Tensor, placements: torch.Tensor, frame: torch.Tensor
) -> torch.Tensor:
    n, side = faces.shape[:2]
    out = torch.empty((n, RESTORED_PX, RESTORED_PX, 3), dtype=torch.uint8, device=faces.device)
    _kernels().paste[(RESTORED_PX * RESTORED_PX // PIXELS, n)](
        *(restored.contiguous(), faces.contiguous(), placements.contiguous(), frame, out, side),
        SIZE=RESTORED_PX,
        PIXELS=PIXELS,
    )
    return out


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


def _image(rows: torch.Tensor) -> torch.Tensor:
    """uint8 `(n, h, w, 3)` → float32 `(n, 3, h, w)`."""
    return rows.permute(0, 3, 1, 2).float()


def _square(side: int, device: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(soft_square(side))).to(device)[None, None]  # (1, 1, side, side)


@cache
def _kernels() -> Any:
    """Imported at the first use, because Triton comes only with torch for CUDA."""
    from models.restore import align_kernels

    return align_kernels
