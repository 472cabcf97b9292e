"""The canvas of the painters: pixel coordinates, soft maps and sub-rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from training.presenter_shape import Params, apply, parallax, unit_footprint

Box = tuple[float, float, float, float]  # left, top, right, bottom in head units

COARSE = 4  # soft shading has no detail below 2 px, so it is computed at a quarter of the resolution
TEXTURE_PX = 512
NOISE_SEED = 1


def textures(device: str = "cpu") -> dict[str, Tensor]:
    """Fixed tileable noise, each `(1, 1, 514, 514)` (512 px and one wrapped pixel per side), deviation about 1.

    grain: isotropic, three sizes. strand: long in y and fine in x, three thicknesses.
    """
    generator = torch.Generator().manual_seed(NOISE_SEED)

    def octave(rows: int, cols: int) -> Tensor:
        noise = torch.randn(1, 1, rows, cols, generator=generator)
        wrapped = F.pad(noise, (2, 2, 2, 2), mode="circular")
        scale_y, scale_x = TEXTURE_PX // rows, TEXTURE_PX // cols
        size = (wrapped.shape[2] * scale_y, wrapped.shape[3] * scale_x)
        large = F.interpolate(wrapped, size=size, mode="bicubic")
        large = large[:, :, 2 * scale_y : 2 * scale_y + TEXTURE_PX, 2 * scale_x : 2 * scale_x + TEXTURE_PX]
        return large / large.std()

    grain = 0.6 * octave(256, 256) + 0.5 * octave(64, 64) + 0.6 * octave(16, 16)
    strand = 0.55 * octave(16, 512) + 0.6 * octave(8, 128) + 0.6 * octave(4, 32)
    return {
        name: F.pad(t, (1, 1, 1, 1), mode="circular").to(device) for name, t in (("grain", grain), ("strand", strand))
    }


def sample(texture: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Bilinear look-up of a tiling texture; one tile per unit of u (across) and v (down). u, v: (B, h, w)."""
    span = TEXTURE_PX + 2
    grid = torch.stack([u, v], -1)
    grid = (grid - grid.floor()) * (2 * TEXTURE_PX / span) - (TEXTURE_PX - 1) / span
    found = F.grid_sample(texture.expand(len(grid), -1, -1, -1), grid, mode="bilinear", align_corners=False)
    return found[:, 0]


