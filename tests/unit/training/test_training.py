"""Parts of the training of UNet and VAE: losses, the resumable loop, the data, sizes of the networks."""

from __future__ import annotations

import itertools
import math
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.features import WhisperFeatures
from models.types import CROP_PX
from tests.support.paths import ROOT
from training import presenter
from training.data import PRODUCT_SHIFT_PX, blurred, jittered, lower_half_black, speech_bank
from training.loop import Fit, OutOfTime
from training.losses import correlation, gradient_l1, image_weight, latent_weight, psnr, slope_loss
from training.nets import READINGS, MouthReader, make_unet, make_vae, readings_of
from training.speech import TRAIN, to_clip
from training.voices import Spoken
from training.whisper_encoder import read_ctranslate2

EMBEDDED = ROOT / "models" / "embedded"


def test_slope_loss_measures_the_size_of_a_movement_not_its_offset() -> None:
    truth = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    assert slope_loss(truth + 0.3, truth) == pytest.approx(0, abs=1e-9)
    assert slope_loss(0.5 * truth, truth) == pytest.approx(0.25, abs=1e-5)
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    assert slope_loss(truth + 0.05 * noise, truth) < 0.01


def test_gradient_loss_measures_edges_not_offsets() -> None:
    image, weight = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    assert gradient_l1(image + 0.7, image, weight) == pytest.approx(0, abs=1e-7)
    edge = image.clone()
    edge[..., 4:] = 1
    assert gradient_l1(edge, image, weight) == pytest.approx(1 / 7)


def test_weights_have_mean_one_and_favour_the_mouth() -> None:
    for weight, inside in ((image_weight("cpu"), (200, 128)), (latent_weight("cpu"), (25, 16))):
        assert weight.mean() == pytest.approx(1)
        assert weight[0, 0, inside[0], inside[1]] / weight[0, 0, -1, 0] == pytest.approx(3)


def test_psnr_and_correlation() -> None:
    a = torch.zeros(1, 3, 4, 4)
    assert psnr(a, a + 0.02) == pytest.approx(40)
    ramp = torch.arange(5.0)
    assert correlation(ramp, -2 * ramp + 1) == pytest.approx(-1)


def make_fit(path: Path, seed: int = 0) -> tuple[Fit, torch.nn.Module]:
    torch.manual_seed(seed)
    net = torch.nn.Linear(3, 2)
    return Fit("test", net, 40, 1e-2, path), net


def loss_for(net: torch.nn.Module) -> Callable[[int], torch.Tensor]:
    def loss_of(step: int) -> torch.Tensor:
        given = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return ((net(given) - given[:, :2]) ** 2).mean()

    return loss_of


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, net = make_fit(tmp_path / "whole")
    expected = whole.run(loss_for(net), math.inf).state_dict()
    clock = itertools.count()  # each look at it takes a second
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    broken, net = make_fit(tmp_path / "broken")
    with pytest.raises(OutOfTime):
        broken.run(loss_for(net), deadline_s=50)
    resumed, net = make_fit(tmp_path / "broken", seed=99)
    assert 0 < resumed.step < 40
    found = resumed.run(loss_for(net), math.inf).state_dict()
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)


def test_jittered_crops_are_centred_on_the_crop_of_the_product() -> None:
    identity, pose = presenter.default_identity(1), presenter.rest_pose(1)
    own = presenter.face_crop_transform(identity, pose, CROP_PX)
    moved = jittered(own, torch.Generator(), amount=0.0)
    middle = torch.tensor([255.5, 300.0, 1.0])
    shift = moved[0] @ middle - own[0] @ middle
    turned = 0.015 * (own[0] @ middle - 127.5)  # the product's roll, about the crop's middle
    assert shift[0] == pytest.approx(PRODUCT_SHIFT_PX[0] - float(turned[1]), abs=0.1)
    assert shift[1] == pytest.approx(PRODUCT_SHIFT_PX[1] + float(turned[0]), abs=0.1)
    many = jittered(own.expand(500, -1, -1), torch.Generator().manual_seed(0))
    scale = torch.linalg.det(many[:, :, :2]).sqrt() / torch.linalg.det(own[0, :, :2]).sqrt()
    assert 0.92 <= float(scale.min()) < 0.95 and 1.05 < float(scale.max()) <= 1.08


def test_blur_keeps_the_mean_and_sigma_zero_changes_nothing() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    soft = blurred(images, torch.tensor([0.0, 0.8]))
    assert torch.allclose(soft[0], images[0], atol=1e-5)
    assert soft[1].std() < 0.7 * images[1].std()
    assert soft[1].mean() == pytest.approx(float(images[1].mean()), abs=0.02)


def test_lower_half_is_minus_one() -> None:
    masked = lower_half_black(torch.zeros(1, 3, CROP_PX, CROP_PX))
    assert masked[:, :, :128].abs().max() == 0 and (masked[:, :, 128:] == -1).all()


def test_the_bank_gives_the_windows_of_the_product() -> None:
    random = np.random.default_rng(0)
    clips = [
        to_clip(Spoken((0.1 * random.standard_normal(count)).astype(np.float32), ()), TRAIN)
        for count in (16_000, 9_600)
    ]
    bank = speech_bank(clips, EMBEDDED / "whisper", "cpu")
    whisper = WhisperFeatures.load(EMBEDDED / "whisper")
    expected = torch.cat([whisper.windows_in_context(clip.samples.astype(np.float32) / 32768, 25) for clip in clips])
    found = bank.windows(torch.arange(len(bank.mouth)))
    assert found.shape == expected.shape == (25 + 15, 50, 384)
    assert torch.allclose(found, expected, atol=0.02)  # float16 of values up to about 30


def test_networks_keep_their_budget() -> None:
    unet, vae = make_unet(), make_vae()
    count = sum(p.numel() for net in (unet, vae) for p in net.parameters())
    assert sum(p.numel() for p in unet.parameters()) == 2_491_124 and 2 * count < 6_000_000  # bytes in float16
    sizes = [path.stat().st_size for name in ("musetalk", "vae") for path in (EMBEDDED / name).glob("*.safetensors")]
    assert len(sizes) == 2 and sum(sizes) < 6_000_000


def test_readings_of_closed_and_open_mouths() -> None:
    rest, wide = torch.tensor(presenter.REST_MOUTH), torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    read = readings_of(torch.stack([rest, wide]))
    assert read.shape == (2, len(READINGS))
    assert read[0, 0] == 0 and read[1, 0] == 1
    assert MouthReader()(torch.zeros(2, 3, 128, 256)).shape == (2, len(READINGS))


def write_ctranslate2(spec: str, variables: dict[str, np.ndarray], aliases: dict[str, str]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 1, len(variables))
    for name, array in variables.items():
        out += text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        out += struct.pack("<BI", 4 if array.dtype == np.float16 else 0, array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases))
    return out + b"".join(text(a) + text(b) for a, b in aliases.items())


def test_ctranslate2_files_are_read_back() -> None:
    variables = {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.ones(2, np.float32)}
    read = read_ctranslate2(write_ctranslate2("WhisperSpec", variables, {"c": "b"}))
    assert all(np.array_equal(read[name], array) for name, array in variables.items())
    assert np.array_equal(read["c"], variables["b"])
    with pytest.raises(ValueError, match="not a CTranslate2 Whisper"):
        read_ctranslate2(write_ctranslate2("TransformerSpec", variables, {}))
