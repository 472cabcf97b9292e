"""Holds a reading against every gate."""

from __future__ import annotations

from pathlib import Path

from judging.gates import Gate
from judging.lip_gates import closures, lips, offset, syncnet
from judging.paste_gates import jaw_flicker, mouth_flicker, paste_jitter, seam, seam_flicker, sharpness
from judging.reading import Reading
from judging.sight import Sight
from judging.time_gates import frozen, repeated, seeking, silence

GATES = (
    lips, closures, offset, paste_jitter, seam, seam_flicker, sharpness, silence, frozen, repeated,
    mouth_flicker, jaw_flicker, seeking,
)  # fmt: skip


def judge(reading: Reading, syncnet_weights: Path | None = None) -> list[Gate]:
    """All gates, in the order in which a page shows them. syncnet_weights: a checkpoint that is used if it is there."""
    sight = Sight(reading)
    return [*(gate(sight) for gate in GATES), syncnet(sight, syncnet_weights)]
