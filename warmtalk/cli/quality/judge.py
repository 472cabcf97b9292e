"""Holds a reading against every gate."""

from __future__ import annotations

from pathlib import Path

from warmtalk.cli.quality.gates import Gate
from warmtalk.cli.quality.lip_gates import closures, lips, offset, syncnet
from warmtalk.cli.quality.paste_gates import jaw_flicker, mouth_flicker, paste_jitter, seam, seam_flicker, sharpness
from warmtalk.cli.quality.reading import Reading
from warmtalk.cli.quality.sight import Sight
from warmtalk.cli.quality.time_gates import frozen, repeated, seeking, silence

GATES = (
    lips, closures, offset, paste_jitter, seam, seam_flicker, sharpness, silence, frozen, repeated,
    mouth_flicker, jaw_flicker, seeking,
)  # fmt: skip


def judge(reading: Reading, syncnet_weights: Path | None = None) -> list[Gate]:
    """All gates, in the order in which a page shows them. syncnet_weights: a checkpoint that is used if it is there."""
    sight = Sight(reading)
    return [*(gate(sight) for gate in GATES), syncnet(sight, syncnet_weights)]
