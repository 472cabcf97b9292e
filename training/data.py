"""Steps 2 and 3 of training: Whisper windows of the clips, and rendered pairs of faces that speak them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.features import WhisperFeatures
from models.speech.visemes import COLUMNS
from models.types import CROP_PX, WHISPER_WIDTH, WINDOW_STEPS, WINDOW_TOKENS
from training import presenter
from training.speech import FPS, TRAIN, Clip

DEFAULT_SHARE = 0.5  # share of pairs that show the default presenter
REST_SHARE = 0.3  # share of references with the mouth at rest, as in idle clips; the others talk
CLOSED_TALK_SHARE = 0.1  # share of references with closed lips in the middle of speech
FINE_SHARE = 0.3  # share of batches drawn with four samples per pixel; the others with one, four times as fast
SOFT_SHARE = 0.7  # share of pairs that are slightly blurred, like resampled and compressed video
JITTER_SCALE, JITTER_SHIFT_PX, JITTER_ROLL = 0.08, 13.0, 0.05  # limits, relative to the product's crop
# Offset of the product's crop from the presenter's own. Both follow the same rule, but the presenter uses landmarks of
# its geometry, and FaceMesh detects the chin and the nose slightly higher.
PRODUCT_SHIFT_PX, PRODUCT_ROLL = (-1.0, 6.0), 0.015
WIDE_WEIGHT = 2.0  # additional sampling weight of a wide-open mouth; a closed one has weight 1


@dataclass(frozen=True, slots=True, eq=False)
class SpeechBank:
    """All frames of all clips, concatenated.

    states: float16 `(steps, 5, 384)`, Whisper states padded as the product pads them. start: int64 `(frames,)`, the
    first of a frame's ten steps. mouth: float32 `(frames, 7)`. use: int64 `(frames,)`. clip: int64 `(frames,)`.
    closures: int64, frames inside p, b, m.
    """

    states: Tensor
    start: Tensor
    mouth: Tensor
    use: Tensor
    clip: Tensor
    closures: Tensor

    def windows(self, frames: Tensor) -> Tensor:
        """Feature windows of frames `(b,)`: float32 `(b, 50, 384)`, without position code."""
        steps = self.start[frames][:, None] + torch.arange(WINDOW_STEPS, device=self.start.device)
        return self.states[steps].flatten(1, 2).float()

    def frames_of(self, use: int) -> Tensor:
        return torch.nonzero(self.use == use)[:, 0]


def speech_bank(clips: Sequence[Clip], encoder: Path, device: str) -> SpeechBank:
    """Run the product's `windows_in_context` on each clip.

    Its windows overlap, so only the steps are stored: at 25 fps window k consists of the steps 2k to 2k + 9.
    """
    dtype = torch.float16 if device == "cuda" else torch.float32
    whisper = WhisperFeatures.load(encoder, device=device, dtype=dtype)
    states, start, clip_of, closures = [], [], [], []
    step, frame = 0, 0
    for index, clip in enumerate(clips):
        samples = torch.from_numpy(clip.samples).to(device).float() / 32768
        windows = whisper.windows_in_context(samples, fps=FPS).half()  # (n, 50, 384)
        count = len(clip.mouth)
        assert windows.shape == (count, WINDOW_TOKENS, WHISPER_WIDTH), (windows.shape, count)
        kept = torch.cat([_steps(windows)[:, :2].flatten(0, 1), _steps(windows)[-1, 2:]])  # (2 n + 8, 5, 384)
        states.append(kept)
        start.append(step + 2 * torch.arange(count))
        clip_of.append(torch.full((count,), index))
        closures += [frame + k for k in clip.closures]
        step, frame = step + len(kept), frame + count
    mouth = torch.cat([torch.from_numpy(clip.mouth) for clip in clips]).float()
    use = torch.cat([torch.full((len(clip.mouth),), clip.use) for clip in clips])
    on_device = (t.to(device) for t in (torch.cat(start), mouth, use, torch.cat(clip_of), torch.tensor(closures)))
    return SpeechBank(torch.cat(states), *on_device)


def _steps(windows: Tensor) -> Tensor:
    """`(n, 50, 384)` → `(n, 10, 5, 384)`."""
    return windows.unflatten(1, (WINDOW_STEPS, -1))


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Rendered faces, uint8 `(n, 3, 256, 256)`: `target` has the mouth of frame `frame[i]`; `reference` shows the same
    head in the same pose with another mouth, `reference_mouth` `(n, 7)`.
    """

    target: Tensor
    reference: Tensor
    frame: Tensor
    reference_mouth: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.target, self.reference, self.frame, self.reference_mouth


