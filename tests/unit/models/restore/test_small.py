"""The small restorer's engines: shapes, strength, agreement with each other, errors."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import ConfigError, InputError, WeightsError
from models.restore.small import MAX_FACES, SmallRestorer
from models.restore.small_net import SmallRestorerNet
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights with a visible effect."""
    torch.manual_seed(0)
    net = SmallRestorerNet()
    torch.nn.init.normal_(net.tail.weight, std=0.02)
    path = tmp_path_factory.mktemp("restorer") / "restorer.safetensors"
    save_file({name: value.half() for name, value in net.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fast(weights: Path, cache: Path) -> SmallRestorer:
    return SmallRestorer.load(weights, threads=1, cache_dir=cache)


@pytest.fixture(scope="module")
def slow(weights: Path) -> SmallRestorer:
    return SmallRestorer.load(weights, engine="torch")


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """Three smooth random pictures with noise on top."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    smooth = np.stack([cv2.resize(picture, (256, 256), interpolation=cv2.INTER_CUBIC) for picture in coarse])
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference in grey levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_faces_of_256_px_become_512_px(fast: SmallRestorer, faces: np.ndarray) -> None:
    restored = fast.restore(faces)
    assert restored.shape == (3, 512, 512, 3)
    assert restored.dtype == np.uint8


def test_both_engines_agree_within_two_levels(fast: SmallRestorer, slow: SmallRestorer, faces: np.ndarray) -> None:
    assert levels(fast.restore(faces), slow.restore(faces)) <= 2
    assert levels(fast.restore(faces, 0.5), slow.restore(faces, 0.5)) <= 2


def test_both_engines_agree_on_the_embedded_weights(faces: np.ndarray) -> None:
    fast, slow = (SmallRestorer.load(engine=engine) for engine in ("openvino", "torch"))
    assert levels(fast.restore(faces), slow.restore(faces)) <= 2
    assert np.abs(fast.restore(faces).astype(int) - fast.restore(faces, 0.0)).mean() > 0.5  # they have an effect


@pytest.mark.parametrize("engine", ["fast", "slow"])
def test_strength_0_is_opencv_s_bicubic(engine: str, faces: np.ndarray, request: pytest.FixtureRequest) -> None:
    restorer: SmallRestorer = request.getfixturevalue(engine)
    expected = np.stack([cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC) for face in faces])
    np.testing.assert_array_equal(restorer.restore(faces, 0.0), expected)
    assert levels(restorer.restore(faces, 1e-6), expected) <= 1  # no step where the network starts to run


def test_strength_is_linear_between_its_ends(fast: SmallRestorer, faces: np.ndarray) -> None:
    plain, full = (fast.restore(faces, strength).astype(float) for strength in (0.0, 1.0))
    assert np.abs(full - plain).mean() > 1
    inside = (np.minimum(plain, full) > 0) & (np.maximum(plain, full) < 255)  # clipping is not linear
    for strength in (0.25, 0.6):
        expected = plain + strength * (full - plain)
        assert np.abs(fast.restore(faces, strength) - expected)[inside].max() <= 2


def test_restoring_is_deterministic_and_does_not_depend_on_the_batch(fast: SmallRestorer, faces: np.ndarray) -> None:
    many = np.concatenate([faces] * 4)[: MAX_FACES + 2]
    together = fast.restore(many)
    np.testing.assert_array_equal(together, fast.restore(many))
    assert levels(together[MAX_FACES + 1], fast.restore(many[MAX_FACES + 1 :])[0]) <= 1


def test_read_only_and_empty_arrays_are_accepted(fast: SmallRestorer, slow: SmallRestorer, faces: np.ndarray) -> None:
    shared = faces[:1].copy()
    shared.flags.writeable = False
    for restorer in (fast, slow):
        assert levels(restorer.restore(shared), restorer.restore(faces[:1])) == 0
        assert restorer.restore(faces[:0]).shape == (0, 512, 512, 3)


@pytest.mark.parametrize("bad", [np.zeros((1, 128, 128, 3), np.uint8), np.zeros((1, 256, 256, 3), np.float32)])
def test_other_shapes_and_types_are_refused(fast: SmallRestorer, bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="cannot be restored"):
        fast.restore(bad)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_0_to_1_is_refused(fast: SmallRestorer, faces: np.ndarray, strength: float) -> None:
    with pytest.raises(InputError, match="strength"):
        fast.restore(faces, strength)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_weights_that_are_missing_damaged_or_foreign_are_named(engine: str, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        SmallRestorer.load(tmp_path / "none.safetensors", engine=engine)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"cut\.safetensors"):
        SmallRestorer.load(cut, engine=engine)
    state = load_file(weights)
    state["head.weight"] = torch.zeros(8, 12, 3, 3)
    foreign = tmp_path / "foreign.safetensors"
    save_file(state, foreign)
    with pytest.raises(WeightsError, match=r"head\.weight"):
        SmallRestorer.load(foreign, engine=engine)
    state = load_file(weights)
    state["head.weight"][0] = float("nan")
    broken = tmp_path / "broken.safetensors"
    save_file(state, broken)
    with pytest.raises(WeightsError, match="not finite"):
        SmallRestorer.load(broken, engine=engine)


def test_the_engine_starts_from_its_cache_without_torch(
    weights: Path, fast: SmallRestorer, cache: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    program = """
import sys
import numpy as np
from models.restore.small import SmallRestorer
weights, cache, given, out = sys.argv[1:]
np.save(out, SmallRestorer.load(weights, threads=1, cache_dir=cache).restore(np.load(given)))
assert "torch" not in sys.modules, "torch was imported"
"""
    given, out = tmp_path / "given.npy", tmp_path / "out.npy"
    np.save(given, faces)
    arguments = [str(path) for path in (weights, cache, given, out)]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, cwd=ROOT)
    assert levels(np.load(out), fast.restore(faces)) <= 1


def test_other_weights_have_another_cache_entry(
    weights: Path, fast: SmallRestorer, cache: Path, faces: np.ndarray, tmp_path: Path
) -> None:
    state = load_file(weights)
    state["tail.weight"] = torch.zeros_like(state["tail.weight"])
    plain = tmp_path / "plain.safetensors"
    save_file(state, plain)
    bicubic = SmallRestorer.load(plain, threads=1, cache_dir=cache)
    assert levels(bicubic.restore(faces), bicubic.restore(faces, 0.0)) <= 1
    assert levels(fast.restore(faces), bicubic.restore(faces)) > 2


def test_an_unknown_engine_or_device_is_a_config_error(weights: Path) -> None:
    with pytest.raises(ConfigError, match="openvino, torch"):
        SmallRestorer.load(weights, engine="magic")
    with pytest.raises(ConfigError, match="cuda"):
        SmallRestorer.load(weights, device="cuda", engine="openvino")
