"""GFPGAN's clean v1 network: the released keys and shapes, and its numbers against a second implementation.

Numbers are tested on a network of the real structure with a sixteenth of the channels; test_full_size runs a whole one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.errors import ConfigError, InputError, WeightsError
from models.restore import ENGINES
from models.restore.gfpgan import GFPGAN
from models.restore.gfpgan_net import GFPGANNet, ModulatedConv, StyleConv, ToRGB, channels_last
from models.weights.loading import build_module
from tests.support.full_size import on_meta
from tests.support.random_weights import GFPGAN_CHANNELS, gfpgan_weights

RELEASED = [256, 256, 256, 256, 256, 128, 64, 32]  # the U-Net's channels at 4, 8 … 512 px in GFPGANv1.4.pth
NARROW = [channels // 2 for channels in GFPGAN_CHANNELS.values()]


def shapes(halves: list[int] = RELEASED) -> dict[str, tuple[int, ...]]:
    """Every key of `params_ema` of GFPGANv1.4.pth with its shape, independent of the network's code."""
    keys: dict[str, tuple[int, ...]] = {}
    lowest = halves[0]

    def conv(name: str, out: int, channels: int, side: int, bias: bool = True) -> None:
        keys[f"{name}.weight"] = (out, channels, side, side)
        if bias:
            keys[f"{name}.bias"] = (out,)

    def linear(name: str, out: int, features: int) -> None:
        keys[f"{name}.weight"], keys[f"{name}.bias"] = (out, features), (out,)

    def modulated(name: str, out: int, channels: int, side: int) -> None:
        keys[f"{name}.modulated_conv.weight"] = (1, out, channels, side, side)
        linear(f"{name}.modulated_conv.modulation", channels, 512)
        keys[f"{name}.bias"] = (1, out, 1, 1)

    def block(name: str, out: int, channels: int) -> None:
        conv(f"{name}.conv1", channels, channels, 3)
        conv(f"{name}.conv2", out, channels, 3)
        conv(f"{name}.skip", out, channels, 1, bias=False)

    conv("conv_body_first", halves[-1], 3, 1)
    conv("final_conv", lowest, lowest, 3)
    linear("final_linear", 16 * 512, lowest * 4 * 4)
    for k in range(7):
        below, here = halves[k], halves[k + 1]
        block(f"conv_body_down.{6 - k}", below, here)
        block(f"conv_body_up.{k}", here, below)
        conv(f"toRGB.{k}", 3, here, 1)
        for kind in ("condition_scale", "condition_shift"):
            conv(f"{kind}.{k}.0", here, here, 3)
            conv(f"{kind}.{k}.2", here, here, 3)
        for layer, channels in ((2 * k, 2 * below), (2 * k + 1, 2 * here)):
            modulated(f"stylegan_decoder.style_convs.{layer}", 2 * here, channels, 3)
            keys[f"stylegan_decoder.style_convs.{layer}.weight"] = (1,)
        modulated(f"stylegan_decoder.to_rgbs.{k}", 3, 2 * here, 1)
    for k in range(1, 16, 2):
        linear(f"stylegan_decoder.style_mlp.{k}", 512, 512)
    keys["stylegan_decoder.constant_input.weight"] = (1, 2 * lowest, 4, 4)
    modulated("stylegan_decoder.style_conv1", 2 * lowest, 2 * lowest, 3)
    keys["stylegan_decoder.style_conv1.weight"] = (1,)
    modulated("stylegan_decoder.to_rgb1", 3, 2 * lowest, 1)
    for k, side in enumerate([4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256, 512, 512]):
        keys[f"stylegan_decoder.noises.noise{k}"] = (1, 1, side, side)
    return keys


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return gfpgan_weights(shapes(NARROW))