def jittered(transform: Tensor, generator: torch.Generator, amount: float = 1.0) -> Tensor:
    """The presenter's crop transforms `(b, 2, 3)`, moved to the product's crop, with random scale, roll and shift."""

    def draw(limit: float) -> Tensor:  # triangular: the sum of two uniforms
        both = torch.rand(2, len(transform), generator=generator).to(transform.device)
        return (both.sum(0) - 1) * limit * amount

    zoom, roll = 1 + draw(JITTER_SCALE), PRODUCT_ROLL + draw(JITTER_ROLL)
    cos, sin, middle = zoom * torch.cos(roll), zoom * torch.sin(roll), (CROP_PX - 1) / 2
    turn = torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
    shift = torch.stack([draw(JITTER_SHIFT_PX) + bias for bias in PRODUCT_SHIFT_PX], -1)[..., None]  # (b, 2, 1)
    linear = turn @ transform[:, :, :2]
    offset = turn @ (transform[:, :, 2:] - middle) + middle + shift
    return torch.cat([linear, offset], -1)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of float images `(b, 3, h, w)` by `sigma` (b,) px, 0 for none."""
    taps = torch.arange(-2, 3, device=images.device)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None].clamp(min=0.05)) ** 2)  # (b, 5)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]  # (3 b, 1, 5)
    flat = F.pad(images.flatten(0, 1)[None], (2, 2, 2, 2), mode="replicate")  # (1, 3 b, h + 4, w + 4)
    across = F.conv2d(flat, kernel[:, :, None, :], groups=len(kernel))
    return F.conv2d(across, kernel[:, :, :, None], groups=len(kernel))[0].unflatten(0, (-1, 3))


class PairRenderer:
    """Draws pairs of faces for frames of a SpeechBank. Deterministic for its seed."""

    def __init__(self, bank: SpeechBank, seed: int, device: str) -> None:
        self.bank, self.device = bank, device
        self.random = torch.Generator().manual_seed(seed)
        self.textures = presenter.textures(device)
        self.frames = bank.frames_of(TRAIN).cpu()
        mouth = bank.mouth.cpu()[self.frames]
        opening = mouth[:, 0] * (1 - mouth[:, 5])
        self.weight = 1 + WIDE_WEIGHT * (opening / 0.6).clamp(max=1) ** 2

    def batch(self, count: int) -> Pairs:
        """Draw `count` new pairs."""
        picked = torch.multinomial(self.weight, count, generator=self.random)
        frames = self.frames[picked].to(self.device)
        identity = self.identities(count, DEFAULT_SHARE)
        pose = presenter.random_poses(count, self.random, self.device, 1.0)
        crop = jittered(presenter.face_crop_transform(identity, pose, CROP_PX), self.random)
        other = self.reference_mouths(count)
        supersample = 2 if float(torch.rand(1, generator=self.random)) < FINE_SHARE else 1
        sigma = torch.rand(count, generator=self.random) * 0.5 + 0.25
        sigma = (sigma * (torch.rand(count, generator=self.random) < SOFT_SHARE)).to(self.device)
        images = [
            blurred(presenter.render(identity, pose, mouth, self.textures, CROP_PX, supersample, crop), sigma)
            for mouth in (self.bank.mouth[frames], other)
        ]
        target, reference = ((image * 255).round().clamp(0, 255).to(torch.uint8) for image in images)
        return Pairs(target, reference, frames, other)

    def identities(self, count: int, default_share: float) -> presenter.Identity:
        """Random identities, a share of them the default presenter."""
        people = presenter.random_identities(count, self.random, self.device)
        default = presenter.default_identity(count, self.device)
        is_default = (torch.rand(count, generator=self.random) < default_share).to(self.device)
        return presenter.Identity({k: torch.where(is_default, default[k], people[k]) for k in people})

    def reference_mouths(self, count: int) -> Tensor:
        """Mouths of the references: at rest, talking, or talking with closed lips."""
        picked = torch.randint(len(self.frames), (count,), generator=self.random)
        mouth = self.bank.mouth[self.frames[picked].to(self.device)].clone()
        chance = torch.rand(count, generator=self.random).to(self.device)
        mouth[chance < REST_SHARE] = presenter.rest_mouth(1, self.device)
        mouth[(chance >= REST_SHARE) & (chance < REST_SHARE + CLOSED_TALK_SHARE), 5] = 1.0
        return mouth


def render_pairs(renderer: PairRenderer, count: int, batch: int, say_every_s: float = 20.0) -> Pairs:
    """`count` pairs on the renderer's device. Prints progress every `say_every_s` seconds."""
    shape, device = (count, 3, CROP_PX, CROP_PX), renderer.device
    target, reference = (torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(2))
    frame, mouth = torch.empty(count, dtype=torch.int64, device=device), torch.empty(count, COLUMNS, device=device)
    started = said = time.monotonic()
    for first in range(0, count, batch):
        pairs = renderer.batch(min(batch, count - first))
        for whole, part in zip((target, reference, frame, mouth), pairs.fields(), strict=True):
            whole[first : first + len(pairs)] = part
        if time.monotonic() - said > say_every_s:
            said, done = time.monotonic(), first + len(pairs)
            print(f"  rendered {done:,} of {count:,} pairs, {2 * done / (said - started):,.0f} images/s", flush=True)
    return Pairs(target, reference, frame, mouth)


def to_signed(images: Tensor) -> Tensor:
    """uint8 images → float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def lower_half_black(images: Tensor) -> Tensor:
    """The masked input of the UNet: the lower half is -1."""
    masked = images.clone()
    masked[:, :, CROP_PX // 2 :] = -1
    return masked
