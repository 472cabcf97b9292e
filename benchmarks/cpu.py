"""Measures what LipSync and preparation cost on a CPU, without Ray.

    python -m benchmarks.cpu
    python -m benchmarks.cpu --video clip.mp4 --rounds 9

Lip sync runs in float32 and in bfloat16 by turns, with whole and with cropped decoders, on speech and the presenter's
latents; processor time is compared within the run, and the faces as well. Then a video is prepared. Exit status 1 if a
bar is missed.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Bar, argument_parser, bar_table, machine
from deployments.common.paths import builtin_avatars, cache_dir
from deployments.preparation import load_avatars_config, load_model, prepare_options
from models.avatar.decoding import speech_windows
from models.avatar.prepare import prepare_avatar
from models.avatar.store import AvatarStore
from models.musetalk_openvino import OpenVINOMuseTalk
from models.runtime.openvino_cache import PRECISIONS
from models.types import CropWindow, Float16, PreparedAvatar
from models.weights.checksums import EMBEDDED

TEXT = "The quick brown fox jumps over the lazy dog, but why?"  # the networks have not been trained on it
FILES = (EMBEDDED / "musetalk/musetalk.json", EMBEDDED / "musetalk/unet.safetensors", EMBEDDED / "vae")
THREADS, CHUNK = 2, 8
BARS: tuple[Bar, ...] = (
    ("bfloat16_error_mean", 0.5, False),  # grey levels, as for the cropped decoder
    ("bfloat16_error_p999", 4.0, False),
    ("cropped_error_max", 0.0, False),
    ("preparation_s_per_s", 2.0, False),
)


def lip_sync(avatar: PreparedAvatar, windows: Float16, rounds: int) -> dict[str, float]:
    """Processor time per frame in ms. In grey levels, how bfloat16's faces differ from float32's, and cropped ones."""
    assert avatar.latents is not None
    engines = {
        name: OpenVINOMuseTalk.load(*FILES, cache_dir=cache_dir(), threads=THREADS, precision=name)
        for name in PRECISIONS
    }
    chunks = [range(k, k + CHUNK) for k in range(0, len(windows) - CHUNK + 1, CHUNK)]
    latents = avatar.latents[np.arange(len(windows)) % len(avatar)]
    calls, different = dict[str, Callable[[range], Any]](), 0.0
    for name, engine in engines.items():
        faces = engine.recorded
        assert faces is not None
        held = faces.hold(latents, CropWindow.around(avatar.masks))
        assert held.decoder is not None
        held.decoder.result()  # the windows are decoded from now on
        calls[name] = partial(lambda part, engine: engine.generate(latents[part], windows[part]), engine=engine)
        calls[f"{name}_cropped"] = partial(
            lambda part, faces, held: np.stack(faces.start([(held, k, windows[k]) for k in part])),
            faces=faces,
            held=held,
        )
        for part in chunks:
            calls[f"{name}_cropped"](part)  # keeps the whole faces
            cut, whole = (held.window.cut(calls[key](part)).astype(int) for key in (f"{name}_cropped", name))
            different = max(different, float(np.abs(cut - whole).max()))
    errors = [np.abs(calls["bfloat16"](part).astype(np.int16) - calls["float32"](part)) for part in chunks]
    took_ms: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            began_s = time.process_time()
            call(chunks[number % len(chunks)])
            took_ms[name].append(1e3 * (time.process_time() - began_s) / CHUNK)
    return {
        **{f"{name}_ms_per_frame": statistics.median(values) for name, values in took_ms.items()},
        "bfloat16_error_mean": float(np.mean(errors)),
        "bfloat16_error_p999": float(np.quantile(errors, 0.999)),
        "bfloat16_error_max": float(np.max(errors)),
        "cropped_error_max": different,
    }


def preparation(video: Path) -> dict[str, float]:
    """Seconds, and seconds of processor time, per second of video. The networks are compiled before."""
    stage = load_avatars_config("demo")
    model = load_model(stage)
    model.encode_reference(np.zeros((2, 256, 256, 3), np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        report = prepare_avatar(
            *(video, "measured", AvatarStore(Path(folder)), model.encode_reference, model.vae_fingerprint),
            prepare_options(stage, {}),
        )
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    seconds = report.frames / stage.fps
    return {
        "preparation_s_per_s": took_s / seconds,
        "preparation_cpu_s_per_s": cpu_s / seconds,
        "preparation_cores": cpu_s / took_s,
    }


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--video", type=Path, default=EMBEDDED / "presenter/presenter.mp4", help="is prepared")
    parser.add_argument("--rounds", type=int, default=15, help=f"calls of {CHUNK} frames in each number format")
    parser.add_argument("--out", type=Path, default=Path("results/cpu"))
    arguments = parser.parse_args()
    avatar = AvatarStore(builtin_avatars()).load("presenter", frames=False)
    windows = speech_windows(TEXT).numpy().astype(np.float16)
    figures = lip_sync(avatar, windows, arguments.rounds) | preparation(arguments.video)
    lines, good = bar_table(BARS, figures.get)
    others = [f"{name:28} {value:8.3f}" for name, value in figures.items() if name not in {bar[0] for bar in BARS}]
    print(machine(), *lines, *others, sep="\n")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cpu.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
