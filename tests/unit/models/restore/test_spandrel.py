"""models.restore.spandrel, with a fake of spandrel's interface (ModelLoader, ImageModelDescriptor)."""

import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from models.errors import ConfigError, WeightsError
from models.restore.spandrel import SpandrelRestorer


class Descriptor:
    """A fake spandrel.ImageModelDescriptor: RGB in [0, 1], one picture per call, `scale` times as large, inverted."""

    supports_half, supports_bfloat16 = False, True
    input_channels = output_channels = 3

    def __init__(self, scale: int) -> None:
        self.scale, self.model, self.calls = scale, torch.nn.Conv2d(3, 3, 1), []
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def to(self, device, dtype):
        self.device, self.dtype = device, dtype
        return self

    def eval(self):
        return self

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[0] == 1 and image.dtype == self.dtype and image.min() >= 0 and image.max() <= 1
        self.calls.append(tuple(image.shape))
        return torch.nn.functional.interpolate(1 - image, scale_factor=self.scale)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("spandrel")
    module.ImageModelDescriptor, module.scale, module.installed = Descriptor, 1, []

    class ModelLoader:
        def __init__(self, device=None):
            assert device == torch.device("cpu")

        def load_from_file(self, path: str):
            if module.scale is None:
                raise RuntimeError("Unsupported architecture")
            return Descriptor(module.scale)

    module.ModelLoader = ModelLoader
    extra = ModuleType("spandrel_extra_arches")
    extra.install = lambda ignore_duplicates: module.installed.append(ignore_duplicates)
    monkeypatch.setitem(sys.modules, "spandrel", module)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", extra)
    return module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"params_ema": {"w": torch.ones(1)}}, tmp_path / "codeformer.pth")
    return tmp_path / "codeformer.pth"


def faces(side: int, n: int = 2) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return np.stack([cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC) for face in coarse])


def test_faces_are_passed_one_by_one_as_rgb_in_0_to_1(fake: ModuleType, path: Path) -> None:
    restorer = SpandrelRestorer.load(path)
    out = restorer.restore(faces(512))
    assert restorer.model.calls == [(1, 3, 512, 512)] * 2
    assert np.array_equal(out, 255 - faces(512))
    assert fake.installed == [True]


def test_a_model_that_enlarges_gets_a_smaller_picture(fake: ModuleType, path: Path) -> None:
    fake.scale = 4
    restorer = SpandrelRestorer.load(path)
    out = restorer.restore(faces(512, 1))
    assert restorer.model.calls == [(1, 3, 128, 128)]
    assert out.shape == (1, 512, 512, 3)
    assert np.abs(out.astype(int) - (255 - faces(512, 1))).mean() < 4


def test_crops_are_aligned_by_their_landmarks(fake: ModuleType, path: Path) -> None:
    crop = faces(256, 1)
    landmarks = np.array([[[80, 90], [176, 90], [128, 130], [95, 180], [161, 180]]], np.float32)
    out = SpandrelRestorer.load(path).restore(crop, 1.0, landmarks)
    plain = cv2.resize(crop[0], (512, 512), interpolation=cv2.INTER_CUBIC)
    inner = slice(64, 448)
    assert np.abs(out[0, inner, inner].astype(int) - (255 - plain[inner, inner].astype(int))).mean() < 3
    assert np.array_equal(out[0, 0], plain[0])


def test_without_the_extra_the_error_says_how_to_install_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ConfigError, match=r"warmtalk\[restore\]"):
        SpandrelRestorer.load(path)


def test_wrong_files_and_dtypes_are_named(fake: ModuleType, path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        SpandrelRestorer.load(path, dtype="float16")
    assert SpandrelRestorer.load(path, dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(WeightsError, match="is missing"):
        SpandrelRestorer.load(tmp_path / "none.pth")
    fake.scale = None
    with pytest.raises(WeightsError, match="Unsupported architecture"):
        SpandrelRestorer.load(path)
