"""Measures the memory and the frames per second of `warmtalk enhance` for videos of several lengths.

    python -m benchmarks.enhance                     # 10 s and 60 s of the presenter; a minute or two
    python -m benchmarks.enhance --seconds 10 600 --every 5

Each video is enhanced in its own process, with the embedded restorer. The peak memory is that of the operating system.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.common import argument_parser
from models.avatar.playback import ping_pong
from models.restore.video import EnhanceOptions
from warmtalk.cli.enhance import LocalBackend, enhance_video

CLIP = Path(__file__).resolve().parents[1] / "models" / "embedded" / "presenter" / "presenter.mp4"
FPS, SOUND_HZ, AAC_SAMPLES = 25, 24_000, 1024


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


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60], help="lengths of the videos")
    parser.add_argument("--every", type=int, default=1, help="restore every n-th frame")
    parser.add_argument("--video", type=Path, help="only enhance this video and print its figures as JSON")
    chosen = parser.parse_args()
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
