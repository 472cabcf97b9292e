"""Trains the UNet to open the mouth slightly wider at small openings, as at s, t, n or /iː/, and only there.

    python -m training.openings OUT            # OUT/musetalk, from models/embedded; some minutes on two CPU cores
    python -m training.openings OUT --tiny     # a few steps, as a test of the code

A small opening looks closed, above all in a small or compressed picture. The UNet is its own teacher: the student's
target is the teacher's face, moved further away from the teacher's face at rest by a gain. The gain depends on the size
of the opening: it is 1 for closed lips (p, b, m, silence) and for large openings. For new mouth shapes see
training/train.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.features import WhisperFeatures
from models.musetalk import Generator, load_unet, load_vae
from models.speech.feature_windows import rest_window
from models.types import LATENT_PX, Float16, Float32
from training import speech
from training.data import PairRenderer, SpeechBank, render_pairs, speech_bank
from training.loop import Fit
from training.losses import latent_weight
from training.stages import Device, encode_pairs
from training.train import save_unet

EMBEDDED = Path(__file__).parent.parent / "models" / "embedded"
# Root mean square difference between a face's lower latents and those of the same face at rest: 0.05 for lips closed in
# speech, 0.20 for the smallest opening that FaceMesh detects, 0.46 wide open.
CLOSED, PARTED, LARGE, WIDE = 0.06, 0.10, 0.18, 0.28
SPEECH_SHARE = 0.9  # share of samples with speech; the others have the mouth at rest


@dataclass(frozen=True, slots=True)
class Recipe:
    """gain: by how much small openings grow. share: of the student's weights in the result; the rest are the teacher's,
    which reduces the gain in proportion, and what the student has forgotten by more (Wortsman et al. 2022, "Robust
    fine-tuning of zero-shot models"). The defaults made the shipped weights.
    """

    gain: float = 0.1
    clips: int = 64
    references: int = 240
    steps: int = 300
    batch: int = 8
    rate: float = 2e-5
    share: float = 0.4
    seed: int = 11


TINY = Recipe(clips=4, references=4, steps=3, batch=2)


def opening_gain(moved: Tensor, more: float) -> Tensor:
    """The gain for faces at a distance `moved` from rest, `(n,)`: 1 if closed or wide, 1 + `more` in between."""
    return 1 + more * _eased((moved - CLOSED) / (PARTED - CLOSED)) * _eased((WIDE - moved) / (WIDE - LARGE))


def widen_small_openings(faces: Tensor, rests: Tensor, more: float) -> Tensor:
    """Face latents `(n, 4, 32, 32)`, moved further from those at rest where the opening is small."""
    apart = faces - rests
    moved = apart[:, :, LATENT_PX // 2 :].pow(2).mean((1, 2, 3)).sqrt()  # (n,)
    return rests + opening_gain(moved, more)[:, None, None, None] * apart


def _eased(t: Tensor) -> Tensor:
    t = t.clamp(0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True, slots=True, eq=False)
class TeacherData:
    """The training data: the teacher, speech, and references.

    latents: inputs `(r, 8, 32, 32)` of the references. rests: the teacher's faces at rest `(r, 4, 32, 32)`. rest: the
    feature window of rest `(50, 384)`.
    """

    teacher: Generator
    bank: SpeechBank
    latents: Tensor
    rests: Tensor
    rest: Tensor

    @classmethod
    def prepare(cls, recipe: Recipe, folder: Path, embedded: Path) -> TeacherData:
        """Make speech, references, and the teacher's face at rest for each. Speech is cached in `folder`."""
        path = folder / "speech.npz"
        if not path.exists():
            speech.save(speech.build(recipe.clips, recipe.seed), path)
        whisper = WhisperFeatures.load(embedded / "whisper")

        def windows(samples: Float32) -> Float16:
            return whisper.windows_in_context(samples, speech.FPS).numpy().astype(np.float16)  # type: ignore[no-any-return]

        bank = speech_bank(speech.load(path), embedded / "whisper", "cpu")
        rest = torch.from_numpy(rest_window(windows)).float()
        pairs = render_pairs(PairRenderer(bank, recipe.seed + 1, "cpu"), recipe.references, min(8, recipe.references))
        coded = encode_pairs(pairs, load_vae(embedded / "vae"), Device("cpu"), batch=16)
        latents = torch.cat([coded.masked, coded.reference], 1).float()
        teacher = Generator(load_unet(embedded / "musetalk/musetalk.json", embedded / "musetalk/unet.safetensors"))
        with torch.inference_mode():
            rests = torch.cat([teacher(some, rest.expand(len(some), -1, -1)) for some in latents.split(8)])
        return cls(teacher.eval(), bank, latents, rests, rest)

    def draw(self, batch: int, more: float, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random input latents `(b, 8, 32, 32)`, windows `(b, 50, 384)` and target faces `(b, 4, 32, 32)`."""
        which = torch.randint(len(self.latents), (batch,), generator=random)
        frames = self.bank.frames_of(speech.TRAIN)
        heard = self.bank.windows(frames[torch.randint(len(frames), (batch,), generator=random)])
        heard[torch.rand(batch, generator=random) > SPEECH_SHARE] = self.rest
        with torch.no_grad():
            faces = self.teacher(self.latents[which], heard)
            return self.latents[which], heard, widen_small_openings(faces, self.rests[which], more)


def train(data: TeacherData, recipe: Recipe, path: Path) -> tuple[nn.Module, dict[str, float]]:
    """Train a student. Returns it, and its RMS distance from the target on other draws, before and after."""
    student: Any = copy.deepcopy(data.teacher.unet).float().requires_grad_(True)
    fit = Fit("openings", student, recipe.steps, recipe.rate, path, averaging=0.98)
    weight, random = latent_weight("cpu"), torch.Generator().manual_seed(recipe.seed + 2)
    generator = Generator(student)

    def loss_of(step: int) -> Tensor:
        latents, heard, wanted = data.draw(recipe.batch, recipe.gain, random)
        return ((generator(latents, heard) - wanted).abs() * weight).mean()

    before = rms_error(data, data.teacher, recipe)
    trained = fit.run(loss_of, math.inf)
    return trained, {"rms_before": before, "rms_after": rms_error(data, Generator(trained), recipe)}


def mix_weights(teacher: nn.Module, student: nn.Module, share: float) -> nn.Module:
    """The weighted mean of both networks: `share` of the student's weights, the rest of the teacher's."""
    both = copy.deepcopy(teacher).float()
    with torch.no_grad():
        for weight, learnt in zip(both.parameters(), student.parameters(), strict=True):
            weight.lerp_(learnt, share)
    return both


def rms_error(data: TeacherData, net: Generator, recipe: Recipe, draws: int = 8) -> float:
    """RMS difference between a network's faces and the targets, over the same draws for every network."""
    random, errors = torch.Generator().manual_seed(recipe.seed + 3), []
    for _ in range(draws):
        latents, heard, wanted = data.draw(recipe.batch, recipe.gain, random)
        with torch.no_grad():
            errors.append((net(latents, heard) - wanted).pow(2).mean().item())
    return math.sqrt(float(np.mean(errors)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a few steps, as a test of the code")
    parser.add_argument("--gain", type=float, default=Recipe().gain, help="by how much small openings grow")
    parser.add_argument("--embedded", type=Path, default=EMBEDDED, help="folder of the networks to start from")
    arguments = parser.parse_args()
    recipe = TINY if arguments.tiny else Recipe(gain=arguments.gain)
    arguments.out.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    torch.manual_seed(recipe.seed)
    data = TeacherData.prepare(recipe, arguments.out, arguments.embedded)
    print(f"{len(data.latents)} references, {len(data.bank.mouth):,} frames, {time.monotonic() - started_s:.0f} s")
    trained, numbers = train(data, recipe, arguments.out / "openings.ckpt")
    save_unet(mix_weights(data.teacher.unet, trained, recipe.share), arguments.out / "musetalk")
    log = {"recipe": asdict(recipe), **numbers, "seconds": round(time.monotonic() - started_s, 1)}
    (arguments.out / "openings.json").write_text(json.dumps(log, indent=2) + "\n")
    print(json.dumps(log))


if __name__ == "__main__":
    main()
