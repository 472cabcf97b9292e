"""models.quality.regions on the embedded presenter's crop."""

from __future__ import annotations

import numpy as np

from models.avatar.store import AvatarStore
from models.geometry import apply
from models.quality.regions import regions_of
from tests.support.paths import ROOT

AVATARS = ROOT / "models" / "embedded" / "avatars"
AVATAR = AvatarStore(AVATARS).load("presenter", latents=False, frames=False)
LANDMARKS = np.median(apply(AVATAR.transforms.astype(float), AVATAR.landmarks.astype(float)), axis=0)
REGIONS = regions_of(LANDMARKS, AVATAR.masks[0])


def test_the_mouth_contains_the_lips_with_room_to_open() -> None:
    lips = np.rint(LANDMARKS[48:68]).astype(int)
    assert REGIONS.mouth[lips[:, 1], lips[:, 0]].all()
    assert np.nonzero(REGIONS.mouth)[0].max() > lips[:, 1].max() + 20


def test_the_steady_region_is_pasted_above_the_lips_and_the_rigid_one_is_not_pasted() -> None:
    mask = AVATAR.masks[0]
    assert REGIONS.steady.sum() > 1000 and mask[REGIONS.steady].min() > 230
    assert np.nonzero(REGIONS.steady)[0].max() < LANDMARKS[50:53, 1].min()
    assert REGIONS.rigid.sum() > 5000 and mask[REGIONS.rigid].max() < 5


def test_the_seam_follows_the_masks_edge_down_to_the_lips() -> None:
    inside = AVATAR.masks[0] >= 128
    assert 0.3 < inside[REGIONS.seam].mean() < 0.7
    assert np.nonzero(REGIONS.seam)[0].max() < LANDMARKS[48:60, 1].mean()


def test_regions_do_not_overlap_the_mouth() -> None:
    for name in ("jaw", "seam", "steady", "rigid"):
        assert not (getattr(REGIONS, name) & REGIONS.mouth).any(), name
