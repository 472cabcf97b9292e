"""A paste mask in frame space. Knows no blend and no geometry."""

from __future__ import annotations

from dataclasses import dataclass

from models.types import UInt8


@dataclass(frozen=True, slots=True, eq=False)
class Alpha:
    """The paste mask in frame space: uint8 weights of frame[top : top + h, left : left + w]."""

    top: int
    left: int
    weights: UInt8

    @property
    def region(self) -> tuple[slice, slice]:
        height, width = self.weights.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)