@pytest.fixture(scope="module")
def gfpgan(state: dict[str, torch.Tensor]) -> GFPGAN:
    return GFPGAN(channels_last(build_module(lambda: GFPGANNet(GFPGAN_CHANNELS), state, "narrow.pth")), max_faces=1)


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A smooth random picture, RGB uint8 (1, 512, 512, 3), read-only like arrays from another process."""
    torch.manual_seed(1)
    picture = F.interpolate(torch.rand(1, 3, 32, 32) * 255, size=512, mode="bicubic").clamp(0, 255)
    array = picture.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous().numpy()
    array.flags.writeable = False
    return array


@pytest.fixture(scope="module")
def x(face: np.ndarray) -> torch.Tensor:
    return torch.tensor(face.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def image(gfpgan: GFPGAN, x: torch.Tensor) -> torch.Tensor:
    return gfpgan.net(x)


# --- the reference: weights are modulated per face, and a grouped convolution takes all faces


def modulate(weight, modulation, bias, x, style, demodulate):
    scale = F.linear(style, modulation, bias)  # (n, channels)
    kernels = weight * scale[:, None, :, None, None]  # (n, out, channels, k, k)
    if demodulate:
        kernels = kernels / torch.sqrt(kernels.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
    n, out, channels, k, _ = kernels.shape
    mixed = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.reshape(n * out, channels, k, k), padding=k // 2, groups=n)
    return mixed.reshape(n, out, *mixed.shape[2:])


def double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Reference:
    """The paper's forward pass over the state dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def act(self, x):
        return torch.where(x > 0, x, 0.2 * x)

    def block(self, name, x, factor):
        resize = double if factor == 2 else lambda v: F.avg_pool2d(v, 2)
        deep = self.act(self.conv(f"{name}.conv2", resize(self.act(self.conv(f"{name}.conv1", x)))))
        return deep + self.conv(f"{name}.skip", resize(x))

    def modulated(self, name, x, style, demodulate):
        parts = [self.state[f"{name}.modulated_conv.{k}"] for k in ("weight", "modulation.weight", "modulation.bias")]
        return modulate(*parts, x, style, demodulate)

    def style(self, name, x, style, noise):
        out = 2**0.5 * self.modulated(name, x, style, True)
        return self.act(out + self.state[f"{name}.weight"] * noise + self.state[f"{name}.bias"])

    def rgb(self, name, x, style):
        return self.modulated(name, x, style, False) + self.state[f"{name}.bias"]

    def __call__(self, x):
        n, skips = len(x), []
        x = self.act(self.conv("conv_body_first", x))
        for k in range(7):
            x = self.block(f"conv_body_down.{k}", x, 0.5)
            skips.append(x)
        x = self.act(self.conv("final_conv", x))
        flat = F.linear(x.reshape(n, -1), self.state["final_linear.weight"], self.state["final_linear.bias"])
        styles = flat.reshape(n, 16, 512)
        conditions = []
        for k in range(7):
            x = self.block(f"conv_body_up.{k}", x + skips.pop(), 2)
            for kind in ("condition_scale", "condition_shift"):
                conditions.append(self.conv(f"{kind}.{k}.2", self.act(self.conv(f"{kind}.{k}.0", x))))
        root = "stylegan_decoder"
        noise = [self.state[f"{root}.noises.noise{k}"] for k in range(15)]
        x = self.state[f"{root}.constant_input.weight"].repeat(n, 1, 1, 1)
        x = self.style(f"{root}.style_conv1", x, styles[:, 0], noise[0])
        image = self.rgb(f"{root}.to_rgb1", x, styles[:, 1])
        for k in range(7):
            x = self.style(f"{root}.style_convs.{2 * k}", double(x), styles[:, 2 * k + 1], noise[2 * k + 1])
            half = x.shape[1] // 2
            x[:, half:] = x[:, half:] * conditions[2 * k] + conditions[2 * k + 1]
            x = self.style(f"{root}.style_convs.{2 * k + 1}", x, styles[:, 2 * k + 2], noise[2 * k + 2])
            image = double(image) + self.rgb(f"{root}.to_rgbs.{k}", x, styles[:, 2 * k + 3])
        return image


def test_the_network_has_the_keys_and_shapes_of_the_released_checkpoint() -> None:
    own = {key: tuple(value.shape) for key, value in on_meta(GFPGANNet).items()}
    assert len(own) == 285
    assert own == shapes()


