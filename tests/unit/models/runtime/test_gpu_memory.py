"""The share of a GPU's memory that torch may use in one process."""

import numpy as np
import pytest
import torch

from models.features import WhisperFeatures
from models.runtime.gpu_memory import CONTEXT_BYTES, compute_in_parts, limit_gpu_memory, memory_fraction
from tests.support.paths import ROOT

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


class Device:
    """Doubles numbers, at most `fits` at a time."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.sizes: list[int] = []

    def __call__(self, items: list[int]) -> list[int]:
        self.sizes.append(len(items))
        if len(items) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * item for item in items]


def test_what_does_not_fit_into_memory_is_computed_in_halves():
    device = Device(fits=3)
    assert compute_in_parts(device, list(range(10))) == list(range(0, 20, 2))
    assert device.sizes == [10, 5, 3, 2, 5, 3, 2]


def test_a_single_item_is_tried_twice():
    device = Device(fits=0)
    with pytest.raises(torch.OutOfMemoryError):
        compute_in_parts(device, [1])
    assert device.sizes == [1, 1]


def test_other_errors_are_raised_at_once():
    calls = []

    def fail(items):
        calls.append(len(items))
        raise ValueError

    with pytest.raises(ValueError):
        compute_in_parts(fail, [1, 2])
    assert calls == [2]


def test_features_of_speech_that_does_not_fit_into_memory_are_the_same(monkeypatch):
    model = WhisperFeatures.load(ROOT / "models" / "embedded" / "whisper")
    samples = np.random.default_rng(0).normal(size=16_000 * 9).astype(np.float32) * 0.1
    wanted = model.windows_in_context(samples, 25, 3.0, 0.5)
    encode, sizes = model.encode, []

    def small(mel):
        sizes.append(len(mel))
        if len(mel) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(mel)

    monkeypatch.setattr(model, "encode", small)
    monkeypatch.setattr("models.features.CPU_BATCH", 4)
    assert torch.allclose(model.windows_in_context(samples, 25, 3.0, 0.5), wanted, atol=1e-5)
    assert sizes.count(1) > 2 and max(sizes) > 1
