"""A small avatar for the chaos graph: two seconds of the presenter at 128 px."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from models.avatar.store import FRAMES, AvatarStore
from models.media.frames import write_frames
from tests.chaos.engines import VAE
from tests.support.paths import ROOT

SIDE, COUNT, NAME = 128, 50, "tiny"


def make_avatar(root: Path) -> None:
    """Write the avatar NAME into the store at `root`."""
    source = AvatarStore(root, ROOT / "models" / "embedded" / "avatars").load("presenter")
    assert source.frames is not None and source.latents is not None
    scale = SIDE / source.width
    transforms = source.transforms[:COUNT] @ np.diag([1 / scale, 1 / scale, 1]).astype(np.float32)
    frames = [cv2.resize(source.frames[k], (SIDE, SIDE), interpolation=cv2.INTER_AREA) for k in range(COUNT)]
    with AvatarStore(root).write(NAME) as draft:
        masks, none = np.ascontiguousarray(source.masks[:1]), np.zeros(COUNT, np.int32)
        draft.write_geometry(transforms, scale * source.landmarks[:COUNT], source.has_face[:COUNT], masks, none)
        draft.write_latents(np.ascontiguousarray(source.latents[:COUNT]))
        write_frames(draft.folder / FRAMES, frames, source.fps)
        draft.meta |= {"fps": source.fps, "width": SIDE, "height": SIDE, "frames": COUNT, "vae_fingerprint": VAE}
        draft.meta |= {"source": {}, "settings": {}, "facts": {}}
