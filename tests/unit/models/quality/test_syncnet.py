"""models.quality.syncnet: LatentSync's SyncNet, its mel frames, and the offset of a clip with known lag."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.errors import InputError, WeightsError
from models.quality.syncnet import SyncNet, frames_at_25, log_mel
from models.quality.syncnet_net import AUDIO, VISUAL, EncoderLayout, StableSyncNet, layout_of

State = dict[str, torch.Tensor]
NARROW_AUDIO = EncoderLayout(
    1, AUDIO.strides, (32, 32, 64, 64, 64, 32, 64), (False, False, False, True, True, False, False)
)
NARROW_VISUAL = EncoderLayout(
    48, VISUAL.strides, (32, 32, 64, 32, 32, 32, 64, 64), (*(False,) * 4, True, True, False, False)
)


@pytest.fixture(scope="module")
def state() -> State:
    """Narrow random weights with LatentSync's keys, and attention as in syncnet_16_pixel_attn.yaml."""
    torch.manual_seed(0)
    state = StableSyncNet(NARROW_VISUAL, NARROW_AUDIO).state_dict()
    for value in state.values():
        if value.ndim == 1:
            value.add_(torch.randn_like(value) * 0.2)
    return state


@pytest.fixture(scope="module")
def path(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as LatentSync's train_syncnet.py saves it, with losses and steps."""
    path = tmp_path_factory.mktemp("weights") / "latentsync_syncnet.pt"
    losses = {"train_step_list": [1, 2], "train_loss_list": [0.7, 0.6], "val_step_list": [], "val_loss_list": []}
    torch.save({"state_dict": state, "global_step": 2, **losses}, path)
    return path


# The network: a second implementation from the description


def convolved(state: State, name: str, x: torch.Tensor, stride: tuple[int, int] = (1, 1), pad: int = 0) -> torch.Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, pad)


