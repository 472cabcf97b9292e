"""Clean pictures that the restorer learns from: faces of the presenter and a few photographs. Knows nothing of nets."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from models.types import RESTORED_PX, UInt8
from training import presenter
from training.visemes import REST, VISEMES


def random_mouths(n: int, generator: torch.Generator) -> Tensor:
    """`(n, 7)`: a fifth at rest, the others between two sounds' shapes, some of them closing or tucked."""
    shapes = torch.tensor(list(VISEMES.values()))  # (sounds, 5)
    first, second = (torch.randint(len(shapes), (n,), generator=generator) for _ in range(2))
    mix, closing, event, rest = (torch.rand(n, 1, generator=generator) for _ in range(4))
    close = torch.where(event < 0.15, closing, torch.zeros(n, 1))
    tuck = torch.where(event > 0.9, closing, torch.zeros(n, 1))
    mouths = torch.cat([torch.lerp(shapes[first], shapes[second], mix), close, tuck], 1)
    return torch.where(rest < 0.2, torch.tensor(REST), mouths)


class Faces:
    """Draws clean face crops: half the shipped presenter, half people who do not exist."""

    def __init__(self, device: str, seed: int, default_share: float = 0.5) -> None:
        self.device, self.default_share = device, default_share
        self.generator = torch.Generator().manual_seed(seed)
        self.textures = presenter.textures(device)

    def draw(self, n: int, supersample: int = 2) -> Tensor:
        """float RGB `(n, 3, 512, 512)` in 0..1."""
        defaults = round(n * self.default_share)
        own = presenter.default_identity(defaults, self.device)
        others = presenter.random_identities(n - defaults, self.generator, self.device)
        identity = presenter.Identity({name: torch.cat([own[name], others[name]]) for name in own})
        pose = presenter.random_poses(n, self.generator, self.device)
        mouths = random_mouths(n, self.generator).to(self.device)
        crop = self._jitter(presenter.face_crop_transform(identity, pose, RESTORED_PX))
        return presenter.render(identity, pose, mouths, self.textures, RESTORED_PX, supersample, crop)

    def _jitter(self, crop: Tensor) -> Tensor:
        """Detected boxes are off by a few pixels and percent."""
        n, middle = len(crop), (RESTORED_PX - 1) / 2
        zoom = 1 + 0.03 * torch.randn(n, 1, 1, generator=self.generator).clamp(-2, 2).to(crop)
        shift = 6.0 * torch.randn(n, 2, generator=self.generator).clamp(-2, 2).to(crop)
        jittered = crop * zoom
        jittered[:, :, 2] += middle * (1 - zoom[:, :, 0]) + shift
        return jittered


def portraits() -> Tensor:
    """Public-domain photographs that packages ship, `(m, 3, 640, 640)` uint8; empty where they are not installed."""
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
