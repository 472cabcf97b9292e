"""Decoders that compute only a window of the face: equal to the window of the whole face."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.cropped_decoder import CroppedDecoder, decoder_statistics, group_norms
from models.errors import ConfigError, InputError
from models.musetalk import Decoder
from models.stitch.jaw import DROPS
from models.types import CropWindow
from tests.support.random_weights import make_kl, make_taesd, make_tiny

WINDOWS = [
    CropWindow(),
    CropWindow((118, 256), (20, 236)),
    CropWindow((131, 198), (77, 190)),  # odd on every side
    CropWindow((0, 1), (255, 256)),
    CropWindow((40, 41), (0, 256)),
]


def lively(vae: nn.Module) -> nn.Module:
    """The VAE with norms that scale and shift, so that a wrong one shows."""
    torch.manual_seed(5)
    for norm in vae.modules():
        if isinstance(norm, nn.GroupNorm):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return vae


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def kl() -> AutoencoderKL:
    return lively(make_kl())


def latents_of(vae: nn.Module, count: int = 2, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(count, 4, 32, 32) * vae.config.scaling_factor


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_kl_decoder_with_its_own_statistics_gives_the_window_of_the_whole_face(
    kl: AutoencoderKL, window: CropWindow
) -> None:
    latents = latents_of(kl)
    whole = Decoder(kl)(latents)
    assert whole.std() > 10  # grey levels: not a flat picture
    made = CroppedDecoder(kl, window)(latents, decoder_statistics(kl, latents))
    assert made.shape == (2, *window.shape, 3)
    torch.testing.assert_close(made, window.cut(whole), atol=1e-2, rtol=0)


@pytest.mark.parametrize("make", [make_tiny, make_taesd])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_tiny_decoder_gives_the_window_of_the_whole_face(make: type[AutoencoderTiny], window: CropWindow) -> None:
    vae = make()
    latents = latents_of(vae)
    whole = Decoder(vae)(latents)
    torch.testing.assert_close(CroppedDecoder(vae, window)(latents), window.cut(whole), atol=1e-3, rtol=0)


def test_each_frame_has_statistics_of_its_own(kl: AutoencoderKL) -> None:
    latents = latents_of(kl, 3)
    statistics = decoder_statistics(kl, latents)
    assert statistics.shape == (3, len(group_norms(kl.decoder)), 2, 4) and statistics.dtype == torch.float32
    torch.testing.assert_close(statistics[1:2], decoder_statistics(kl, latents[1:2]), atol=1e-3, rtol=1e-4)
    decoder, window = CroppedDecoder(kl, CropWindow((100, 200))), CropWindow((100, 200))
    torch.testing.assert_close(
        decoder(latents, statistics)[2:], decoder(latents[2:], statistics[2:]), atol=1e-2, rtol=0
    )
    other = decoder(latents, decoder_statistics(kl, latents_of(kl, 3, seed=9)))
    assert (other - window.cut(Decoder(kl)(latents))).abs().max() > 0.1  # another frame's statistics are not exact


@pytest.fixture(scope="module")
def stable_diffusion() -> AutoencoderKL:
    """Without memory."""
    with torch.device("meta"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )


def test_the_norms_of_stable_diffusions_decoder_hold_1920_numbers(stable_diffusion: AutoencoderKL) -> None:
    norms = group_norms(stable_diffusion.decoder)
    assert len(set(norms)) == sum(isinstance(m, nn.GroupNorm) for m in stable_diffusion.decoder.modules())
    assert sum(2 * norm.num_groups for norm in norms) == 1920


def test_folded_upsampling_and_a_smaller_window_cost_less(stable_diffusion: AutoencoderKL) -> None:
    latents, statistics = torch.empty(1, 4, 32, 32, device="meta"), torch.empty(1, 30, 2, 32, device="meta")

    def gflop(decoder: nn.Module, *inputs: torch.Tensor) -> float:
        with FlopCounterMode(display=False) as counter:
            decoder(*inputs)
        return float(counter.get_total_flops() / 1e9)

    assert gflop(Decoder(stable_diffusion), latents) == pytest.approx(622, abs=1)
    decoder = CroppedDecoder(stable_diffusion)
    assert gflop(decoder, latents) < 530
    assert gflop(decoder.at(CropWindow((118, 256), (20, 236))), latents, statistics) < 330


def test_norms_without_statistics_measure_the_whole_face(kl: AutoencoderKL) -> None:
    latents = latents_of(kl, 3)
    torch.testing.assert_close(CroppedDecoder(kl)(latents), Decoder(kl)(latents), atol=1e-2, rtol=0)


def test_the_window_of_an_avatar_holds_its_masks_and_what_a_paste_reads_around_them() -> None:
    masks = np.zeros((3, 256, 256), np.uint8)
    masks[0, 130, 60], masks[2, 200, 180] = 1, 255
    assert CropWindow.around(masks) == CropWindow((126, 229), (56, 185))  # below, an open jaw
    assert DROPS.max() == 24
    masks[1, 255, 0] = 9
    assert CropWindow.around(masks) == CropWindow((126, 256), (0, 185))
    assert CropWindow.around(np.zeros((1, 256, 256), np.uint8)) == CropWindow()


@pytest.mark.parametrize("rows", [(0, 257), (-1, 5), (9, 9), (10, 4)])
def test_windows_lie_in_the_face_crop(rows: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="0 to 256"):
        CropWindow(rows)


def test_other_autoencoders_are_refused() -> None:
    with pytest.raises(ConfigError, match="Linear cannot be cropped"):
        CroppedDecoder(nn.Linear(1, 1), CropWindow())
