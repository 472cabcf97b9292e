"""Measures how many sessions one machine can serve in real time at once: the whole graph, over HTTP.

    python -m benchmarks.concurrency --sessions 1 2    # configs/demo.yaml, on any machine
    python -m benchmarks.concurrency --gpu --out out/gpu --sessions 1 4 8 16   # real sizes, random weights, CUDA
    python -m benchmarks.concurrency --gpu --out out/gpu --enhance --replicas LipSync=2 Stitch=6
    python -m benchmarks.concurrency --gpu --out out/gpu --watched 120 --avatar wide --sessions 16 24 32

All sessions speak the same text at the same time and stream it. Reported per number of sessions: total frames per
second, time to the first fragment, and the longest stall in a player that starts with its first fragment. A session
keeps up if that stall is at most BUFFER_S.

--watched: each session has a viewer of live.mp4 and speaks without a pause for that many seconds. The sessions begin
one after another within START_S. One keeps up if no fragment of it is late: speech was never held, each frame arrived
before a player that started with its first frame needed it, and all were enhanced as asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from ray import serve

from benchmarks.common import argument_parser, fragments_end
from benchmarks.gpu import adapt
from benchmarks.viewers import Viewer, frames_in, lateness_s
from configs.serve_file import deployment_of
from models.runtime.cuda_graphs import COMPILE_MODES
from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.profile.driving import APP

TEXT = (
    "Good morning, and welcome to the programme. Today many of us speak at the same time, each with a face of its own. "
    "Nobody has to wait for anybody else, as long as the machine is fast enough. Let us see how long that lasts."
)
TEXT_S = 12.0  # less than the time in which TEXT is spoken
FPS = 25
BUFFER_S = 0.3  # playback buffer of a live viewer
START_S = 4.0  # watched sessions begin to speak one after another within this time
CPUS = {"num_cpus": 64}  # logical CPUs for scheduling, so that no replica waits for one
REPLICA = re.compile(r"ServeReplica:\w+:(\w+)|(ProxyActor|haproxy|raylet|gcs_server)")


# --- the graph


@dataclass(frozen=True, slots=True)
class Setup:
    """How the graph of configs/gpu.yaml is changed. `gpu` False: configs/demo.yaml, unchanged but for the replicas.

    small: tiny networks, to test the benchmarks. batch: faces per call of LipSync; None: as in the config. lipsync:
    further values of its user_config. gpus: more than 1: a fixed number of replicas of LipSync, each on its own GPU.
    """

    out: Path
    gpu: bool = True
    device: str = "cuda"
    small: bool = False
    enhance: bool = False
    compiled: str = "graphs"
    batch: int | None = None
    replicas: tuple[tuple[str, int], ...] = ()
    lipsync: dict[str, Any] = field(default_factory=dict)
    gpus: int = 1
    port: int = 8024

    @property
    def most_replicas(self) -> int:
        """Of one stage."""
        return max((count for _, count in self.replicas), default=1)

    def make(self) -> None:
        """Create weights and avatars, in a process of their own, which frees its memory. Existing ones are kept."""
        if not self.gpu or (self.out / "made.json").is_file():
            return
        make = [sys.executable, "-m", "benchmarks.gpu", "--make-only", "--out", str(self.out), "--device", self.device]
        subprocess.run([*make, *(["--small"] if self.small else [])], check=True)

    def graph(self) -> LocalGraph:
        """The graph, not started yet."""
        self.make()
        return LocalGraph("gpu" if self.gpu else "demo", self.port, self.out, self.change, CPUS)

    def change(self, config: dict[str, Any]) -> None:
        if self.gpu:
            engine = ("small" if self.small else "gfpgan") if self.enhance else None
            compiled = self.compiled if self.device == "cuda" else "off"
            adapt(self.out.resolve() / "weights", self.device, engine, compiled, self.batch)(config)
            deployment_of(config, "LipSync")["user_config"] |= self.lipsync
            # refuse none: find the limit. One thread per process, because two wait for one another's Python code
            deployment_of(config, "Stitch")["user_config"] |= {"max_live_load": None, "threads": 1}
            deployment_of(config, "TTS")["user_config"]["max_chars"] = 100_000  # watched sessions speak for minutes
        for stage, count in self.replicas:
            deployment = deployment_of(config, stage)
            alone = stage == "LipSync" and self.gpus > 1
            if alone:
                del deployment["autoscaling_config"]  # a change of it would restart the stage
            if alone or "num_replicas" in deployment:
                deployment["num_replicas"] = count
            else:
                deployment["autoscaling_config"] |= {"min_replicas": count, "max_replicas": count}
            if share := deployment["ray_actor_options"].get("num_gpus"):
                # more than half of a GPU: no two replicas on one
                deployment["ray_actor_options"]["num_gpus"] = 0.55 if alone else round(share / count, 3)


# --- sessions that stream as fast as they are made


@dataclass(frozen=True, slots=True)
class Stream:
    """The result of one session: time to the first fragment, frames, longest stall, total time."""

    ttff_ms: float
    frames: int
    stall_s: float
    took_s: float


async def speak(
    client: httpx.AsyncClient, session_id: str, enhance: bool, avatar_id: str | None = None, text: str = TEXT
) -> Stream:
    """Speak a text in a new session. Raises httpx.HTTPStatusError if the request is refused."""
    body = {"text": text, "session_id": session_id, "stream": True, "enhance": enhance}
    body |= {"avatar_id": avatar_id} if avatar_id else {}
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


async def run_sessions(url: str, count: int, enhance: bool, avatar_id: str | None = None) -> dict[str, Any]:
    """Speak in `count` new sessions at the same time; the figures over all of them."""
    async with http_client(url, count) as client:
        before = await _lipsync()
        begin_s, name = time.perf_counter(), uuid.uuid4().hex[:8]
        streams = await asyncio.gather(*(speak(client, f"{name}-{k}", enhance, avatar_id) for k in range(count)))
        took_s = time.perf_counter() - begin_s
        after = await _lipsync()
        await _remove(client, [f"{name}-{k}" for k in range(count)])
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
        "all_ttff_ms": [stream.ttff_ms for stream in streams],
    }


def http_client(url: str, sessions: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=4 * sessions, max_keepalive_connections=4 * sessions)
    return httpx.AsyncClient(base_url=url, timeout=300, limits=limits)


async def _remove(client: httpx.AsyncClient, names: list[str]) -> None:
    for name in names:
        await client.delete(f"/sessions/{name}")


async def _lipsync() -> dict[str, Any]:
    """Counters of one LipSync replica."""
    return dict(await serve.get_deployment_handle("LipSync", APP).stats.remote())


# --- watched sessions


@dataclass(frozen=True, slots=True)
class Watched:
    """What one viewer saw. late_frames: they arrived after a player that started with its first frame needed them.

    holds: how often speech waited because its next frames were not made. reduced_frames: shown with less enhancement
    than asked for. refused: the server did not let it speak.
    """

    frames: int
    late_frames: int
    late_s: float
    holds: int
    held_s: float
    spoken_s: float
    reduced_frames: int = 0
    refused: bool = False

    @property
    def kept_up(self) -> bool:
        return not (self.refused or self.late_frames or self.holds or self.reduced_frames)


async def watch(url: str, count: int, seconds: float, enhance: bool, avatar_id: str | None = None) -> dict[str, Any]:
    """`count` watched sessions that speak for at least `seconds` without a pause; the figures over all of them."""
    names = [f"{uuid.uuid4().hex[:8]}-{k}" for k in range(count)]
    async with http_client(url, count) as client:
        viewers = [await _open(client, name, avatar_id) for name in names]
        before, before_s, late = stage_cpu_s(), time.perf_counter(), await _late(client)
        texts = [_long_text(seconds, k) for k in range(count)]
        delays_s = [START_S * k / count for k in range(count)]
        speaking = zip(names, viewers, texts, delays_s, strict=True)
        rows = await asyncio.gather(*(_speak_watched(client, *session, enhance) for session in speaking))
        took_s, after = time.perf_counter() - before_s, stage_cpu_s()
        late = await _late(client) - late
        await _remove(client, names)
    spoken_s = sum(row.spoken_s for row in rows)
    return {
        "sessions": count,
        "seconds": seconds,
        "keep_up": sum(row.kept_up for row in rows),
        "refused": sum(row.refused for row in rows),
        "late_fragments": late,
        "late_frames": sum(row.late_frames for row in rows),
        "late_s": max(row.late_s for row in rows),
        "reduced_frames": sum(row.reduced_frames for row in rows),
        "holds": sum(row.holds for row in rows),
        "held_s": sum(row.held_s for row in rows),
        "frames_per_s": spoken_s * FPS / took_s,
        "cores": {stage: round((after[stage] - before.get(stage, 0.0)) / took_s, 2) for stage in sorted(after)},
        "rows": [asdict(row) for row in rows],
    }


async def _open(client: httpx.AsyncClient, name: str, avatar_id: str | None) -> Viewer:
    body = {"session_id": name} | ({"avatar_id": avatar_id} if avatar_id else {})
    (await client.post("/sessions", json=body)).raise_for_status()
    viewer = Viewer(client, name, data=False)
    await viewer.started.wait()
    return viewer


async def _speak_watched(
    client: httpx.AsyncClient, name: str, viewer: Viewer, text: str, delay_s: float, enhance: bool
) -> Watched:
    await asyncio.sleep(delay_s)
    answer = await client.post("/speak", json={"text": text, "session_id": name, "enhance": enhance})
    recording = await viewer.stop()
    late_s = lateness_s(recording.came_s)
    late = late_s > 0
    if answer.status_code == 429:
        return Watched(len(late_s), int(late.sum()), float(late_s.max()), 0, 0.0, 0.0, refused=True)
    facts = answer.raise_for_status().json()
    if "live" not in facts:
        raise RuntimeError(f"The viewer of {name} lost its stream: the session spoke unwatched.")
    live = facts["live"]
    spoken_s = live["shown_frames"] / FPS
    seen = len(late_s), int(late.sum()), float(late_s.max())
    return Watched(*seen, live["holds"], live["held_s"], spoken_s, facts["reduced_frames"])


def _long_text(seconds: float, turn: int) -> str:
    """TEXT's sentences for at least `seconds`, beginning with another one per session."""
    sentences = re.findall(r"[^.]+\.", TEXT)
    sentences = [sentence.strip() for sentence in sentences]
    count = max(1, round(seconds / TEXT_S * len(sentences)))
    return " ".join(sentences[(turn + k) % len(sentences)] for k in range(count))