def colour(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """Stack three maps to `(B, 3, h, w)`."""
    return torch.stack(torch.broadcast_tensors(red, green, blue), 1)


@dataclass
class View:
    """A rectangle of the canvas. All maps are `(B, h, w)`; `image` is a view `(B, 3, h, w)` that painters change.

    head_x, head_y: rigid head coordinates; x, y: on the face's surface; body_x, body_y: shoulder coordinates.
    light: light on the face there. px: head units per (supersampled) pixel, `(B, 1, 1)`.
    """

    params: Params
    px: Tensor
    image: Tensor
    head_x: Tensor
    head_y: Tensor
    x: Tensor
    y: Tensor
    body_x: Tensor
    body_y: Tensor
    light: Tensor
    skin: Tensor
    textures: dict[str, Tensor]

    def rgb(self, name: str) -> Tensor:
        """An identity's colour `name` as `(B, 3, 1, 1)`."""
        return torch.stack([self.params[f"{name}_{c}"] for c in "rgb"], 1)

    def cover(self, distance: Tensor, soft: float = 0.0) -> Tensor:
        """Coverage of a shape from its signed distance: 1 inside, 0 outside, with a ramp ≥ 1.6 px and `soft`."""
        ramp = (1.6 * self.px).clamp(min=soft)
        return (0.5 - distance / ramp).clamp(0, 1)

    def paint(self, what: Tensor | tuple[float, float, float], alpha: Tensor) -> None:
        """Blend a colour (or a `(B, 3, h, w)` map) over the image with weight `alpha` (B, h, w)."""
        if isinstance(what, tuple):
            what = torch.tensor(what, device=alpha.device, dtype=alpha.dtype).view(1, 3, 1, 1)
        self.image.copy_(torch.lerp(self.image, what, alpha[:, None]))

    def darken(self, amount: Tensor) -> None:
        """Multiply the image by 1 - amount (B, h, w)."""
        self.image.mul_(1 - amount[:, None])


def pixel_axes(size: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Output px coordinates of `cells` × `cells` sample centres over a `size` px image: `(1, 1, n)` and `(1, n, 1)`."""
    at = (torch.arange(cells, device=device, dtype=torch.float32) + 0.5) * (size / cells) - 0.5
    return at.view(1, 1, -1), at.view(1, -1, 1)


@dataclass
class Canvas:
    """Coordinates of the whole image at `cells` × `cells` samples."""

    params: Params
    to_head: Tensor  # (B, 2, 3) output px -> head units
    to_body: Tensor
    size: int
    cells: int
    textures: dict[str, Tensor]

    def coordinates(self, cells: int) -> tuple[Tensor, ...]:
        """head_x, head_y, x, y, body_x, body_y, each (B, cells, cells)."""
        columns, rows = pixel_axes(self.size, cells, self.to_head.device)
        head_x, head_y = apply(self.to_head, columns, rows)
        body_x, body_y = apply(self.to_body, columns, rows)
        move_x, move_y = parallax(self.params, head_x, head_y)
        return head_x, head_y, head_x - move_x, head_y - move_y, body_x, body_y

    def full(self, image: Tensor, soft: Tensor) -> View:
        """The view of the whole image. soft: (B, 6, n, n) at coarse resolution: parallax x and y, light, lit skin."""
        columns, rows = pixel_axes(self.size, self.cells, image.device)
        head_x, head_y = apply(self.to_head, columns, rows)
        body_x, body_y = apply(self.to_body, columns, rows)
        fine = F.interpolate(soft, size=(self.cells, self.cells), mode="bilinear", align_corners=False)
        px = unit_footprint(self.to_head) * (self.size / self.cells)
        x, y = head_x - fine[:, 0], head_y - fine[:, 1]
        maps = (head_x, head_y, x, y, body_x, body_y, fine[:, 2])
        return View(self.params, px, image, *maps, fine[:, 3:], self.textures)

    def spans(self, boxes: dict[str, Box]) -> dict[str, tuple[slice, slice] | None]:
        """Rows and columns of the canvas that contain each box in every row of the batch; None if no pixel does.

        All boxes take one transfer from the device.
        """
        a, b, tx, c, d, ty = self.to_head.reshape(-1, 6).unbind(-1)
        det = a * d - b * c
        lows_highs = []
        for left, top, right, bottom in boxes.values():
            hx = torch.tensor([left, right, right, left], device=a.device)[None] - tx[:, None]
            hy = torch.tensor([top, top, bottom, bottom], device=a.device)[None] - ty[:, None]
            u = (d[:, None] * hx - b[:, None] * hy) / det[:, None]
            v = (a[:, None] * hy - c[:, None] * hx) / det[:, None]
            lows_highs.append(torch.stack([u.amin(), u.amax(), v.amin(), v.amax()]))
        per_px = self.cells / self.size
        spans: dict[str, tuple[slice, slice] | None] = {}
        for name, limits in zip(boxes, torch.stack(lows_highs).tolist(), strict=True):
            low_u, high_u, low_v, high_v = (round((value + 0.5) * per_px) for value in limits)
            columns = slice(max(low_u - 1, 0), min(high_u + 1, self.cells))
            rows = slice(max(low_v - 1, 0), min(high_v + 1, self.cells))
            empty = columns.start >= columns.stop or rows.start >= rows.stop
            spans[name] = None if empty else (rows, columns)
        return spans


def windows(view: View, spans: dict[str, tuple[slice, slice] | None], names: tuple[str, ...]) -> Iterator[View]:
    """The parts of `view` in the named boxes, which share its memory. Boxes outside the image are left out."""
    for name in names:
        span = spans[name]
        if span is None:
            continue
        rows, columns = span
        names_of_maps = ("head_x", "head_y", "x", "y", "body_x", "body_y", "light")
        cut = {one: getattr(view, one)[:, rows, columns] for one in names_of_maps}
        yield replace(view, image=view.image[:, :, rows, columns], skin=view.skin[:, :, rows, columns], **cut)
