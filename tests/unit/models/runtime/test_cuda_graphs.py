"""models.runtime.cuda_graphs: batches of fixed sizes. Recording itself needs CUDA (tests/gpu)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.errors import ConfigError
from models.runtime.cuda_graphs import GraphedFunction, Recording, check_compile, graph_batch_sizes


class OnCpu(GraphedFunction):
    """Replaces the recording by a function call on the graph's own buffers, and counts calls."""

    recordings: list[tuple[int, ...]]
    replays: list[int]

    def _record(self, signature):  # type: ignore[no-untyped-def]
        inputs = [torch.zeros(shape, dtype=dtype) for shape, dtype in signature]
        self.recordings = [*getattr(self, "recordings", []), tuple(inputs[0].shape)]
        self.replays = getattr(self, "replays", [])
        output = self._function(*inputs).clone()

        def replay() -> None:
            self.replays.append(len(inputs[0]))
            output.copy_(self._function(*inputs))

        return Recording(inputs, replay, output)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a * b.sum(1, keepdim=True)


def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3), np.float32), rng.standard_normal((n, 5), np.float32)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 19])
def test_any_number_of_rows_equals_the_function(n: int) -> None:
    recorded = OnCpu(product, (2, 8), "graphs", "cpu")
    a, b = rows(n)
    assert np.allclose(recorded(a, b).numpy(), product(torch.from_numpy(a), torch.from_numpy(b)).numpy())


def test_a_call_runs_in_the_smallest_sufficient_size() -> None:
    recorded = OnCpu(product, (8, 2), "graphs", "cpu")
    for n in (1, 2, 3, 8, 11):
        recorded(*rows(n))
    assert recorded.replays == [2, 2, 8, 8, 8, 8]  # 11 rows are 8 and 3
    assert recorded.recordings == [(2, 3), (8, 3)]  # each size once


def test_results_do_not_change_with_the_next_call() -> None:
    recorded = OnCpu(product, (4,), "graphs", "cpu")
    first = recorded(*rows(4, 1))
    kept = first.clone()
    recorded(*rows(4, 2))
    assert torch.equal(first, kept)


def test_each_input_shape_is_recorded() -> None:
    recorded = OnCpu(lambda a: 2 * a, (4,), "graphs", "cpu")
    assert recorded(np.ones((2, 3), np.float32)).shape == (2, 3)
    assert recorded(np.ones((2, 6), np.float32)).shape == (2, 6)
    assert recorded.recordings == [(4, 3), (4, 6)]


@pytest.mark.parametrize(
    ("mode", "batch", "sizes"),
    [
        ("graphs", 1, (1,)),
        ("graphs", 6, (1, 2, 4, 6)),
        ("graphs", 16, (1, 2, 4, 8, 16)),
        ("inductor", 16, (4, 16)),
        ("inductor", 4, (4,)),
        ("inductor", 3, (3,)),
    ],
)
def test_recorded_sizes_end_at_the_batch_size(mode: str, batch: int, sizes: tuple[int, ...]) -> None:
    assert graph_batch_sizes(mode, batch) == sizes


def test_wrong_modes_are_refused() -> None:
    with pytest.raises(ConfigError, match="off, graphs, inductor"):
        check_compile("fast", "cuda")
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        check_compile("graphs", "cpu")
    assert check_compile("off", "cpu") == "off"
