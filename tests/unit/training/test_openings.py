"""Small openings: the gain that the UNet is to learn, a pupil that learns it, and what is written of the two."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from models.musetalk import Generator
from training.data import SpeechBank
from training.openings import CLOSED, LARGE, PARTED, WIDE, Lesson, Recipe, gain_of, mixed, parted, train
from training.speech import TRAIN


def test_closed_and_wide_mouths_stay_and_small_openings_grow_by_the_gain_without_a_step() -> None:
    moved = torch.linspace(0, 0.6, 601)
    gain = gain_of(moved, 0.1)
    assert (gain[moved <= CLOSED] == 1).all() and (gain[moved >= WIDE] == 1).all()
    assert gain[(moved >= PARTED) & (moved <= LARGE)] == pytest.approx(1.1)
    assert (moved * gain).diff().min() > 0  # a mouth that was wider stays wider
    assert gain.diff().abs().max() < 0.005


def test_faces_go_on_from_rest_by_how_far_their_lower_half_went() -> None:
    rests = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    faces = rests.clone()
    faces[0, :, 16:] += 0.03
    faces[1, :, 16:] -= 0.15
    faces[2, :, 16:] += 0.45
    faces[:, :, :16] += 0.2  # what lies above the mouth does not count
    apart = (parted(faces, rests, 0.1) - rests) / (faces - rests)
    assert apart[0] == pytest.approx(1, abs=1e-4) and apart[2] == pytest.approx(1, abs=1e-4)
    assert apart[1] == pytest.approx(1.1, abs=1e-4)


class Mouth(nn.Module):
    """A UNet's face with few weights: latents in, and what is heard opens all of them alike."""

    config = SimpleNamespace(cross_attention_dim=384)

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(8, 4, 1, bias=False)
        self.heard = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1, bias=False))

    def forward(self, latents: Tensor, time_step: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple:
        loud = encoder_hidden_states[:, :, ::2].mean((1, 2))[:, None]
        return (self.conv_in(latents) + self.heard(loud)[..., None, None],)


def lesson() -> Lesson:
    """Frames that are heard at 100 levels, and four references."""
    torch.manual_seed(0)
    levels = torch.linspace(0, 1, 100).repeat_interleave(10)
    zeros = torch.zeros(100, dtype=torch.int64)
    states = levels.half()[:, None, None].expand(-1, 5, 384)
    start, use = 10 * torch.arange(100), zeros + TRAIN
    bank = SpeechBank(states, start, torch.zeros(100, 7), use, zeros, zeros[:0])
    teacher, latents, rest = Generator(Mouth().eval()), torch.randn(4, 8, 32, 32), torch.zeros(50, 384)
    with torch.no_grad():
        teacher.unet.heard[2].weight *= 0.4 / teacher.unet.heard(torch.ones(1, 1)).abs()
        rests = teacher(latents, rest.expand(4, -1, -1))
    return Lesson(teacher, bank, latents, rests, rest)


def test_a_pupil_comes_nearer_to_what_it_shall_make_and_its_teacher_stays(tmp_path: Path) -> None:
    taught = lesson()
    before = {name: weight.clone() for name, weight in taught.teacher.unet.state_dict().items()}
    recipe = dataclasses.replace(Recipe(), gain=0.3, steps=150, batch=16, rate=3e-3)
    pupil, numbers = train(taught, recipe, tmp_path / "openings.ckpt")
    assert numbers["rms_after"] < 0.8 * numbers["rms_before"]
    assert all(torch.equal(weight, before[name]) for name, weight in taught.teacher.unet.state_dict().items())
    assert any(not torch.equal(weight, before[name]) for name, weight in pupil.state_dict().items())


def test_what_is_written_lies_between_teacher_and_pupil() -> None:
    teacher, pupil = Mouth(), Mouth()
    both = mixed(teacher, pupil, 0.4)
    for name, weight in both.state_dict().items():
        expected = 0.6 * teacher.state_dict()[name] + 0.4 * pupil.state_dict()[name]
        torch.testing.assert_close(weight, expected)
