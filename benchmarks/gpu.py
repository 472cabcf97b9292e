"""Measures the whole graph on one GPU with networks of the real sizes: MuseTalk v1.5, sd-vae, whisper-tiny, GFPGAN.

    python -m benchmarks.gpu --out out/gpu                     # on a CUDA machine; about four minutes
    python -m benchmarks.gpu --out out/gpu --compile graphs    # saves the minutes that Inductor takes
    python -m benchmarks.gpu --out out/gpu --small             # tiny networks, on any machine: tests this script

The weights are random, in the real formats. Speed and memory are those of the real weights; the picture is noise
inside the mask. Deploys configs/gpu.yaml with `batch_size` 4, the manual's value for small cards, without
Enhance and then with GFPGAN. Prints time, frames per second and memory per stage, and the peak GPU memory of all
processes.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from benchmarks.common import argument_parser
from benchmarks.weights import make_weights
from configs.serve_file import deployment_of
from deployments.stitch.metrics import CALL_PARTS
from models.avatar.decoding import measure_decoding
from models.avatar.face import Face
from models.avatar.prepare import PrepareOptions, prepare_avatar
from models.avatar.store import AvatarStore
from models.musetalk import MuseTalk
from models.runtime.cuda_graphs import COMPILE_MODES
from models.types import Float32, UInt8
from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.profile.command import judged
from warmtalk.cli.profile.graph import GraphProfile, Options, profile_graph
from warmtalk.cli.profile.tables import tables

BATCH = 4  # frames and faces per call
BATCH_SIZES = (1, 4, 8)  # frames per call of a stage that is driven alone
GFPGAN_BATCH = 16  # faces per call of GFPGAN, where LipSync's batch is that of configs/gpu.yaml
CODE = Path(__file__).resolve().parents[1]
EMBEDDED = CODE / "models" / "embedded"


WIDE = 1280, 720  # px of the avatar `wide`


class Replay:
    """A detector that returns known landmarks `(n, 68, 2)`, so that preparation needs no detector weights."""

    def __init__(self, landmarks: Float32) -> None:
        self._landmarks, self._frame = landmarks, 0

    def detect(self, frame: UInt8, near: Face | None = None) -> list[Face]:
        points = self._landmarks[self._frame % len(self._landmarks)]
        self._frame += 1
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        return [Face((float(x1), float(y1), float(x2), float(y2)), 1.0, 1.0, points, points)]


def widen(source: Path, target: Path) -> tuple[float, float]:
    """Write a video enlarged to the height of WIDE, with mirrored sides. Returns the scale and the margin in px."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        width, height = WIDE
        scale = height / read.streams.video[0].height
        side = (width - round(read.streams.video[0].width * scale)) // 2
        stream = written.add_stream("libx264", rate=25, options={"crf": "16", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in read.decode(video=0):
            image = cv2.resize(
                frame.to_ndarray(format="rgb24"), (width - 2 * side, height), interpolation=cv2.INTER_CUBIC
            )
            image = cv2.copyMakeBorder(image, 0, 0, side, side, cv2.BORDER_REFLECT_101)
            written.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        written.mux(stream.encode())
    return scale, float(side)


def prepare(weights: Path, avatars: Path, device: str) -> float:
    """Prepare the avatars `presenter` (512² px) and `wide` (WIDE) with the random VAE. Returns the first's seconds."""
    import torch

    known = AvatarStore(EMBEDDED, EMBEDDED / "avatars").load("presenter", latents=False, frames=False)
    model = MuseTalk.load(
        weights / "musetalkV15/musetalk.json",
        weights / "musetalkV15/unet.pth",
        weights / "sd-vae",
        device=device,
        dtype=torch.float16 if device == "cuda" else torch.float32,
    )

    def encode(faces: UInt8) -> Any:
        return model.encode_reference(faces).cpu()

    def run(source: Path, avatar_id: str, landmarks: Float32) -> float:
        begin_s = time.perf_counter()
        prepare_avatar(
            source,
            avatar_id,
            AvatarStore(avatars),
            encode,
            model.vae_fingerprint,
            PrepareOptions(batch_size=4),
            force=True,
            detector=Replay(landmarks),
            measure_decoding=partial(measure_decoding, model),
        )
        return time.perf_counter() - begin_s

    source, wide = EMBEDDED / "presenter" / "presenter.mp4", weights / "wide.mp4"
    scale, left = widen(source, wide)
    seconds = run(source, "presenter", known.landmarks)
    run(wide, "wide", (known.landmarks * scale + [left, 0]).astype(np.float32))
    return seconds


def adapt(
    weights: Path, device: str, enhance: str | None, compiled: str, batch: int | None = BATCH
) -> Callable[[dict[str, Any]], None]:
    """A function that puts the random weights into configs/gpu.yaml, and moves it to the CPU if asked.

    enhance: the engine of Enhance; None removes the stage. batch: faces per call; None: as in configs/gpu.yaml.
    """
    musetalk = {
        "unet_config": str(weights / "musetalkV15/musetalk.json"),
        "unet_weights": str(weights / "musetalkV15/unet.pth"),
        "vae_dir": str(weights / "sd-vae"),
    }
    path = str(weights / "GFPGANv1.4.pth")
    faces = batch or GFPGAN_BATCH
    restorer = {"path": path, "device": "cuda", "dtype": "float16", "max_faces": faces, "compile": compiled}
    changes: dict[str, dict[str, Any]] = {
        "AudioFeatures": {"weights": str(weights / "whisper"), "context_s": 8.0},
        "LipSync": {**musetalk, "decoder_dir": str(weights / "taesd"), "compile": compiled},
        "Enhance": {"engine": enhance, "options": restorer if enhance == "gfpgan" else {}, "batch_size": faces},
        "Stitch": {},
        "Avatars": musetalk,
    }
    if batch is not None:
        changes["LipSync"]["batch_size"] = batch
        changes["Stitch"] = {"chunk_frames": 2 * batch, "first_chunk_frames": 4}

    def change(config: dict[str, Any]) -> None:
        config["http_options"]["host"] = "127.0.0.1"
        if enhance is None:
            del changes["Enhance"]
            application = config["applications"][0]
            application["args"] = {"enhance": False}
            application["deployments"] = [item for item in application["deployments"] if item["name"] != "Enhance"]
            deployment_of(config, "Stitch")["user_config"]["enhance"] = False
        for stage, values in changes.items():
            user_config = deployment_of(config, stage)["user_config"]
            user_config.update(values)
            if device == "cpu" and "device" in user_config:
                user_config.update(device="cpu", dtype="float32")
            if device == "cpu":
                deployment_of(config, stage)["ray_actor_options"].pop("num_gpus", None)

    return change


class PeakMemory:
    """Samples the GPU memory used by all processes, in MB, until stopped."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak_mb = max(self.peak_mb, used_megabytes())
            self._stop.wait(0.2)


def used_megabytes() -> float:
    """The used memory by nvidia-smi; 0 without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()[0])
    except (OSError, IndexError, ValueError):
        return 0.0


def measure(out: Path, device: str, small: bool, enhance: str, compiled: str) -> dict[str, Any]:
    """Create weights and an avatar, then deploy and profile both graphs. Returns all figures and prints tables."""
    from rich.console import Console

    make = [sys.executable, "-m", "benchmarks.gpu", "--make-only", "--out", str(out), "--device", device]
    subprocess.run([*make, *(["--small"] if small else [])], check=True)  # in its own process, which frees its memory
    figures: dict[str, Any] = json.loads((out / "made.json").read_text())
    idle_mb = used_megabytes()
    for name, engine in (("plain", None), ("enhanced", enhance)):
        begin_s = time.perf_counter()
        change = adapt(out / "weights", device, engine, compiled)
        with PeakMemory() as memory, LocalGraph("gpu", 8023, out, change, {"num_cpus": 16}):
            ready_s = time.perf_counter() - begin_s
            profile = asyncio.run(profile_graph(Options(2, engine is not None, BATCH_SIZES, sessions=())))
        judged(rows := profile.to_dict())
        figures[name] = {**summary(profile, memory.peak_mb - idle_mb), "ready_s": ready_s}
        print(f"{name}: {figures[name]}", flush=True)
        for table in tables(rows):
            Console(width=100).print(table)
    begin_s = time.perf_counter()
    with LocalGraph("gpu", 8023, out, adapt(out / "weights", device, enhance, compiled), {"num_cpus": 16}):
        figures["ready_again_s"] = time.perf_counter() - begin_s  # compiled kernels come from the cache now
    return figures


def summary(profile: GraphProfile, peak_mb: float) -> dict[str, Any]:
    """The figures that are compared with the bars. The first utterance is left out as warm-up."""
    return {
        "ttff_ms": statistics.median(profile.ttff_ms[1:]),
        "rtf": statistics.median(profile.rtf[1:]),
        "peak_gpu_mb": round(peak_mb),
        "stages": {
            stage: {
                **{part: row[part]["p50"] for part in CALL_PARTS},
                "frames_per_s": row["frames_per_s"],
                "gpu_mb": round(row["memory"]["gpu_mb"]),
            }
            for stage, row in profile.stages.items()
        },
    }


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder for weights, avatar and gpu.json")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny networks, to test this script")
    parser.add_argument("--enhance", default="gfpgan", help="engine of Enhance")
    parser.add_argument("--compile", default="inductor", choices=COMPILE_MODES, help="LipSync and GFPGAN, on CUDA")
    parser.add_argument("--make-only", action="store_true", help="only create the weights and the avatar")
    arguments = parser.parse_args()
    out, device = arguments.out.resolve(), arguments.device
    if arguments.make_only:
        begin_s = time.perf_counter()
        make_weights(out / "weights", device, arguments.small)
        weights_s = time.perf_counter() - begin_s
        prepare_s = prepare(out / "weights", out / "results" / "avatars", device)
        (out / "made.json").write_text(json.dumps({"weights_s": weights_s, "prepare_s": prepare_s}))
        return 0
    compiled = arguments.compile if device == "cuda" else "off"
    figures = measure(out, device, arguments.small, arguments.enhance, compiled)
    (out / "gpu.json").write_text(json.dumps(figures, indent=1))
    for name in ("plain", "enhanced"):
        row = figures[name]
        print(
            f"{name}: ready after {row['ready_s']:.0f} s, TTFF {row['ttff_ms']:.0f} ms, RTF {row['rtf']:.2f}, "
            f"peak {row['peak_gpu_mb']} MB of the GPU"
        )
    print(f"ready again after {figures['ready_again_s']:.0f} s; avatar prepared in {figures['prepare_s']:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
