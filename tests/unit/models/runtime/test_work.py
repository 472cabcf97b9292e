"""Counting operations and bytes: against formulas, and one network in two runtimes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.restore.small import SmallRestorer
from models.runtime.ceilings import Ceilings, measure_ceilings
from models.runtime.work import convolution_flop, count_work


def test_a_convolution_in_torch_counts_two_operations_per_weight_and_position() -> None:
    net, x = torch.nn.Conv2d(4, 6, 3, padding=1), torch.rand(2, 4, 10, 10)
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            work, _ = count_work(lambda: net(x))
        assert work.flop == 2 * (2 * 6 * 10 * 10) * (4 * 3 * 3)
        assert work.moved_bytes == 4 * (x.numel() + net.weight.numel() + 6 + 2 * 6 * 10 * 10)


def test_attention_counts_both_products_but_no_traffic_for_them() -> None:
    q = torch.rand(2, 4, 64, 32)
    with torch.inference_mode():
        work, _ = count_work(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert work.flop == 2 * 2 * (2 * 4 * 64 * 64 * 32)
    assert work.moved_bytes == 4 * q.nbytes


def test_pointwise_operations_move_nothing_where_a_compiler_fuses_them_and_views_never_do() -> None:
    x = torch.rand(8, 8)
    assert count_work(lambda: torch.relu(x).view(64).t())[0].moved_bytes == 2 * x.nbytes
    assert count_work(lambda: torch.relu(x), fused=True)[0].moved_bytes == 0


def test_a_transposed_convolution_counts_its_inputs() -> None:
    assert convolution_flop("ConvolutionBackpropData", [1, 4, 5, 5], [4, 6, 3, 3], 0) == 2 * (4 * 25) * (6 * 9)
    assert convolution_flop("GroupConvolution", [], [2, 3, 4, 3, 3], 10) == 2 * 10 * (4 * 9)


def test_openvino_and_torch_count_the_same_network_alike(tmp_path) -> None:
    faces = np.zeros((2, 256, 256, 3), np.uint8)
    counts = {}
    for engine in ("openvino", "torch"):
        restorer = SmallRestorer.load(engine=engine, cache_dir=tmp_path, threads=1)
        counts[engine], restored = count_work(lambda restorer=restorer: restorer.restore(faces))
        assert restored.shape == (2, 512, 512, 3)
    assert counts["openvino"].flop == pytest.approx(counts["torch"].flop, rel=0.02) and counts["torch"].flop > 1e9
    assert counts["openvino"].moved_bytes == pytest.approx(counts["torch"].moved_bytes, rel=0.5)
    assert counts["openvino"].seconds["Convolution"] > 0.3 * sum(counts["openvino"].seconds.values())


def test_the_voice_is_counted_by_the_profiler_of_onnx_runtime() -> None:
    from models.tts.hibari import HibariTTS

    voice = HibariTTS.load()
    (short, _), (long, _) = (count_work(lambda text=text: list(voice.speak(text))) for text in ("One.", "One and two."))
    assert long.flop > short.flop > 1e6 and long.seconds


def test_ceilings_are_positive_and_give_the_least_time_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.runtime.ceilings.MATRIX", {"cpu": 64})
    monkeypatch.setattr("models.runtime.ceilings.COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("models.runtime.ceilings.SECONDS", 0.01)
    threads = torch.get_num_threads()
    found = measure_ceilings("cpu", "float32", threads + 1)
    assert min(found.flop_s, found.bytes_s, found.launch_s) > 0 and torch.get_num_threads() == threads
    assert Ceilings("cpu", "float32", 1e9, 1e6, 0.0).least_s(2e9, 3e6) == (2.0, 3.0)
