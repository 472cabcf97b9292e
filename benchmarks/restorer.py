"""Compares the small restorer with bicubic + unsharp masking: gain, flicker and time.

    python -m benchmarks.restorer
    python -m benchmarks.restorer --faces 8 --frames 10

Runs the product's engine on faces, poses and degradations that training has not used, degraded by the embedded VAE.
Writes restorer.json and restorer.png to `--out` and prints a table. Exit status 1 if a bar is broken.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.common import argument_parser, machine
from models.restore.small import EMBEDDED_WEIGHTS, SmallRestorer
from models.types import CROP_PX, RESTORED_PX, UInt8
from training.degradation import VAE, Degradation
from training.restorer_faces import Faces
from training.restorer_measures import GREY, Comparison, compare, table, upsample

EMBEDDED_VAE = EMBEDDED_WEIGHTS.parents[1] / "vae"
SEED = 7_000_001  # differs from those of training and of its report
CROPS = {"presenter": 1.0, "new people": 0.0}  # held-out crops, and the share of the embedded presenter among them
MIN_GAIN_DB = 1.0  # per kind of crop; flicker must not increase on them, on a still face and on a moving clip
MAX_MS = 25.0  # per face, on two cores
THREADS = 2
TIMED_FACES = 8  # the product's chunk size
TIMED_RUNS = 12
STILL_VIEWS = 12


def restored_by(restorer: SmallRestorer, views: Tensor) -> Tensor:
    """float `(t, n, 3, 256, 256)` → `(t, n, 3, 512, 512)` in 0..1, through the product's engine."""
    faces: UInt8 = (views.flatten(0, 1) * GREY).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    restored = torch.from_numpy(restorer.restore(faces)).permute(0, 3, 1, 2).float() / GREY
    return restored.view(*views.shape[:2], 3, RESTORED_PX, RESTORED_PX)


def measure(
    restorer: SmallRestorer, vae: VAE, faces: int, frames: int, say: Callable[[str], None]
) -> tuple[dict[str, Comparison], UInt8]:
    """Four comparisons by name, and a picture: bicubic, restored and truth side by side."""
    rows: dict[str, Comparison] = {}
    shown: list[Tensor] = []
    degrade = Degradation(vae, torch.Generator().manual_seed(SEED), "cpu")

    def add(name: str, views: Tensor, clean: Tensor) -> None:
        restored = restored_by(restorer, views)
        rows[name] = compare(views, restored, clean)
        shown.extend(torch.cat([upsample(views[0])[i], restored[0, i], clean[i]], -1) for i in (0, -1))

    for name, share in CROPS.items():
        say(f"drawing and restoring {faces} faces: {name}")
        clean = Faces("cpu", SEED, share).draw(faces)
        add(name, degrade(clean, views=2), clean)
    say(f"a still face, {STILL_VIEWS} frames")
    clean = Faces("cpu", SEED + 1, 1.0).draw(1)
    add("still face", degrade(clean, views=STILL_VIEWS), clean)
    say(f"a moving clip, {frames} frames")
    clip = Faces("cpu", SEED + 2).clip(frames)
    views = degrade.clip(clip)[:, None]
    rows["moving clip"] = compare(views, restored_by(restorer, views), clip[:, None])
    sheet = torch.cat(shown[:4], -2).permute(1, 2, 0)
    return rows, (sheet * GREY).round().to(torch.uint8).numpy()


def milliseconds(restorer: SmallRestorer) -> dict[str, float]:
    """Milliseconds per face, in chunks of `TIMED_FACES`, after a warm-up."""
    faces = np.random.default_rng(SEED).integers(0, 256, (TIMED_FACES, CROP_PX, CROP_PX, 3), np.uint8)
    restorer.restore(faces)
    taken: list[float] = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        restorer.restore(faces)
        taken.append((time.perf_counter() - start) / TIMED_FACES * 1e3)
    return {"min": min(taken), "median": statistics.median(taken)}


def broken_bars(rows: dict[str, Comparison], openvino_ms: float) -> list[str]:
    """Descriptions of the broken bars."""
    broken = [
        f"{name}: gains {row.gain_db:.2f} dB, less than {MIN_GAIN_DB} dB"
        for name, row in rows.items()
        if name in CROPS and row.gain_db < MIN_GAIN_DB
    ]
    broken += [
        f"{name}: flickers by {row.restored_flicker:.3f} levels, unsharp by {row.unsharp_flicker:.3f}"
        for name, row in rows.items()
        if row.restored_flicker > row.unsharp_flicker
    ]
    if openvino_ms > MAX_MS:
        broken.append(f"openvino takes {openvino_ms:.1f} ms per face, more than {MAX_MS} ms")
    return broken


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--weights", type=Path, default=EMBEDDED_WEIGHTS)
    parser.add_argument("--vae", type=Path, default=EMBEDDED_VAE, help="AutoencoderTiny folder that degrades the faces")
    parser.add_argument("--faces", type=int, default=32, help="held-out faces of each kind (default 32)")
    parser.add_argument("--frames", type=int, default=25, help="frames of the moving clip (default 25: one second)")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    fast = SmallRestorer.load(args.weights, threads=THREADS)
    times = {"openvino": milliseconds(fast), "torch": milliseconds(SmallRestorer.load(args.weights, engine="torch"))}
    with torch.inference_mode():
        rows, sheet = measure(fast, VAE(args.vae, "cpu"), args.faces, args.frames, print)
    table(rows)
    for engine, taken in times.items():
        print(f"{engine:9s} {taken['median']:.1f} ms per face (best {taken['min']:.1f}), {THREADS} threads")
    broken = broken_bars(rows, times["openvino"]["median"])
    report: dict[str, Any] = {
        "comparisons": {name: row.to_dict() for name, row in rows.items()},
        "ms_per_face": times,
        "machine": machine(),
        "broken": broken,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "restorer.json").write_text(json.dumps(report, indent=1) + "\n")
    cv2.imwrite(str(args.out / "restorer.png"), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    print(*(f"broken: {line}" for line in broken), f"written to {args.out}/restorer.json and .png", sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
