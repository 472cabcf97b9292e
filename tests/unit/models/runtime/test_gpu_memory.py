"""The share of a GPU's memory that torch may use in one process."""

import pytest
import torch

from models.runtime.gpu_memory import CONTEXT_BYTES, limit_gpu_memory, memory_fraction

GB = 10**9


@pytest.mark.parametrize(
    ("share", "total_bytes", "fraction"),
    [
        (0.5, 150 * GB, 0.5 - CONTEXT_BYTES / (150 * GB)),
        (0.1, 24 * GB, 0.1 - CONTEXT_BYTES / (24 * GB)),
        (0.01, 24 * GB, 0.005),  # the context would take more than the share
        (1.0, 24 * GB, 1.0),
        (2.0, 24 * GB, 1.0),
    ],
)
def test_the_context_comes_out_of_the_share(share, total_bytes, fraction):
    assert memory_fraction(share, total_bytes) == pytest.approx(fraction)


@pytest.mark.parametrize("shares", [[0.5] * 2, [0.1, 0.5, 0.3, 0.1], [0.25] * 4])
def test_processes_that_share_a_gpu_fit_into_it_with_their_contexts(shares):
    total_bytes = 24 * GB
    used = sum(memory_fraction(share, total_bytes) * total_bytes + CONTEXT_BYTES for share in shares)
    assert used <= total_bytes * (1 + 1e-9)


def test_every_visible_device_is_limited(monkeypatch):
    limits = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Facts", (), {"total_memory": 24 * GB})
    )
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: limits.update({device: fraction})
    )
    limit_gpu_memory(0.5)
    assert limits == dict.fromkeys(range(2), memory_fraction(0.5, 24 * GB))


def test_without_a_gpu_there_is_nothing_to_limit():
    assert limit_gpu_memory(0.5) == 1.0 or torch.cuda.is_available()
