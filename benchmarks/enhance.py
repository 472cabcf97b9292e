"""Measures the memory and the frames per second of `warmtalk enhance` for videos of several lengths.

    python -m benchmarks.enhance                     # 10 s and 60 s of the presenter; a minute or two
    python -m benchmarks.enhance --seconds 10 600 --every 5
    python -m benchmarks.enhance --gpu               # the Enhance stage with GFPGAN, on a CUDA machine; a minute

Each video is enhanced in its own process, with the embedded restorer. The peak memory is that of the operating system.

--gpu: random weights of GFPGAN's size in fp16. Several sessions send chunks of the presenter's frames to the stage, in
one process: numpy arrays in and out, landmarks, alignment and paste included. Exit status 1 if the bar is broken.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from benchmarks.common import argument_parser, bar_table
from models.avatar.playback import ping_pong
from models.restore.video import EnhanceOptions
from models.types import CROP_PX, FaceCrops, UInt8
from warmtalk.cli.enhance import LocalBackend, enhance_video

CLIP = Path(__file__).resolve().parents[1] / "models" / "embedded" / "presenter" / "presenter.mp4"
FPS, SOUND_HZ, AAC_SAMPLES = 25, 24_000, 1024

SESSIONS, IN_FLIGHT, CHUNK = 8, 3, 8  # callers of the stage, and what each of them sends: calls at a time, faces a call
BARS = [("faces/s of the stage", 600.0, True)]


def make_video(path: Path, seconds: int) -> None:
    """Write the presenter's clip, played forward and backward, with noise as audio."""
    with av.open(str(CLIP)) as clip:
        frames = [frame.reformat(format="yuv420p") for frame in clip.decode(video=0)]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "18"})
        video.width, video.height, video.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        sound = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, AAC_SAMPLES)).astype(np.float32)
        for number, index in enumerate(ping_pong(0, FPS * seconds, len(frames)).tolist()):
            frame = frames[index]
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, FPS), 0
            container.mux(video.encode(frame))
        for start in range(0, SOUND_HZ * seconds, AAC_SAMPLES):
            packet = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            packet.sample_rate, packet.pts = SOUND_HZ, start
            container.mux(sound.encode(packet))
        for stream in (video, sound):
            container.mux(stream.encode(None))


def enhance(video: Path, every: int) -> dict[str, float]:
    """Enhance a video next to itself; the figures of this process."""
    began_s = time.perf_counter()
    report = enhance_video(
        video, video.with_suffix(".out.mp4"), LocalBackend.load("small"), EnhanceOptions(every=every)
    )
    rate = report.frames / (time.perf_counter() - began_s)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"frames": report.frames, "frames_per_s": rate, "peak_mb": peak_kb / 1e3}


def crops(n: int, seed: int) -> UInt8:
    """Smooth random pictures `(n, 256, 256, 3)`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), np.uint8)
    return np.stack([cv2.resize(one, (CROP_PX, CROP_PX), interpolation=cv2.INTER_CUBIC) for one in coarse])


async def stage_figures(config: dict[str, Any], calls: int) -> dict[str, float]:
    """Send `calls` chunks per session to the stage, with this user_config. Returns the figures."""
    from deployments.common.stage import Stamped
    from deployments.common.urgency import NO_HURRY
    from deployments.enhance import Enhance

    stage, began_s = Enhance(), time.perf_counter()
    await stage.reconfigure(config)
    ready_s = time.perf_counter() - began_s

    async def session(number: int, calls: int) -> None:
        room, images = asyncio.Semaphore(IN_FLIGHT), crops(CHUNK, number)

        async def chunk(call: int) -> None:
            async with room:
                frames = ping_pong(call * CHUNK, CHUNK, 150)  # of the presenter
                sent = Stamped(FaceCrops(images, call * CHUNK, "presenter", frames), ())
                await stage.restore(sent, None, NO_HURRY, f"session {number}")

        await asyncio.gather(*(chunk(call) for call in range(calls)))

    await session(0, min(calls, 150 // CHUNK + 1))  # the heads around the presenter's faces are drawn once
    before, began_s = await stage.stats(), time.perf_counter()
    await asyncio.gather(*(session(number, calls) for number in range(SESSIONS)))
    taken_s, after = time.perf_counter() - began_s, await stage.stats()
    batches = after["batches"] - before["batches"]
    done = SESSIONS * calls * CHUNK
    return {"faces/s of the stage": done / taken_s, "faces per batch": done / batches, "ready after, s": ready_s}


def random_weights(path: Path) -> Path:
    """Write GFPGAN's weights with random values that keep activations near 1. Returns the path."""
    import torch

    from models.restore.gfpgan_net import GFPGANNet

    torch.manual_seed(0)
    state = GFPGANNet().state_dict()
    for value in state.values():
        torch.nn.init.normal_(value, std=max(1, value[0].numel()) ** -0.5 if value.ndim > 1 else 0.1)
    torch.save({"params_ema": state}, path)
    return path


def measure_stage(device: str, compiled: str, batch: int, calls: int) -> int:
    """Print the figures of the stage. Returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"path": str(random_weights(Path(folder) / "GFPGANv1.4.pth")), "device": device}
        options |= {"dtype": "float16" if device == "cuda" else "float32", "max_faces": batch, "compile": compiled}
        config = {"engine": "gfpgan", "options": options, "batch_size": batch}
        figures = asyncio.run(stage_figures(config, calls))
    lines, good = bar_table(BARS, figures.get)
    print(*(f"{name}: {value:.1f}" for name, value in figures.items()), *lines, sep="\n")
    return 0 if good else 1


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--gpu", action="store_true", help="measure the stage with GFPGAN")
    parser.add_argument("--device", default="cuda", help="of --gpu")
    parser.add_argument("--compile", default="graphs", choices=("off", "graphs"), help="of --gpu")
    parser.add_argument("--batch", type=int, default=16, help="faces per batch, of --gpu")
    parser.add_argument("--calls", type=int, default=60, help="chunks per session, of --gpu")
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60], help="lengths of the videos")
    parser.add_argument("--every", type=int, default=1, help="restore every n-th frame")
    parser.add_argument("--video", type=Path, help="only enhance this video and print its figures as JSON")
    chosen = parser.parse_args()
    if chosen.gpu:
        return measure_stage(chosen.device, chosen.compile, chosen.batch, chosen.calls)
    if chosen.video:
        print(json.dumps(enhance(chosen.video, chosen.every)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for seconds in chosen.seconds:
            video = Path(folder) / f"{seconds}.mp4"
            make_video(video, seconds)
            command = [sys.executable, "-m", "benchmarks.enhance", "--video", str(video), "--every", str(chosen.every)]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{seconds} s: {figures['frames_per_s']:.1f} frames/s, peak memory {figures['peak_mb']:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
