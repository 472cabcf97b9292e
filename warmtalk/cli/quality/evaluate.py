"""Evaluates every gate on the analysis of a video."""

from __future__ import annotations

from pathlib import Path

from warmtalk.cli.quality.analysis import VideoAnalysis
from warmtalk.cli.quality.gates import Gate
from warmtalk.cli.quality.lip_gates import closures, lips, offset, syncnet
from warmtalk.cli.quality.paste_gates import jaw_flicker, mouth_flicker, paste_jitter, seam, seam_flicker, sharpness
from warmtalk.cli.quality.signals import Signals
from warmtalk.cli.quality.time_gates import frozen, repeated, seeking, silence

GATES = (
    lips, closures, offset, paste_jitter, seam, seam_flicker, sharpness, silence, frozen, repeated,
    mouth_flicker, jaw_flicker, seeking,
)  # fmt: skip


def evaluate(analysis: VideoAnalysis, syncnet_weights: Path | None = None) -> list[Gate]:
    """All gates, in the order of the report. syncnet_weights: a checkpoint; SyncNet is skipped if it does not exist."""
    signals = Signals(analysis)
    return [*(gate(signals) for gate in GATES), syncnet(signals, syncnet_weights)]
