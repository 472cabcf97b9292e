"""Clean training pictures of the restorer: faces of the presenter and a few photographs."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from models.speech.visemes import REST, VISEMES
from models.types import RESTORED_PX, UInt8
from training import presenter

SOUND_FRAMES = 3  # a sound lasts about 0.12 s


def random_mouths(n: int, generator: torch.Generator) -> Tensor:
    """Mouths `(n, 7)`: a fifth at rest, the others between two visemes, some of them closing or tucked."""
    shapes = torch.tensor(list(VISEMES.values()))  # (sounds, 5)
    first, second = (torch.randint(len(shapes), (n,), generator=generator) for _ in range(2))
    mix, closing, event, rest = (torch.rand(n, 1, generator=generator) for _ in range(4))
    close = torch.where(event < 0.15, closing, torch.zeros(n, 1))
    tuck = torch.where(event > 0.9, closing, torch.zeros(n, 1))
    mouths = torch.cat([torch.lerp(shapes[first], shapes[second], mix), close, tuck], 1)
    return torch.where(rest < 0.2, torch.tensor(REST), mouths)


class Faces:
    """Draws clean face crops: half of the shipped presenter, half of random identities."""

    def __init__(self, device: str, seed: int, default_share: float = 0.5) -> None:
        self.device, self.default_share = device, default_share
        self.generator = torch.Generator().manual_seed(seed)
        self.textures = presenter.textures(device)
        self.chunk = 32 if device.startswith("cuda") else 2  # faces drawn at once

    def draw(self, n: int, supersample: int = 2) -> Tensor:
        """Different people in different poses: float RGB `(n, 3, 512, 512)` in 0..1."""
        defaults = round(n * self.default_share)
        own = presenter.default_identity(defaults, self.device)
        others = presenter.random_identities(n - defaults, self.generator, self.device)
        identity = presenter.Identity({name: torch.cat([own[name], others[name]]) for name in own})
        pose = presenter.random_poses(n, self.generator, self.device)
        mouths = random_mouths(n, self.generator).to(self.device)
        crop = self._jitter(presenter.face_crop_transform(identity, pose, RESTORED_PX))
        return self._render(identity, pose, mouths, crop, supersample)

    def clip(self, frames: int, supersample: int = 2) -> Tensor:
        """A clip of the shipped presenter, moving and speaking for `frames` / 25 s: `(frames, 3, 512, 512)`."""
        identity, pose = presenter.default_identity(frames, self.device), presenter.rest_pose(frames, self.device)
        at_s = torch.arange(frames) / 25
        for name, amount, rate_hz in (("yaw", 0.05, 0.4), ("roll", 0.03, 0.3), ("pitch", 0.03, 0.5)):
            phase = torch.rand(1, generator=self.generator)
            pose[name] = (amount * torch.sin(2 * math.pi * (rate_hz * at_s + phase))).to(self.device)
        keys = random_mouths(frames // SOUND_FRAMES + 2, self.generator)
        place = torch.arange(frames) / SOUND_FRAMES
        mouths = torch.lerp(keys[place.long()], keys[place.long() + 1], (place % 1)[:, None]).to(self.device)
        crop = presenter.face_crop_transform(identity, pose, RESTORED_PX)
        return self._render(identity, pose, mouths, crop, supersample)

    def _render(
        self, identity: presenter.Identity, pose: presenter.Pose, mouths: Tensor, crop: Tensor, supersample: int
    ) -> Tensor:
        """Draws a few faces at a time, because each takes about 250 MB while it is drawn."""
        drawn: list[Tensor] = []
        for start in range(0, len(mouths), self.chunk):
            part = slice(start, start + self.chunk)
            who = presenter.Identity({name: value[part] for name, value in identity.items()})
            how = presenter.Pose({name: value[part] for name, value in pose.items()})
            drawn.append(presenter.render(who, how, mouths[part], self.textures, RESTORED_PX, supersample, crop[part]))
        return torch.cat(drawn)

    def _jitter(self, crop: Tensor) -> Tensor:
        """Random scale and shift of a few percent and pixels, like the errors of detected boxes."""
        n, middle = len(crop), (RESTORED_PX - 1) / 2
        zoom = 1 + 0.03 * torch.randn(n, 1, 1, generator=self.generator).clamp(-2, 2).to(crop)
        shift = 6.0 * torch.randn(n, 2, generator=self.generator).clamp(-2, 2).to(crop)
        jittered = crop * zoom
        jittered[:, :, 2] += middle * (1 - zoom[:, :, 0]) + shift
        return jittered


def portraits() -> Tensor:
    """Public-domain photographs from installed packages, `(m, 3, 640, 640)` uint8; empty if there are none."""
    found: list[UInt8] = []
    try:
        from skimage import data

        found.append(data.astronaut())
    except ImportError:
        pass
    try:
        from matplotlib.cbook import get_sample_data

        path = get_sample_data("grace_hopper.jpg", asfileobj=False)
        found.append(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)[:512, :512])
    except (ImportError, FileNotFoundError):
        pass
    side = RESTORED_PX * 5 // 4  # room for random crops
    resized = [cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC) for picture in found]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) if resized else torch.zeros(0, 3, side, side)
