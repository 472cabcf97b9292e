"""Windows of feature maps, followed through a decoder's upsamplings: what the cropped decoders compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.types import CropWindow, Span

if TYPE_CHECKING:
    import torch

STEP_PX = 4  # the sides of a window that is compiled are multiples of it, so that avatars share windows

WHOLE_FACE = CropWindow()


def rounded(window: CropWindow) -> CropWindow:
    """The smallest window around this one whose sides lie on multiples of STEP_PX."""
    spans = ((a // STEP_PX * STEP_PX, -(-b // STEP_PX) * STEP_PX) for a, b in (window.rows, window.columns))
    return CropWindow(*spans)


@dataclass(frozen=True, slots=True)
class MapWindow:
    """A window of a feature map whose sides are `size`."""

    rows: Span
    columns: Span
    size: int

    def grown(self, reach: int) -> MapWindow:
        """With `reach` more rows and columns on every side, as far as there are any."""
        rows, columns = ((max(0, a - reach), min(self.size, b + reach)) for a, b in (self.rows, self.columns))
        return MapWindow(rows, columns, self.size)

    def before_upsampling(self) -> MapWindow:
        """What a nearest-neighbour upsampling by two reads."""
        rows, columns = ((a // 2, -(-b // 2)) for a, b in (self.rows, self.columns))
        return MapWindow(rows, columns, self.size // 2)

    def upsampled(self) -> MapWindow:
        rows, columns = ((2 * a, 2 * b) for a, b in (self.rows, self.columns))
        return MapWindow(rows, columns, self.size * 2)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def origin_in(self, has: MapWindow) -> tuple[int, int]:
        """The row and column where this window begins in a map of the window `has`."""
        return self.rows[0] - has.rows[0], self.columns[0] - has.columns[0]

    def cut_from(self, x: torch.Tensor, has: MapWindow) -> torch.Tensor:
        """This window of `x`, `(n, c, h, w)`, which has the window `has`."""
        top, left = self.origin_in(has)
        return x[:, :, top : top + self.shape[0], left : left + self.shape[1]]