def test_the_whole_network_agrees_with_the_reference(state, x, image) -> None:
    with torch.inference_mode():
        wanted = Reference({key: value.double() for key, value in state.items()})(x.double())
    assert image.shape == (1, 3, 512, 512)
    assert wanted.std() > 0.1
    assert (image - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("magnitude", [1.0, 1e-3, 1e3])
def test_a_modulated_convolution_agrees_per_face(demodulate: bool, magnitude: float) -> None:
    torch.manual_seed(2)
    conv = ModulatedConv(8, 6, 3, demodulate)
    torch.nn.init.normal_(conv.weight)
    x, style = torch.randn(3, 8, 10, 10), torch.randn(3, 512) * magnitude
    with torch.no_grad():
        got = conv(x, style)
        wanted = modulate(conv.weight, conv.modulation.weight, conv.modulation.bias, x, style, demodulate)
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("demodulate", [True, False])
def test_half_precision_does_not_overflow_where_styles_are_large(demodulate: bool) -> None:
    torch.manual_seed(4)
    conv = ModulatedConv(512, 16, 3, demodulate)
    torch.nn.init.normal_(conv.weight, std=1 / (512 * 9) ** 0.5)
    x, style = torch.randn(1, 512, 8, 8), torch.randn(1, 512) * 300  # scales near 300: times x, squared, past 65504
    with torch.no_grad():
        wanted = conv(x, style)
        got = conv.half()(x.half(), style.half()).float()
    assert torch.isfinite(got).all()
    assert (got - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_a_style_of_zero_gives_zero_without_nan() -> None:
    conv = ModulatedConv(4, 4, 3, True)
    torch.nn.init.normal_(conv.weight)
    for parameter in conv.modulation.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        assert conv(torch.randn(1, 4, 8, 8), torch.randn(1, 512)).abs().max() == 0


def test_one_step_adds_noise_bias_and_the_upsampled_colours() -> None:
    torch.manual_seed(3)
    step, rgb = StyleConv(8, 6, upsample=True), ToRGB(6)
    for parameter in (*step.parameters(), *rgb.parameters()):
        torch.nn.init.normal_(parameter)
    x, style, noise, below = (
        torch.randn(2, 8, 5, 5),
        torch.randn(2, 512),
        torch.randn(1, 1, 10, 10),
        torch.randn(2, 3, 5, 5),
    )
    with torch.no_grad():
        features = step(x, style, noise)
        colours = rgb(features, style, below)
        inner = modulate(
            step.modulated_conv.weight, *step.modulated_conv.modulation.parameters(), double(x), style, True
        )
        wanted = F.leaky_relu(inner * 2**0.5 + step.weight * noise + step.bias, 0.2)
        outer = modulate(rgb.modulated_conv.weight, *rgb.modulated_conv.modulation.parameters(), wanted, style, False)
    assert torch.allclose(features, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert torch.allclose(colours, outer + rgb.bias + double(below), atol=1e-4 * float(outer.abs().max()))


def test_restore_rounds_the_networks_output(gfpgan: GFPGAN, face: np.ndarray, image: torch.Tensor) -> None:
    full = gfpgan.restore(face)
    levels = ((image.numpy().clip(-1, 1) + 1) * 127.5).transpose(0, 2, 3, 1)
    assert full.dtype == np.uint8 and np.abs(full - levels).max() <= 0.5 + 1e-3
    assert np.array_equal(gfpgan.restore(face), full)  # the noise is the checkpoint's
    half = gfpgan.restore(face, strength=0.5)
    assert np.abs(half - (face.astype(float) + full) / 2).max() <= 0.5 + 1e-3
    assert np.array_equal(gfpgan.restore(face, strength=0), face)


def test_bad_input_is_named(gfpgan: GFPGAN) -> None:
    face = np.zeros((1, 512, 512, 3), np.uint8)
    with pytest.raises(InputError, match=r"\(1, 300, 300, 3\)"):
        gfpgan.restore(np.zeros((1, 300, 300, 3), np.uint8))
    with pytest.raises(InputError, match="strength 2 is not"):
        gfpgan.restore(face, strength=2)
    with pytest.raises(InputError, match="five points"):
        gfpgan.restore(face, landmarks=np.zeros((1, 68, 2)))
    with pytest.raises(InputError, match="512"):
        gfpgan.net(np.zeros((1, 3, 256, 256), np.float32))


def test_wrong_files_are_named(state, tmp_path: Path) -> None:
    torch.save({"params_ema": {"extra": torch.zeros(1)}}, tmp_path / "partial.pth")
    with pytest.raises(WeightsError, match=r"285 missing .* 1 unexpected \(extra\)"):
        GFPGAN.load(tmp_path / "partial.pth")
    partial = {key: value for key, value in state.items() if key != "stylegan_decoder.to_rgbs.3.bias"}
    with pytest.raises(WeightsError, match=r"1 missing \(stylegan_decoder.to_rgbs.3.bias\)"):
        build_module(lambda: GFPGANNet(GFPGAN_CHANNELS), partial, "GFPGANv1.4.pth")
    with pytest.raises(WeightsError, match="is missing"):
        GFPGAN.load(tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="float64"):
        GFPGAN.load(tmp_path / "partial.pth", dtype="float64")


def test_the_engine_is_registered() -> None:
    from models.runtime.registry import find_engine

    assert find_engine("gfpgan", ENGINES) is GFPGAN
