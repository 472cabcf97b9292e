"""models.runtime.openvino_cache: equality with torch, the cache folder, and batch sizes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.errors import ConfigError
from models.runtime.openvino_cache import CompiledNet, compile_cached, has_fast_bfloat16


class Net(nn.Module):
    """An image `(n, 3, 8, 8)` and a strength `(1,)` → `(n, 4, 8, 8)`."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gain = nn.Conv2d(3, 4, 3, padding=1), gain

    def forward(self, image: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(image)) * strength * self.gain


EXAMPLES = (np.zeros((2, 3, 8, 8), np.float32), np.ones(1, np.float32))


def compiled(cache_dir: Path | None, build: Any = Net, **options: Any) -> CompiledNet:
    options = {"fingerprint": "0123", "batched": (True, False), "threads": 1, **options}
    return compile_cached("net", build, EXAMPLES, cache_dir=cache_dir, **options)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 8, 8)).astype(np.float32)


def torch_result(image: np.ndarray, strength: float, gain: float = 1.0) -> np.ndarray:
    with torch.no_grad():
        return Net(gain)(torch.from_numpy(image), torch.tensor([strength])).numpy()


def never() -> nn.Module:
    raise AssertionError("the network was built although it is in the cache")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    compiled(folder)
    return folder


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 11])
def test_any_batch_equals_torch(cache: Path, count: int) -> None:
    got = compiled(cache, never, batch_sizes=(4, 1))(images(count), np.array([0.5], np.float32))
    np.testing.assert_allclose(got, torch_result(images(count), 0.5), atol=1e-5)


def test_batches_are_split_into_the_compiled_sizes(cache: Path) -> None:
    net = compiled(cache, never, batch_sizes=(1, 4, 8))
    assert net.pieces(15) == [(0, 8), (8, 12), (12, 13), (13, 14), (14, 15)]
    net(images(5), EXAMPLES[1])
    assert sorted(net._queues) == [1, 4]  # 8 was not used, so it was not compiled


def test_every_stream_has_a_piece(cache: Path) -> None:
    net = compiled(cache, never, batch_sizes=(1, 2, 4), threads=2)
    assert net.pieces(8) == [(0, 4), (4, 8)]
    assert net.pieces(5) == [(0, 2), (2, 4), (4, 5)]
    assert net.pieces(2) == [(0, 1), (1, 2)]
    np.testing.assert_allclose(net(images(5), EXAMPLES[1]), torch_result(images(5), 1.0), atol=1e-5)


def test_the_second_process_does_not_build(tmp_path: Path) -> None:
    built: list[int] = []

    def build() -> nn.Module:
        built.append(1)
        return Net()

    first = compiled(tmp_path, build)(images(2), EXAMPLES[1])
    second = compiled(tmp_path, build)(images(2), EXAMPLES[1])
    assert built == [1] and np.array_equal(first, second)


def test_another_fingerprint_is_another_network(cache: Path) -> None:
    other = compiled(cache, lambda: Net(gain=2.0), fingerprint="4567")
    np.testing.assert_allclose(other(images(1), EXAMPLES[1]), torch_result(images(1), 1.0, gain=2.0), atol=1e-5)
    assert len(list(cache.iterdir())) == 2
    np.testing.assert_allclose(compiled(cache, never)(images(1), EXAMPLES[1]), torch_result(images(1), 1.0), atol=1e-5)


def test_concurrent_conversions_leave_one_complete_entry(tmp_path: Path) -> None:
    """If another process finishes first, its entry stays and this one's is discarded."""

    def build_late() -> nn.Module:
        compiled(tmp_path)
        return Net()

    got = compiled(tmp_path, build_late)(images(1), EXAMPLES[1])
    np.testing.assert_allclose(got, torch_result(images(1), 1.0), atol=1e-5)
    (entry,) = tmp_path.iterdir()  # and no temporary folder
    assert sorted(file.name for file in entry.iterdir()) == ["net.bin", "net.xml"]


@pytest.mark.parametrize("damage", ["net.xml", "net.bin"])
def test_a_damaged_entry_is_converted_again(tmp_path: Path, damage: str) -> None:
    compiled(tmp_path)
    (entry,) = tmp_path.iterdir()
    (entry / damage).write_bytes(b"<net")
    got = compiled(tmp_path)(images(1), EXAMPLES[1])
    np.testing.assert_allclose(got, torch_result(images(1), 1.0), atol=1e-5)
    compiled(tmp_path, never)


def test_a_failed_conversion_leaves_no_files(tmp_path: Path) -> None:
    def build() -> nn.Module:
        raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        compiled(tmp_path, build)
    assert not list(tmp_path.iterdir())


def test_nothing_is_stored_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(compiled(None)(images(3), EXAMPLES[1]), torch_result(images(3), 1.0), atol=1e-5)
    assert not list(tmp_path.iterdir())


def test_warming_compiles_every_size_and_reports(cache: Path) -> None:
    steps: list[tuple[int, int]] = []
    net = compiled(cache, never, batch_sizes=(1, 4), threads=2)
    net.warm(lambda _what, done, total: steps.append((done, total)))
    assert sorted(net._queues) == [1, 4]
    assert steps == [(0, 2), (1, 2), (2, 2)]


def test_read_only_and_half_precision_arrays_are_accepted(cache: Path) -> None:
    net, image = compiled(cache, never), images(4)
    image.flags.writeable = False
    np.testing.assert_allclose(net(image, EXAMPLES[1]), torch_result(images(4), 1.0), atol=1e-5)
    np.testing.assert_allclose(net(image.astype(np.float16), EXAMPLES[1]), torch_result(images(4), 1.0), atol=5e-3)


def test_results_do_not_change_with_the_next_batch(cache: Path) -> None:
    net = compiled(cache, never)
    first = net(images(4), EXAMPLES[1])
    kept = first.copy()
    net(images(4) + 1, EXAMPLES[1])
    assert np.array_equal(first, kept)


def test_threads_may_share_a_network(cache: Path) -> None:
    net, results = compiled(cache, never), dict[int, np.ndarray]()

    def work(count: int) -> None:
        for _ in range(20):
            results[count] = net(images(count), EXAMPLES[1])

    workers = [threading.Thread(target=work, args=(count,)) for count in (1, 4, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for count, result in results.items():
        np.testing.assert_allclose(result, torch_result(images(count), 1.0), atol=1e-5)


def test_bfloat16_is_computed_where_the_processor_can(cache: Path) -> None:
    got = compiled(cache, never, precision="bfloat16")(images(4), EXAMPLES[1])
    error = np.abs(got - torch_result(images(4), 1.0)).max()
    assert error < 0.02 and (error > 1e-4) >= has_fast_bfloat16()  # a bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("flags\t\t: fpu avx512_bf16 sse\n", True),
        ("flags : amx_bf16\n", True),
        ("flags : avx512f\n", False),
        ("", False),
    ],
)
def test_fast_bfloat16_is_read_from_the_processors_flags(tmp_path: Path, text: str, fast: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_fast_bfloat16(tmp_path / "cpuinfo") is fast
    assert not has_fast_bfloat16(tmp_path / "missing")


def test_sizes_without_1_are_refused(cache: Path) -> None:
    with pytest.raises(ConfigError, match="lack 1"):
        compiled(cache, never, batch_sizes=(4, 8))
