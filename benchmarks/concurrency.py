"""Measures how many sessions one machine can serve in real time at once: the whole graph, over HTTP.

    python -m benchmarks.concurrency --sessions 1 2    # configs/demo.yaml, on any machine
    python -m benchmarks.concurrency --gpu --out out/gpu --sessions 1 4 8 16   # real sizes, random weights, CUDA
    python -m benchmarks.concurrency --gpu --out out/gpu --enhance --replicas LipSync=2 Stitch=6

All sessions speak the same text at the same time and stream it. Reported per number of sessions: total frames per
second, time to the first fragment, and the longest stall in a player that starts with its first fragment. A session
keeps up if that stall is at most BUFFER_S.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from ray import serve

from benchmarks.common import argument_parser, fragments_end
from benchmarks.gpu import adapt
from benchmarks.viewers import frames_in
from configs.serve_file import deployment_of
from models.runtime.cuda_graphs import COMPILE_MODES
from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.profiling import APP

TEXT = (
    "Good morning, and welcome to the programme. Today many of us speak at the same time, each with a face of its own. "
    "Nobody has to wait for anybody else, as long as the machine is fast enough. Let us see how long that lasts."
)
FPS = 25
BUFFER_S = 0.3  # playback buffer of a live viewer
CPUS = {"num_cpus": 64}  # logical CPUs for scheduling, so that no replica waits for one


@dataclass(frozen=True, slots=True)
class Stream:
    """The result of one session: time to the first fragment, frames, longest stall, total time."""

    ttff_ms: float
    frames: int
    stall_s: float
    took_s: float


async def speak(client: httpx.AsyncClient, session_id: str, enhance: bool) -> Stream:
    """Speak TEXT in a new session. Raises httpx.HTTPStatusError if the request is refused."""
    await client.get("/reset", params={"session_id": session_id})
    body = {"text": TEXT, "session_id": session_id, "stream": True, "enhance": enhance}
    begin_s, first_s, rest, frames, stall_s = time.perf_counter(), 0.0, b"", 0, 0.0
    async with client.stream("POST", "/speak", json=body) as answer:
        answer.raise_for_status()
        async for part in answer.aiter_raw():
            rest += part
            end = fragments_end(rest)
            came, rest = frames_in(rest[:end]), rest[end:]
            if not came:
                continue
            now_s = time.perf_counter()
            first_s = first_s or now_s
            stall_s = max(stall_s, now_s - first_s - frames / FPS)  # late relative to its first frame's due time
            frames += came
    return Stream(1e3 * (first_s - begin_s), frames, stall_s, time.perf_counter() - begin_s)


async def run_sessions(url: str, count: int, enhance: bool) -> dict[str, float]:
    """Speak in `count` sessions at the same time; the figures over all of them."""
    limits = httpx.Limits(max_connections=2 * count)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        before = await _lipsync()
        begin_s = time.perf_counter()
        streams = await asyncio.gather(*(speak(client, f"crowd-{k}", enhance) for k in range(count)))
        took_s = time.perf_counter() - begin_s
        after = await _lipsync()
    batches = after["batches"] - before["batches"]
    return {
        "faces_a_call": (after["batched_frames"] - before["batched_frames"]) / max(1, batches),
        "sessions": count,
        "frames_per_s": sum(stream.frames for stream in streams) / took_s,
        "ttff_ms": statistics.median(stream.ttff_ms for stream in streams),
        "ttff_max_ms": max(stream.ttff_ms for stream in streams),
        "rtf_max": max(stream.took_s * FPS / stream.frames for stream in streams),
        "stall_s": max(stream.stall_s for stream in streams),
        "keep_up": sum(stream.stall_s <= BUFFER_S for stream in streams),
    }


async def _lipsync() -> dict[str, Any]:
    """Counters of one LipSync replica."""
    return dict(await serve.get_deployment_handle("LipSync", APP).stats.remote())


def change_of(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], None]:
    """The changes to the config file that the arguments ask for: weights, batch sizes, numbers of replicas."""
    base: Callable[[dict[str, Any]], None] = lambda config: None  # noqa: E731
    if arguments.gpu:
        enhance = "gfpgan" if arguments.enhance else None
        base = adapt(arguments.out.resolve() / "weights", "cuda", enhance, arguments.compile)

    def change(config: dict[str, Any]) -> None:
        base(config)
        for stage, count in arguments.replicas:
            deployment = deployment_of(config, stage)
            deployment["autoscaling_config"] |= {"min_replicas": count, "max_replicas": count}
            if "num_gpus" in deployment["ray_actor_options"]:
                deployment["ray_actor_options"]["num_gpus"] = round(0.4 / count, 3)
        if arguments.gpu:
            deployment_of(config, "LipSync")["user_config"]["batch_size"] = arguments.batch
            deployment_of(config, "Stitch")["user_config"]["chunk_frames"] = arguments.batch

    return change


def replicas(text: str) -> tuple[str, int]:
    """`LipSync=2` → ("LipSync", 2). Raises ValueError."""
    stage, count = text.split("=")
    return stage, int(count)


def row(result: dict[str, float]) -> str:
    """One line of the output."""
    return (
        """One line of the output."""
        f"{result['sessions']:3.0f} sessions: {result['frames_per_s']:5.0f} frames/s, TTFF {result['ttff_ms']:5.0f} ms "
        f"(worst {result['ttff_max_ms']:5.0f}), worst RTF {result['rtf_max']:.2f}, longest stall "
        f"{1e3 * result['stall_s']:5.0f} ms, {result['keep_up']:.0f} keep up, {result['faces_a_call']:.1f} faces a call"
    )


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/crowd"), help="folder for weights and crowd.json")
    parser.add_argument("--gpu", action="store_true", help="use configs/gpu.yaml with random weights of the real sizes")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4], help="numbers of sessions to measure")
    parser.add_argument("--enhance", action="store_true", help="enhance the faces, with --gpu by GFPGAN")
    parser.add_argument("--compile", default="graphs", choices=COMPILE_MODES, help="LipSync and GFPGAN, with --gpu")
    parser.add_argument("--batch", type=int, default=16, help="faces per call of LipSync, with --gpu")
    parser.add_argument(
        "--replicas", type=replicas, nargs="*", default=[], metavar="STAGE=N", help="number of replicas"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.gpu and not (arguments.out / "made.json").is_file():
        make = [sys.executable, "-m", "benchmarks.gpu", "--make-only", "--out", str(arguments.out)]
        subprocess.run(make, check=True)  # in its own process, which frees its memory
    results = []
    with contextlib.ExitStack() as stack:
        graph = LocalGraph("gpu" if arguments.gpu else "demo", 8024, arguments.out, change_of(arguments), CPUS)
        stack.enter_context(graph)
        asyncio.run(run_sessions(graph.url, max(arguments.sessions), arguments.enhance))  # warm up
        for count in arguments.sessions:
            results.append(asyncio.run(run_sessions(graph.url, count, arguments.enhance)))
            print(row(results[-1]), flush=True)
    (arguments.out / "crowd.json").write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
