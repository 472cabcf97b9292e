"""MouthGain: a gain on what speech changes in a face's latents, relative to the face at rest."""

import numpy as np
import pytest

from models.errors import ConfigError
from models.mouth_gain import MouthGain

REST = np.full((50, 384), 2, np.float16)


class Engine:
    """A fake engine: output latent = input latent + window; a crop is grey, ten times its latent."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(self, latents, windows):
        self.sizes.append(len(latents))
        return (latents[:, :4].astype(np.float32) + windows[:, :1, :1, None]).astype(np.float32)

    def decode(self, latents):
        return np.zeros((len(latents), 8, 8, 3), np.uint8) + np.rint(10 * latents[:, :1, :1, :1]).astype(np.uint8)


def given(values: list[float], spoken: list[float]) -> tuple[np.ndarray, np.ndarray]:
    latents = np.zeros((len(values), 8, 32, 32), np.float16) + np.float16(values)[:, None, None, None]
    return latents, np.zeros((len(spoken), 50, 384), np.float16) + np.float16(spoken)[:, None, None]


@pytest.mark.parametrize("amplitude, gain", [(0.7, 0.82), (1.0, 1.0), (1.3, 1.3)])
def test_the_gain_multiplies_the_change_from_rest(amplitude, gain):
    crops = MouthGain(Engine(), amplitude).generate(*given([1, 1, 3], [2, 7, 7]), REST)
    assert crops[:, 0, 0, 0].tolist() == [30, round(10 * (3 + 5 * gain)), round(10 * (5 + 5 * gain))]


def test_the_latents_at_rest_are_predicted_once_per_frame():
    engine = Engine()
    amplitude = MouthGain(engine, 1.2)
    for _ in range(3):
        amplitude.generate(*given([1, 1, 3, 4], [2, 3, 4, 5]), REST)
    assert engine.sizes == [4 + 3, 4, 4]


def test_a_full_cache_drops_entries_without_changing_results():
    engine = Engine()
    amplitude = MouthGain(engine, 1.3, cache_size=2)
    first = amplitude.generate(*given([1, 2, 3], [4, 4, 4]), REST)
    assert np.array_equal(amplitude.generate(*given([1, 2, 3], [4, 4, 4]), REST), first)
    assert engine.sizes == [6, 4] and len(amplitude._at_rest) == 2


def test_an_engine_without_predict_and_decode_is_refused():
    with pytest.raises(ConfigError, match="cannot change the mouth's amplitude"):
        MouthGain(object(), 1.2)
