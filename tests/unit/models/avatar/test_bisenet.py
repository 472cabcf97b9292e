"""models.avatar.bisenet and FaceParser: the released keys, and the numbers against a second implementation.

Numbers are tested on a network of the real structure with an eighth of the channels; test_full_size runs a whole one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from models.avatar import bisenet
from models.avatar.bisenet import BiSeNet
from models.avatar.parse import FaceParser
from models.errors import InputError, WeightsError
from tests.support.avatar import hopper
from tests.support.full_size import on_meta
from tests.support.random_weights import BISENET_WIDTH

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Random narrow weights with the real key set; the batch norms have an effect, but no extreme values."""
    torch.manual_seed(0)
    state = BiSeNet(BISENET_WIDTH).state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif key.endswith("running_mean") or key.endswith("bias"):
            value.normal_(0, 0.2)
    return state


@pytest.fixture(scope="module")
def path(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "79999_iter.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """FaceParser.load builds the narrow network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bisenet, "BiSeNet", partial(BiSeNet, BISENET_WIDTH))
        yield


@pytest.fixture(scope="module")
def parser(path: Path) -> FaceParser:
    return FaceParser.load(path)


def conv(state: State, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    mean, var, gain, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * gain + bias


def unit(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return norm(state, f"{name}.bn", conv(state, f"{name}.conv", x)).relu()


def refined(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    x = unit(state, f"{name}.conv", x)
    weights = norm(state, f"{name}.bn_atten", conv(state, f"{name}.conv_atten", x.mean((2, 3), keepdim=True)))
    return x * weights.sigmoid()


def twice(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def reference(state: State, x: torch.Tensor) -> torch.Tensor:
    """The network from its description, without modules: batch norm and upsampling by hand."""
    net = "cp.resnet"
    x = norm(state, f"{net}.bn1", conv(state, f"{net}.conv1", x, stride=2)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    levels = []
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"{net}.layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, stride)).relu()
            y = norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", y))
            if stride == 2:
                x = norm(state, f"{name}.downsample.1", conv(state, f"{name}.downsample.0", x, stride))
            x = (x + y).relu()
        levels.append(x)
    _, x8, x16, x32 = levels
    coarse = refined(state, "cp.arm32", x32) + unit(state, "cp.conv_avg", x32.mean((2, 3), keepdim=True))
    middle = refined(state, "cp.arm16", x16) + unit(state, "cp.conv_head32", twice(coarse))
    joined = unit(state, "ffm.convblk", torch.cat([x8, unit(state, "cp.conv_head16", twice(middle))], 1))
    weights = conv(state, "ffm.conv1", joined.mean((2, 3), keepdim=True)).relu()
    joined = joined * conv(state, "ffm.conv2", weights).sigmoid() + joined
    return conv(state, "conv_out.conv_out", unit(state, "conv_out.conv", joined))


def enlarge(scores: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Bilinear, corners on corners, `(c, h, w)` → `(c, size, size)`."""
    at = np.arange(size) * (scores.shape[1] - 1) / (size - 1)
    low = np.minimum(at.astype(int), scores.shape[1] - 2)
    part = at - low
    rows = scores[:, low] * (1 - part)[:, None] + scores[:, low + 1] * part[:, None]
    return rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part


def test_the_keys_are_those_of_the_released_file() -> None:
    """Names and counts as in zllrunning/face-parsing.PyTorch's model.py and resnet.py."""
    state = on_meta(BiSeNet)
    roots = {re.sub(r"\.(weight|bias|running_\w+|num_batches_tracked)$", "", key) for key in state}
    floats = sum(value.numel() for value in state.values() if value.is_floating_point())
    assert len(state) == 191 and floats == 13_313_088  # 53.25 of the 53.29 MB of 79999_iter.pth
    assert {
        "cp.resnet.conv1",
        "cp.resnet.layer2.0.downsample.0",
        "cp.resnet.layer4.1.bn2",
        "cp.arm16.conv.conv",
        "cp.arm32.bn_atten",
        "cp.conv_head32.bn",
        "cp.conv_avg.conv",
        "ffm.convblk.conv",
        "ffm.conv1",
        "ffm.conv2",
        "conv_out.conv_out",
        "conv_out16.conv.bn",
        "conv_out32.conv_out",
    } <= roots
    assert not any(root.startswith(("cp.resnet.layer1.0.downsample", "cp.resnet.fc", "cp.sp")) for root in roots)


@pytest.mark.parametrize("size", [(480, 512), (300, 200), (600, 900)])
def test_scores_agree_with_a_second_implementation(state: State, parser: FaceParser, size: tuple[int, int]) -> None:
    face = np.asarray(Image.fromarray(hopper()).resize(size[::-1]))
    logits = parser.logits(face)
    assert logits.shape == (19, 512, 512) and logits.dtype == np.float32
    picture = np.asarray(Image.fromarray(face).resize((512, 512), Image.Resampling.BILINEAR)) / 255.0
    x = ((picture - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None]
    doubles = {key: value.double() for key, value in state.items()}
    small = reference(doubles, torch.from_numpy(x))[0].numpy()
    assert small.shape == (19, 64, 64)
    wanted = enlarge(small, 512)
    assert np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.std(wanted, axis=(1, 2)).min() > 0.01 * np.abs(wanted).max()  # and it depends on the picture


def test_labels_are_the_classes_with_the_highest_scores(parser: FaceParser) -> None:
    labels = parser.labels(hopper())
    assert labels.shape == (512, 512) and labels.dtype == np.int64
    assert np.array_equal(labels, parser.logits(hopper()).argmax(0)) and len(np.unique(labels)) > 1


def test_files_without_batch_counters_load_too(state: State, parser: FaceParser, tmp_path: Path) -> None:
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "old.pth")
    assert np.array_equal(FaceParser.load(tmp_path / "old.pth").logits(hopper()), parser.logits(hopper()))


def test_a_partial_file_names_its_first_missing_key(state: State, tmp_path: Path) -> None:
    torch.save({key: value for key, value in state.items() if not key.startswith("ffm.")}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"8 missing \(ffm\.convblk\.conv\.weight"):
        FaceParser.load(tmp_path / "part.pth")


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5), (5, 5, 4)])
def test_an_array_that_is_not_an_rgb_picture_is_refused(parser: FaceParser, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be parsed"):
        parser.logits(np.zeros(shape, np.uint8))
