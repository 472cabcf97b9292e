"""Measures the forward passes of LipSync and GFPGAN alone on a GPU, at their real sizes, in all compile modes.

    python -m benchmarks.passes                          # on a CUDA machine; about five minutes
    python -m benchmarks.passes --modes off graphs       # saves the minutes that Inductor takes

Random weights, fp16, numpy arrays in and out as in the stages. Prints faces per second and the time to the first face.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import argument_parser
from benchmarks.weights import make_weights
from models.musetalk_cuda import CudaMuseTalk
from models.restore.align import FFHQ_512
from models.restore.gfpgan import GFPGAN
from models.runtime.cuda_graphs import COMPILE_MODES
from models.types import UInt8

LIPSYNC_SIZES = (4, 16)
GFPGAN_SIZES = (4, 8)
REPEATS = 20


def speed(generate: Callable[[], UInt8]) -> float:
    """Faces per second of a warm call."""
    generate()
    begin_s = time.perf_counter()
    count = sum(len(generate()) for _ in range(REPEATS))
    return count / (time.perf_counter() - begin_s)


def lipsync(weights: Path, mode: str) -> None:
    """Print the speed of `MuseTalk.generate` at each size."""
    files = (weights / "musetalkV15/musetalk.json", weights / "musetalkV15/unet.pth", weights / "sd-vae")
    model = CudaMuseTalk.load(*files, device="cuda", dtype=torch.float16)
    for size in LIPSYNC_SIZES:
        latents, windows = np.zeros((size, 8, 32, 32), np.float16), np.zeros((size, 50, 384), np.float16)
        begin_s = time.perf_counter()
        model.record(mode, size)
        model.generate(latents, windows)
        ready_s = time.perf_counter() - begin_s
        report("LipSync", mode, size, speed(lambda z=latents, w=windows: model.generate(z, w)), ready_s)  # type: ignore[misc]


def gfpgan(weights: Path, mode: str) -> None:
    """Print the speed of `GFPGAN.restore`, alignment and paste included, at each size."""
    for size in GFPGAN_SIZES:
        engine = GFPGAN.load(weights / "GFPGANv1.4.pth", "cuda", "float16", max_faces=size, compile=mode)
        faces = np.random.default_rng(0).integers(0, 256, (size, 256, 256, 3), dtype=np.uint8)
        points = np.tile(((FFHQ_512 - 256) * 0.9 / 2 + 128)[None], (size, 1, 1)).astype(np.float32)
        around = np.zeros((size, 512, 512, 3), np.uint8)
        begin_s = time.perf_counter()
        engine.restore(faces, 1.0, points, around)
        ready_s = time.perf_counter() - begin_s
        rate = speed(lambda e=engine, f=faces, p=points, a=around: e.restore(f, 1.0, p, a))  # type: ignore[misc]
        report("GFPGAN", mode, size, rate, ready_s)


def report(what: str, mode: str, size: int, rate: float, ready_s: float) -> None:
    print(f"| {what} | {size} per call | {mode} | {rate:.0f} faces/s | first after {ready_s:.1f} s |", flush=True)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--modes", nargs="+", default=list(COMPILE_MODES), choices=COMPILE_MODES, help="compile modes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device. `make bench` measures the graph on a CPU.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        make_weights(Path(folder), "cuda", small=False)
        for mode in arguments.modes:
            lipsync(Path(folder), mode)
            if mode != "inductor":  # the same as graphs
                gfpgan(Path(folder), mode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
