"""Numpy arrays as torch tensors, whatever their memory looks like. Knows nothing of what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def as_tensor(value: Any) -> torch.Tensor:
    """An array or tensor as a tensor, which may share its memory.

    What torch cannot wrap is copied: read-only views that came from another process, and reversed ones, as BGR
    pictures turned round are.
    """
    if isinstance(value, np.ndarray) and (not value.flags.writeable or min(value.strides, default=0) < 0):
        value = value.copy()
    return torch.as_tensor(value)
