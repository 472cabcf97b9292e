"""Converts numpy arrays of any memory layout to torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def as_tensor(value: Any) -> torch.Tensor:
    """An array or tensor as a tensor, sharing memory where possible.

    Arrays that torch cannot wrap are copied: read-only ones (from another process) and those with negative strides
    (such as BGR images reversed to RGB).
    """
    if isinstance(value, np.ndarray) and (not value.flags.writeable or min(value.strides, default=0) < 0):
        value = value.copy()
    return torch.as_tensor(value)