def grouped(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Group norm by hand: 32 groups, 1e-6."""
    parts = x.reshape(len(x), 32, -1)
    parts = (parts - parts.mean(2, keepdim=True)) / torch.sqrt(parts.var(2, unbiased=False, keepdim=True) + 1e-6)
    return parts.reshape(x.shape) * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def layered(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def residual(state: State, name: str, x: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    y = grouped(state, f"{name}.norm1", x)
    y = convolved(state, f"{name}.conv1", y * y.sigmoid(), pad=1)
    y = grouped(state, f"{name}.norm2", y)
    y = convolved(state, f"{name}.conv2", y * y.sigmoid(), pad=1)
    y = y + (convolved(state, f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in state else x)
    if stride == (1, 1):
        return y
    # One row or column of zeros at the end of a strided axis, one at both ends of another.
    above, left = (1 if step == 1 else 0 for step in stride)
    padded = torch.zeros(len(y), y.shape[1], y.shape[2] + above + 1, y.shape[3] + left + 1, dtype=y.dtype)
    padded[:, :, above : above + y.shape[2], left : left + y.shape[3]] = y
    return convolved(state, f"{name}.downsample_conv", padded, stride)


def attended(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    n, channels, height, width = x.shape
    y = convolved(state, f"{name}.conv_in", grouped(state, f"{name}.norm1", x)).reshape(n, channels, -1).mT
    z = layered(state, f"{name}.norm2", y)
    q, k, v = (linear(state, f"{name}.attn.to_{part}", z).reshape(n, -1, 8, channels // 8) for part in "qkv")
    weights = torch.einsum("nihc,njhc->nhij", q, k) / (channels // 8) ** 0.5
    mixed = torch.einsum("nhij,njhc->nihc", weights.softmax(-1), v).reshape(n, -1, channels)
    y = linear(state, f"{name}.attn.to_out.0", mixed) + y
    value, gate = linear(state, f"{name}.ff.net.0.proj", layered(state, f"{name}.norm3", y)).chunk(2, -1)
    gate = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    y = linear(state, f"{name}.ff.net.2", value * gate) + y
    return convolved(state, f"{name}.conv_out", y.mT.reshape(n, channels, height, width)) + x


def encoded(state: State, encoder: str, x: torch.Tensor, strides: tuple[tuple[int, int], ...]) -> torch.Tensor:
    x = convolved(state, f"{encoder}.conv_in", x, pad=1)
    steps: Iterator[tuple[int, int]] = iter(strides)
    for block in range(len({key.split(".")[2] for key in state if key.startswith(f"{encoder}.down_blocks.")})):
        name = f"{encoder}.down_blocks.{block}"
        x = residual(state, name, x, next(steps)) if f"{name}.conv1.weight" in state else attended(state, name, x)
    x = grouped(state, f"{encoder}.norm_out", x).clamp(min=0).flatten(1)
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("encoder", "shape"), [("visual_encoder", (48, 128, 256)), ("audio_encoder", (1, 80, 52))])
def test_vectors_agree_with_a_second_implementation(
    state: State, path: Path, encoder: str, shape: tuple[int, int, int]
) -> None:
    strides = VISUAL.strides if encoder.startswith("visual") else AUDIO.strides
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, *shape)))
    wanted = encoded({key: value.double() for key, value in state.items()}, encoder, x, strides)
    with torch.no_grad():
        exact = getattr(SyncNet.load(path, dtype=torch.float64).net, encoder)(x)
        single = getattr(SyncNet.load(path).net, encoder)(x.float())
    assert exact.shape == (2, 64) and float((exact - wanted).abs().max()) < 1e-9
    # In the narrow network the last norm has two numbers per group, so single precision is worse than in full width.
    assert float((single - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
    assert float((wanted[0] - wanted[1]).abs().max()) > 0.01  # and they depend on the input


# Keys and files


def real(attention: bool) -> StableSyncNet:
    """The network in full size on the meta device."""
    visual = EncoderLayout(48, VISUAL.strides, VISUAL.channels, tuple(attention and k in (4, 5) for k in range(8)))
    audio = EncoderLayout(1, AUDIO.strides, AUDIO.channels, tuple(attention and k in (3, 4) for k in range(7)))
    with torch.device("meta"):
        return StableSyncNet(visual, audio)


def test_the_full_network_has_the_released_names_and_shapes() -> None:
    """Its size is tested in test_full_size."""
    state = real(attention=False).state_dict()
    assert len(state) == 178
    assert state["visual_encoder.conv_in.weight"].shape == (64, 48, 3, 3)
    assert state["visual_encoder.down_blocks.0.downsample_conv.weight"].shape == (64, 64, 3, 3)
    assert state["audio_encoder.down_blocks.6.conv_shortcut.weight"].shape == (2048, 1024, 1, 1)
    assert "audio_encoder.down_blocks.3.downsample_conv.weight" not in state  # its stride is 1
    assert "visual_encoder.down_blocks.3.conv_shortcut.weight" not in state  # 256 → 256
    assert not any(".attn." in key for key in state)


def test_attention_follows_the_fourth_and_fifth_blocks() -> None:
    state = real(attention=True).state_dict()
    blocks = sorted({match[0] for key in state if (match := re.match(r"\w+_encoder\.down_blocks\.\d+\.attn", key))})
    assert blocks == [f"audio_encoder.down_blocks.{k}.attn" for k in (4, 6)] + [
        f"visual_encoder.down_blocks.{k}.attn" for k in (5, 7)
    ]
    leaves = {
        key.removeprefix("visual_encoder.down_blocks.5.") for key in state if "visual_encoder.down_blocks.5." in key
    }
    assert leaves == {
        f"{name}.{kind}"
        for kind in ("weight", "bias")
        for name in (
            *("norm1", "norm2", "norm3", "conv_in", "conv_out", "ff.net.0.proj", "ff.net.2"),
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        )
    }


def test_inputs_become_one_vector_of_2048() -> None:
    net = real(attention=False)
    assert net.visual_encoder(torch.empty(3, 48, 128, 256, device="meta")).shape == (3, 2048)
    assert net.audio_encoder(torch.empty(3, 1, 80, 52, device="meta")).shape == (3, 2048)


def test_widths_and_attention_are_read_from_the_file(state: State) -> None:
    assert layout_of(state, "audio_encoder", AUDIO) == NARROW_AUDIO
    assert layout_of(state, "visual_encoder", VISUAL) == NARROW_VISUAL
    assert layout_of(real(attention=False).state_dict(), "visual_encoder", VISUAL) == VISUAL


def test_a_partial_file_names_what_is_missing(state: State, tmp_path: Path) -> None:
    torch.save({key: value for key, value in state.items() if "norm_out" not in key}, tmp_path / "part.pt")
    with pytest.raises(WeightsError, match=r"4 missing \(visual_encoder\.norm_out\.weight"):
        SyncNet.load(tmp_path / "part.pt")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"178 missing .* 1 unexpected \(conv\.weight\)"):
        SyncNet.load(tmp_path / "other.pt")


# Mel frames


def test_mel_frames_of_a_tone_are_where_the_tone_is() -> None:
    """A sine of amplitude 1 is 200 high under a Hann window of 800 samples; pre-emphasis gives |1 - 0.97 e^-iw|."""
    frequency, amplitude = 1000.0, 0.25
    samples = (amplitude * np.sin(2 * np.pi * frequency * np.arange(16000) / 16000)).astype(np.float32)
    mel = log_mel(samples)
    assert mel.shape == (80, 81) and mel.dtype == np.float32
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(401, 80, 55.0, 7600.0, 16000, norm="slaney", mel_scale="slaney")
    line = np.zeros(401)
    gain = abs(1 - 0.97 * np.exp(-2j * np.pi * frequency / 16000))
    line[50], line[49], line[51] = 200, 100, 100  # the tone is bin 50; a Hann window spreads half into its neighbours
    wanted = 8 * (20 * np.log10(np.maximum(amplitude * gain * line @ bank, 1e-5)) - 20 + 100) / 100 - 4
    loud = wanted > -3
    assert 1 <= loud.sum() <= 6 and np.abs(mel[loud, 40] - wanted[loud]).max() < 0.01


def test_silence_is_the_minimum_and_loud_sound_is_clipped() -> None:
    assert np.all(log_mel(np.zeros(3200, np.float32)) == -4)
    noise = np.random.default_rng(0).standard_normal(3200).astype(np.float32) * 1000
    assert log_mel(noise).max() == 4


def test_there_are_80_mel_frames_per_second() -> None:
    click = np.zeros(16000, np.float32)
    click[8000] = 1
    mel = log_mel(click)
    assert mel.shape[1] == 81 and abs(int(mel.sum(0).argmax()) - 40) <= 1


# A clip


class Brightness(nn.Module):
    """Fake visual encoder: the brightness of 16 lower faces over time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (48, 128, 256) and float(x.min()) >= -1 and float(x.max()) <= 1
        return F.normalize((level := x.unflatten(1, (16, 3)).mean((2, 3, 4))) - level.mean(1, keepdim=True), dim=1)


class Loudness(nn.Module):
    """Fake audio encoder: the loudness over time in the 16 video frames of 52 mel frames."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (1, 80, 52)
        level = x.mean((1, 2))  # (n, 52)
        level = torch.stack([level[:, int(3.2 * k) : int(3.2 * k) + 4].mean(1) for k in range(16)], 1)
        return F.normalize(level - level.mean(1, keepdim=True), dim=1)


@pytest.fixture(scope="module")
def toy() -> SyncNet:
    return SyncNet(SimpleNamespace(visual_encoder=Brightness(), audio_encoder=Loudness()), dtype=torch.float32)


def clip(
    late_frames: float, seconds: float = 4.0, fps: int = 25
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Faces whose lower half brightens with the sound, and noise of that loudness, late_frames / 25 s later."""
    rng = np.random.default_rng(3)
    knots = rng.uniform(0.05, 1, int(seconds * 8) + 9)

    def loudness(time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.interp(time_s, np.arange(len(knots)) / 8 - 0.5, knots)

    faces = np.zeros((int(seconds * fps), 256, 256, 3), np.uint8)
    levels = loudness((np.arange(len(faces)) + 0.5) / fps)
    faces[:, 128:] = np.rint(200 * levels).astype(np.uint8)[:, None, None, None]
    faces[:, :128] = rng.integers(0, 255, (len(faces), 1, 1, 3))  # the upper half is not used
    time_s = np.arange(int(seconds * 16000)) / 16000
    samples = rng.standard_normal(len(time_s)) * 0.1 * loudness(time_s - late_frames / 25) ** 2
    return faces, samples.astype(np.float32)


@pytest.mark.parametrize("late", [-7, -2, 0, 3, 11])
def test_the_offset_is_the_delay_of_the_sound(toy: SyncNet, late: int) -> None:
    score = toy.offset_and_confidence(*clip(late))
    assert abs(score.offset_frames - late) <= 1 and score.best_similarity > 0.85
    assert 0.3 < score.confidence <= 2


def test_similarity_without_shift_falls_with_the_offset(toy: SyncNet) -> None:
    near, far = toy.offset_and_confidence(*clip(0)), toy.offset_and_confidence(*clip(9))
    assert near.similarity > 0.85 and far.similarity < 0.4 < far.best_similarity
    assert near.similarity <= near.best_similarity


def test_other_frame_rates_are_resampled_to_25(toy: SyncNet) -> None:
    for fps in (24, 30):
        score = toy.offset_and_confidence(*clip(4, fps=fps), fps=fps)
        assert abs(score.offset_frames - 4) <= 1 and score.best_similarity > 0.8
    assert frames_at_25(30, 30).tolist() == [
        0,
        1,
        3,
        4,
        5,
        6,
        7,
        9,
        10,
        11,
        12,
        13,
        15,
        16,
        17,
        18,
        19,
        21,
        22,
        23,
        24,
        25,
        27,
        28,
        29,
    ]
    assert frames_at_25(50, 25).tolist() == list(range(50)) and len(frames_at_25(48, 24)) == 50


def test_the_speech_of_another_clip_gives_low_confidence(toy: SyncNet) -> None:
    faces, samples = clip(0)
    score = toy.offset_and_confidence(faces[::-1].copy(), samples)
    assert score.best_similarity < 0.6 and score.confidence < toy.offset_and_confidence(faces, samples).confidence


def test_a_short_clip_is_shifted_over_a_smaller_range(toy: SyncNet) -> None:
    score = toy.offset_and_confidence(*clip(2, seconds=1.2))
    assert score.offset_frames == 2 and score.windows >= 1
    with pytest.raises(InputError, match="too short"):
        toy.offset_and_confidence(*clip(0, seconds=0.66))


def test_scores_are_deterministic(path: Path) -> None:
    net = SyncNet.load(path)
    faces, samples = clip(0, seconds=1.2)
    first, again = (net.offset_and_confidence(faces, samples, step=8) for _ in range(2))
    assert first == again and -1 <= first.similarity <= first.best_similarity <= 1


@pytest.mark.parametrize("faces", [np.zeros((50, 256, 256), np.uint8), np.zeros((50, 256, 256, 3), np.float32)])
def test_wrong_faces_are_refused(toy: SyncNet, faces: npt.NDArray[np.generic]) -> None:
    with pytest.raises(InputError, match="cannot be compared with speech"):
        toy.offset_and_confidence(faces, np.zeros(32000, np.float32))
