"""A batch that does not fit into a share of a real GPU's memory is halved, and its memory returned first."""

from __future__ import annotations

import pytest
import torch

from deployments.common.safe_batches import SafeBatches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GIB = 2**30


def test_a_batch_that_does_not_fit_is_computed_in_parts() -> None:
    """One GiB per item, in a process that may use 3.5 GiB."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3.5 * GIB / total)
    limits: list[int] = []

    def compute(items: list[int]) -> list[int]:
        filled = [torch.full((GIB // 4,), float(item), device="cuda") for item in items]
        return [int(values[-1].item()) for values in filled]

    try:
        batches = SafeBatches("LipSync", compute, limits.append)
        assert batches.compute(list(range(8))) == list(range(8))
        assert limits[0] == 4 and batches.size(8) == 2
        assert torch.cuda.memory_allocated() == 0
        assert batches.compute(list(range(batches.size(8)))) == [0, 1] and len(limits) == 3
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