async def _late(client: httpx.AsyncClient) -> int:
    """Fragments that arrived at the ingress after they were due, of the sessions watched now."""
    return int((await client.get("/footprint")).raise_for_status().json()["live"]["late"])


def stage_cpu_s() -> dict[str, float]:
    """CPU seconds of this process and its descendants so far, by stage."""
    spent: dict[str, float] = defaultdict(float)
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times, match = process.cpu_times(), REPLICA.search(" ".join(process.cmdline()))
            name = "this program" if process == own else match[1] or match[2] if match else "other"
            spent[name] += times.user + times.system
    return dict(spent)


async def most_watched(
    url: str, counts: list[int], seconds: float, enhance: bool, avatar_id: str | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """The largest number of watched sessions that all keep up, and the figures of each trial.

    counts: in increasing order. Of several, the first that fails is followed by the middle between it and the last
    that held.
    """
    held, results = 0, []
    for count in counts:
        print(f"{count} watched sessions begin", flush=True)
        results.append(await watch(url, count, seconds, enhance, avatar_id))
        print(watched_row(results[-1]), flush=True)
        if results[-1]["keep_up"] < count:
            if count - held > 1 and len(counts) > 1:
                results.append(await watch(url, (held + count) // 2, seconds, enhance, avatar_id))
                print(watched_row(results[-1]), flush=True)
                held = (held + count) // 2 if results[-1]["keep_up"] == (held + count) // 2 else held
            break
        held = count
    return held, results


# --- command line


def replicas(text: str) -> tuple[str, int]:
    """`LipSync=2` → ("LipSync", 2). Raises ValueError."""
    stage, count = text.split("=")
    return stage, int(count)


def row(result: dict[str, Any]) -> str:
    """One line of the output."""
    return (
        f"{result['sessions']:3.0f} sessions: {result['frames_per_s']:5.0f} frames/s, TTFF {result['ttff_ms']:5.0f} ms "
        f"(worst {result['ttff_max_ms']:5.0f}), worst RTF {result['rtf_max']:.2f}, longest stall "
        f"{1e3 * result['stall_s']:5.0f} ms, {result['keep_up']:.0f} keep up, {result['faces_a_call']:.1f} faces a call"
    )


def watched_row(result: dict[str, Any]) -> str:
    """One line of the output."""
    cores = ", ".join(f"{stage} {used:.1f}" for stage, used in result["cores"].items() if used >= 0.05)
    return (
        f"{result['sessions']:3.0f} watched for {result['seconds']:.0f} s: {result['keep_up']} keep up, "
        f"{result['late_frames']} frames late (by {result['late_s']:.2f} s), "
        f"{result['late_fragments']} fragments late, {result['holds']} holds ({result['held_s']:.1f} s), "
        f"{result['reduced_frames']} frames reduced, "
        f"{result['refused']} refused, {result['frames_per_s']:.0f} frames/s; cores: {cores}"
    )


def add_setup_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how the graph runs."""
    parser.add_argument("--out", type=Path, default=Path("out/crowd"), help="folder for weights, avatars and results")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny networks, to test this script")
    parser.add_argument("--compile", default="graphs", choices=COMPILE_MODES, help="LipSync and GFPGAN, on CUDA")
    parser.add_argument("--port", type=int, default=8024)
    parser.add_argument("--batch", type=int, help="faces per call of LipSync; default: as in configs/gpu.yaml")
    parser.add_argument(
        "--replicas", type=replicas, nargs="*", default=[], metavar="STAGE=N", help="number of replicas"
    )


def setup_of(arguments: argparse.Namespace, **values: Any) -> Setup:
    given = {"device": arguments.device, "small": arguments.small, "compiled": arguments.compile}
    given |= {"batch": arguments.batch, "replicas": tuple(arguments.replicas), "port": arguments.port}
    return Setup(arguments.out.resolve(), **(given | values))


def main() -> int:
    parser = argument_parser(__doc__)
    add_setup_arguments(parser)
    parser.add_argument("--gpu", action="store_true", help="use configs/gpu.yaml with random weights of the real sizes")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4], help="numbers of sessions to measure")
    parser.add_argument("--enhance", action="store_true", help="enhance the faces, with --gpu by GFPGAN")
    parser.add_argument("--watched", type=float, metavar="SECONDS", help="watched sessions that speak for this long")
    parser.add_argument("--avatar", help="presenter (512² px), or with --gpu wide (1280 × 720 px)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    setup = setup_of(arguments, gpu=arguments.gpu, enhance=arguments.enhance)
    run = (arguments.enhance, arguments.avatar)
    results = []
    with setup.graph() as graph:
        asyncio.run(run_sessions(graph.url, max(arguments.sessions), *run))  # warm up
        for count in arguments.sessions:
            if arguments.watched:
                results.append(asyncio.run(watch(graph.url, count, arguments.watched, *run)))
            else:
                results.append(asyncio.run(run_sessions(graph.url, count, *run)))
            print((watched_row if arguments.watched else row)(results[-1]), flush=True)
    (arguments.out / "crowd.json").write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
