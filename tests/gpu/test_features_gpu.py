"""AudioFeatures on CUDA: recorded as a CUDA graph, against the same encoder launched from Python."""

import numpy as np
import pytest
import torch

from models.features import WhisperFeatures
from tests.support.paths import ROOT

EMBEDDED = ROOT / "models" / "embedded" / "whisper"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("seconds", [0.16, 2.54, 9.0, 41.0])  # one context, one, two, and seven: in two replays
def test_a_recorded_encoder_gives_the_same_windows(seconds: float) -> None:
    speech = (0.1 * np.random.default_rng(0).normal(size=round(16_000 * seconds))).astype(np.float32)
    eager, recorded = (WhisperFeatures.load(EMBEDDED, "cuda", torch.float16) for _ in range(2))
    recorded.record()
    for _ in range(2):  # the second time from the recording that the first one made
        expected, found = eager.windows_in_context(speech), recorded.windows_in_context(speech)
        assert found.shape == expected.shape == (int(seconds * 25), 50, 384)
        # batches of another size round differently
        assert (found - expected).abs().max() < 0.01 * expected.abs().max()
