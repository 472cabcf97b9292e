"""Small mouth openings: the gain that the UNet learns, the training of a student, the mean of student and teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from models.musetalk import Generator, position_code
from models.types import WINDOW_TOKENS
from training.data import SpeechBank
from training.openings import (
    CLOSED,
    LARGE,
    PARTED,
    WIDE,
    Recipe,
    TeacherData,
    mix_weights,
    opening_gain,
    train,
    widen_small_openings,
)
from training.speech import TRAIN


def test_the_gain_applies_to_small_openings_only_and_is_continuous() -> None:
    moved = torch.linspace(0, 0.6, 601)
    gain = opening_gain(moved, 0.1)
    assert (gain[moved <= CLOSED] == 1).all() and (gain[moved >= WIDE] == 1).all()
    assert gain[(moved >= PARTED) & (moved <= LARGE)] == pytest.approx(1.1)
    assert (moved * gain).diff().min() > 0  # a mouth that was wider stays wider
    assert gain.diff().abs().max() < 0.005


def test_faces_move_further_from_rest_by_the_gain_of_their_lower_half() -> None:
    rests = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    faces = rests.clone()
    faces[0, :, 16:] += 0.03
    faces[1, :, 16:] -= 0.15
    faces[2, :, 16:] += 0.45
    faces[:, :, :16] += 0.2  # the upper half does not count
    apart = (widen_small_openings(faces, rests, 0.1) - rests) / (faces - rests)
    assert apart[0] == pytest.approx(1, abs=1e-4) and apart[2] == pytest.approx(1, abs=1e-4)
    assert apart[1] == pytest.approx(1.1, abs=1e-4)


SMALL_OPENING, LARGE_OPENING = 0.14, 0.46  # inside [PARTED, LARGE], where the gain is whole; beyond WIDE, where it is 1


class Mouth(nn.Module):
    """A UNet with two weights: how far each of two sounds moves all latents from rest.

    A sound is a one-hot in feature channels 0 and 1; rest is zero.
    """

    config = SimpleNamespace(cross_attention_dim=384)

    def __init__(self, small: float = SMALL_OPENING, large: float = LARGE_OPENING) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(8, 4, 1, bias=False).requires_grad_(False)  # Generator asks for its device
        self.opening = nn.Parameter(torch.tensor([small, large]))

    def forward(self, latents: Tensor, time_step: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple:
        sound = encoder_hidden_states[:, :, :2].mean(1) - POSITION  # (n, 2)
        return (latents[:, :4] + (sound @ self.opening)[:, None, None, None],)


POSITION = (
    position_code(WINDOW_TOKENS, 384)[..., :2].reshape(WINDOW_TOKENS, 2).mean(0)
)  # Generator adds this to a window


def data() -> TeacherData:
    """100 frames in which one of the two sounds is heard, and four references."""
    sound = torch.arange(100) % 2
    states = torch.zeros(1000, 5, 384, dtype=torch.float16)
    states[:, :, :2] = nn.functional.one_hot(sound, 2).repeat_interleave(10, 0)[:, None]
    zeros = torch.zeros(100, dtype=torch.int64)
    bank = SpeechBank(states, 10 * torch.arange(100), torch.zeros(100, 7), zeros + TRAIN, zeros, zeros[:0])
    latents = torch.randn(4, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    return TeacherData(Generator(Mouth().eval()), bank, latents, latents[:, :4], torch.zeros(50, 384))


def test_a_student_learns_the_gain_of_small_openings_and_its_teacher_does_not_change(tmp_path: Path) -> None:
    """The target is reached by one weight 30 % larger and the other unchanged, so training must find both."""
    prepared = data()
    recipe = dataclasses.replace(Recipe(), gain=0.3, steps=100, batch=8, rate=5e-3)
    student, numbers = train(prepared, recipe, tmp_path / "openings.ckpt")
    wanted = torch.tensor([1.3 * SMALL_OPENING, LARGE_OPENING])
    step = 0.3 * SMALL_OPENING
    torch.testing.assert_close(student.opening.detach(), wanted, atol=0.25 * step, rtol=0)
    assert numbers["rms_after"] < 0.5 * numbers["rms_before"]
    assert torch.equal(prepared.teacher.unet.opening.detach(), torch.tensor([SMALL_OPENING, LARGE_OPENING]))


def test_written_weights_are_a_mean_of_teacher_and_student() -> None:
    teacher, student = Mouth(0.1, 0.2), Mouth(0.5, 0.3)
    assert mix_weights(teacher, student, 0.4).opening.tolist() == pytest.approx([0.26, 0.24])
    assert teacher.opening.tolist() == pytest.approx([0.1, 0.2])
