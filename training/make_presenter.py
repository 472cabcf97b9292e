"""Makes the presenter's idle clip: six seconds of breathing, small head motion and blinks, mouth at rest.

Deterministic for its seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from models.types import UInt8
from training.presenter import FRAME_PX, Pose, default_identity, render, rest_mouth, rest_pose, textures

FPS = 25
SECONDS = 6
FRAMES = FPS * SECONDS  # 150
BATCH = 8
CRF = "10"  # x264's scale: no visible loss, and the clip is below 1 MB
SEED = 7
# One blink in 25 fps frames, 200 ms: two frames down, one shut, three up (lids fall faster than they rise).
BLINK = (0.45, 1.0, 0.92, 0.55, 0.18)
BLINK_GAP_S = (2.0, 5.0)
EDGE_S = 0.6  # no blink this close to an end, where it would be seen twice when played back and forth


def drift(seconds: Tensor, generator: torch.Generator, waves: int = 3) -> Tensor:
    """Smooth noise in about [-1, 1] at `seconds`, with zero velocity at 0 and at SECONDS, `(n,)`.

    A sum of cosines with a whole number of half periods in the clip. Each is flat at both ends, so the clip can be
    played back and forth smoothly.
    """
    half_periods = torch.arange(1, waves + 1)
    weights = torch.randn(waves, generator=generator) / half_periods
    weights = weights / weights.abs().sum()
    return (weights[:, None] * torch.cos(math.pi * half_periods[:, None] * seconds / SECONDS)).sum(0)


def blinks(generator: torch.Generator) -> Tensor:
    """Lid closure in each frame, `(FRAMES,)`, with a blink every 2 to 5 seconds."""
    shut = torch.zeros(FRAMES)
    low, high = BLINK_GAP_S
    start_s = EDGE_S + 0.7 * torch.rand(1, generator=generator).item()
    while start_s + len(BLINK) / FPS < SECONDS - EDGE_S:
        first = round(start_s * FPS)
        shut[first : first + len(BLINK)] = torch.tensor(BLINK)
        start_s += low + (high - low) * torch.rand(1, generator=generator).item() ** 1.5
    return shut


def idle_poses(seed: int = SEED) -> Pose:
    """The head's motion in the clip: FRAMES poses."""
    generator = torch.Generator().manual_seed(seed)
    seconds = torch.arange(FRAMES) * (SECONDS / (FRAMES - 1))  # the first and the last frame are at the flat ends
    pose = rest_pose(FRAMES)
    sizes = {"roll": 0.022, "shift_x": 0.034, "shift_y": 0.014, "yaw": 0.050, "pitch": 0.022, "brow": 0.16}
    for name, size in sizes.items():
        pose[name] = size * drift(seconds, generator)
    pose["scale"] = 1 + 0.010 * drift(seconds, generator, waves=2)
    pose["breath"] = 0.5 - 0.5 * torch.cos(2 * math.pi * 2 * seconds / SECONDS)  # 20 breaths a minute
    pose["shift_y"] = pose["shift_y"] - 0.006 * pose["breath"]
    pose["gaze_x"] = -pose["yaw"] * 4 + 0.05 * drift(seconds, generator)  # the eyes look at the camera
    pose["gaze_y"] = -pose["pitch"] * 3
    pose["blink"] = blinks(generator)
    return pose


def idle_frames(seed: int = SEED, progress: bool = False) -> UInt8:
    """Draw the clip: RGB uint8 `(FRAMES, 512, 512, 3)`."""
    poses, noise, parts = idle_poses(seed), textures(), []
    for first in range(0, FRAMES, BATCH):
        pose = Pose({name: value[first : first + BATCH] for name, value in poses.items()})
        count = len(pose["roll"])
        image = render(default_identity(count), pose, rest_mouth(count), noise)  # (n, 3, 512, 512)
        parts.append((image * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy())
        if progress:
            print(f"\rdrawn {first + count} of {FRAMES} frames", end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    return np.concatenate(parts)


def write_clip(frames: UInt8, path: Path) -> None:
    """Encode RGB frames as H.264 yuv420p at 25 fps, colours tagged BT.709, index first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": CRF, "preset": "slow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = FRAME_PX, FRAME_PX, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 1, 1, 1, 1
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python -m training.make_presenter -o models/embedded/presenter/presenter.mp4",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the MP4 to write")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the motion (default {SEED})")
    chosen = parser.parse_args(arguments)
    write_clip(idle_frames(chosen.seed, progress=True), chosen.output)
    print(f"{chosen.output}: {FRAMES} frames, {SECONDS} s, {chosen.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
