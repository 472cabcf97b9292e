"""Measures the project's speed targets on one GPU, beside MuseTalk's own way of working at the same shapes.

    python -m benchmarks.targets                                # all rows; about half an hour on one H200
    python -m benchmarks.targets --only ttff ttff-20 --repeats 10
    python -m benchmarks.targets --only sessions-cropped sessions-tiny --seconds 30 --steps 1    # only the targets
    python -m benchmarks.targets --small --device cpu --seconds 3 --steps 0.04 --replicas    # tests this script

Networks of the real sizes with random weights, and configs/gpu.yaml with the replicas below. Prints per row: target,
measured, their ratio, and MuseTalk's figure (benchmarks/musetalk_loop.py). A row that this machine cannot measure says
why. Exit status 1 if a measured row misses its target, 2 if no row was measured.

The rows of the stages call LipSync and Enhance in the running graph, from CALLERS sessions at a time. A number of
sessions is the largest of --steps times the target, or the middle after the first failure, of which each keeps up
(benchmarks/concurrency.py) while it is watched and speaks for --seconds. TTFF is measured over HTTP, from the request
to the first fragment, each time in a new session.
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
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve

from benchmarks.common import argument_parser
from benchmarks.concurrency import (
    TEXT,
    Setup,
    add_setup_arguments,
    http_client,
    most_watched,
    replicas,
    run_sessions,
    setup_of,
    speak,
)
from benchmarks.concurrency import row as streams_row
from benchmarks.target_table import BY_KEY, CROPPED, CROWD, FULL, ROWS, TINY, Results, Row, missed, table
from configs.serve_file import deployment_of
from deployments.common.messages import SpeakRequest
from deployments.common.stage import Stamped
from deployments.stitch.metrics import CALL_PARTS
from models.types import FaceCrops, FeatureWindows
from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.profile.driving import APP

WIDE = "wide"  # the avatar of 1280 × 720 px
CALLERS, CHUNK = 32, 16  # calls of a stage at a time, frames per call
REPLICAS = (("TTS", 4), ("Stitch", 14))  # for 16 cores
SENTENCE, SHORT = "Good morning, and welcome to the programme.", "Hello."  # the second for tiny networks on a CPU
STEPS = [1.0, 4 / 3, 5 / 3, 2.0]  # numbers of sessions that are tried, as multiples of the target
STREAMS = 30  # sessions per GPU that stream as fast as they are made
GPU = "there is no CUDA device"


@dataclass(slots=True)
class Bench:
    """The rows that are measured, how, and on which graph."""

    setup: Setup
    rows: tuple[Row, ...]
    seconds: float
    row_seconds: dict[str, int]  # of single rows
    steps: list[float]
    repeats: int
    stage_s: float
    manual: bool
    results: Results
    save: Callable[[], None] = lambda: None  # called after each row

    @property
    def sentence(self) -> str:
        return SHORT if self.setup.small and self.setup.device == "cpu" else SENTENCE

    def wanted(self, *keys: str) -> bool:
        return any(row.key in keys for row in self.rows)

    def run(self) -> None:
        with self.results.attempt(*(row.key for row in self.rows)):
            self.setup.make()
        if self.results.notes:
            return
        if self.manual:
            with self.results.attempt():
                self.results.manual = manual_figures(self.setup)
        single = [row for row in self.rows if row.key != "two-gpus"]
        if single:
            with self.results.attempt(*(row.key for row in single)):
                self._one_gpu(single)
        if self.wanted("two-gpus"):
            with self.results.attempt("two-gpus"):
                self._two_gpus()

    # --- one GPU

    def _one_gpu(self, rows: list[Row]) -> None:
        """One graph; LipSync gets another decoder between the rows."""
        settings = [setting for setting in (CROPPED, TINY, FULL) if any(row.lipsync == setting for row in rows)]
        enhance = self.wanted("enhance", "sessions-gfpgan")
        setup = replace(self.setup, enhance=enhance, lipsync={**self.setup.lipsync, **settings[0]})
        begin_s = time.perf_counter()
        with setup.graph() as graph:
            self.results.details["ready_s"] = time.perf_counter() - begin_s
            print(f"ready after {self.results.details['ready_s']:.0f} s", flush=True)
            for setting in settings:
                keys = {row.key for row in rows if row.lipsync == setting}
                with self.results.attempt(*keys):
                    if setting is not settings[0]:
                        change_lipsync(graph, setting)
                    asyncio.run(warm_up(graph.url, self.sentence, self.setup.most_replicas, enhance))
                    asyncio.run(self._measure(graph, keys))

    async def _measure(self, graph: LocalGraph, keys: set[str]) -> None:
        steps: list[tuple[str, Callable[[], Awaitable[float]]]] = [
            *((key, self._drive_lipsync) for key in ("lipsync-cropped", "lipsync-full", "lipsync-tiny")),
            ("enhance", self._drive_enhance),
            ("ttff", lambda: self._ttff(graph.url)),
            ("ttff-20", lambda: self._crowd(graph.url)),
            ("sessions-cropped", lambda: self._sessions("sessions-cropped", graph.url, False)),
            ("sessions-tiny", lambda: self._sessions("sessions-tiny", graph.url, False)),
            ("sessions-gfpgan", lambda: self._sessions("sessions-gfpgan", graph.url, True)),
        ]
        for key, step in steps:
            wanted = key in keys or (key == "ttff" and "ttff-p95" in keys)
            if wanted:
                with self.results.attempt(key):
                    self.results.values[key] = await step()
                    print(f"{key}: {self.results.values[key]:.4g}", flush=True)
                self.save()

    async def _drive_lipsync(self) -> float:
        windows = FeatureWindows(np.random.default_rng(0).normal(size=(CHUNK, 50, 384)).astype(np.float16), 25)
        handle = serve.get_deployment_handle("LipSync", APP)

        async def call(caller: int, number: int) -> None:
            position = 40 * caller + CHUNK * number
            await handle.generate.remote(Stamped(windows, ()), 0, CHUNK, WIDE, position, 0, session_id=f"c{caller}")

        return await per_second(call, self.stage_s, 2 if self.setup.device == "cpu" else CALLERS)

    async def _drive_enhance(self) -> float:
        faces = np.random.default_rng(0).integers(0, 256, (CHUNK, 256, 256, 3), dtype=np.uint8)
        handle = serve.get_deployment_handle("Enhance", APP)

        async def call(caller: int, number: int) -> None:
            crops = FaceCrops(faces, 0, WIDE, np.arange(CHUNK) + caller)
            await handle.restore.remote(Stamped(crops, ()), session_id=f"c{caller}")

        return await per_second(call, self.stage_s, 2 if self.setup.device == "cpu" else CALLERS)

    async def _ttff(self, url: str) -> float:
        """The median over new sessions, one at a time; also sets the 95th percentile and where the time goes."""
        name, times_ms, outside_ms = f"one-{time.time_ns()}", list[float](), list[float]()
        async with http_client(url, 4) as client:
            for number in range(self.repeats):
                session_id = f"{name}-{number}"
                times_ms.append((await speak(client, session_id, False, text=self.sentence)).ttff_ms)
                facts = (await client.get(f"/sessions/{session_id}")).raise_for_status().json()
                outside_ms.append(times_ms[-1] - facts["last"]["ttff_ms"])
        self.results.details["ttff_ms"] = times_ms
        self.results.values["ttff"] = statistics.median(times_ms)
        self.results.values["ttff-p95"] = float(np.quantile(times_ms, 0.95))
        parts = await first_fragment_parts(self.repeats, self.sentence)
        parts = self.results.details["ttff_parts_ms"] = {"HTTP and ingress": statistics.median(outside_ms), **parts}
        for part, spent_ms in parts.items():
            print(f"  {part}: {spent_ms:.1f} ms", flush=True)
        return self.results.values["ttff"]

    async def _crowd(self, url: str) -> float:
        results = [await run_sessions(url, CROWD, False) for _ in range(3)]
        times_ms = [ms for result in results for ms in result["all_ttff_ms"]]
        self.results.details["ttff-20"] = results
        return float(np.quantile(times_ms, 0.95))

    async def _sessions(self, key: str, url: str, enhance: bool) -> float:
        counts, seconds = self._counts(key), self.row_seconds.get(key, self.seconds)
        most, trials = await most_watched(url, counts, seconds, enhance, WIDE)
        self.results.details[key] = trials
        kept = ", ".join(f"{trial['keep_up']} of {trial['sessions']}" for trial in trials)
        self.results.notes[key] = f"{seconds:g} s, {kept} kept up"
        return most

    def _counts(self, key: str) -> list[int]:
        return [max(1, round(step * BY_KEY[key].target)) for step in self.steps]

    # --- two GPUs

    def _two_gpus(self) -> None:
        """The frames per second of sessions that stream, with two replicas of LipSync, each on a GPU, and with one."""
        import torch

        if torch.cuda.device_count() < 2:
            self.results.notes["two-gpus"] = f"this machine has {torch.cuda.device_count()} GPUs"
            return
        others = tuple((stage, 2 * count) for stage, count in self.setup.replicas)
        setup = replace(self.setup, gpus=2, replicas=(*others, ("LipSync", 2)), lipsync=dict(CROPPED))
        made = {}
        with setup.graph() as graph:
            asyncio.run(warm_up(graph.url, self.sentence, setup.most_replicas, False))
            for gpus in (2, 1):
                scale_lipsync(graph, gpus)
                result = asyncio.run(run_sessions(graph.url, gpus * STREAMS, False, WIDE))
                print(f"{gpus} GPUs: {streams_row(result)}", flush=True)
                made[gpus] = result["frames_per_s"]
                self.results.details[f"{gpus} GPUs"] = result
        self.results.values["two-gpus"] = made[2] / made[1]
        self.results.notes["two-gpus"] = f"{made[1]:.0f} and {made[2]:.0f} frames/s"


async def warm_up(url: str, text: str, replicas: int, enhance: bool) -> None:
    """Speak in both avatars, several times at once, so that every replica has spoken and loaded them.

    enhance: also speak for longer than the avatars' videos, because Enhance draws each frame's head once.
    """
    async with http_client(url, 2 * replicas) as client:
        for avatar_id in (None, WIDE):
            names = [f"warm-{time.time_ns()}-{number}" for number in range(2 * replicas)]
            await asyncio.gather(*(speak(client, name, False, avatar_id, text) for name in names))
        if enhance:
            await speak(client, f"warm-{time.time_ns()}", True, WIDE, text if text == SHORT else TEXT)


async def per_second(call: Callable[[int, int], Awaitable[None]], seconds: float, callers: int) -> float:
    """Frames per second of calls with CHUNK frames; each caller makes one at a time. The first second is left out."""
    done, until_s = list[float](), time.perf_counter() + 1.0 + seconds

    async def caller(index: int) -> None:
        number = 0
        while time.perf_counter() < until_s:
            await call(index, number)
            done.append(time.perf_counter())
            number += 1

    await asyncio.gather(*(caller(index) for index in range(callers)))
    counted = sum(until_s - seconds <= at_s <= until_s for at_s in done)
    return counted * CHUNK / seconds


async def first_fragment_parts(repeats: int, text: str) -> dict[str, float]:
    """Median milliseconds of each stage's first call, with its parts, and of what is left inside Stitch."""
    found: dict[str, list[float]] = {}
    for number in range(repeats):
        session_id = f"parts-{time.time_ns()}-{number}"
        handle = serve.get_deployment_handle("Stitch", APP).options(stream=True, session_id=session_id)
        request = SpeakRequest(session_id, text, enhance=False, calls=True)
        summary = None
        async for event in handle.speak.remote(request):
            summary = event.summary or summary
        assert summary is not None
        first: dict[str, Any] = {}
        for call in summary["calls"]:
            first.setdefault(call["stage"], call)
        rest_ms = summary["ttff_ms"] - sum(call["wall_ms"] for call in first.values())
        for stage, call in first.items():
            found.setdefault(stage, []).append(call["wall_ms"])
            for part in CALL_PARTS[:3]:
                found.setdefault(f"{stage}: {part.removesuffix('_ms')}", []).append(call[part])
        found.setdefault("rest of Stitch", []).append(rest_ms)
        found.setdefault("total", []).append(summary["ttff_ms"])
    return {part: statistics.median(values) for part, values in found.items()}


def change_lipsync(graph: LocalGraph, setting: dict[str, str]) -> None:
    """Give LipSync another decoder; return when it has it."""
    deployment_of(graph.config, "LipSync")["user_config"] |= setting
    graph.deploy(graph.config)
    handle, until_s = serve.get_deployment_handle("LipSync", APP), time.perf_counter() + 300
    while time.perf_counter() < until_s:
        with contextlib.suppress(Exception):  # it is being changed
            used = handle.stats.remote().result(timeout_s=5)["config"]
            if all(used[name] == value for name, value in setting.items()):
                return
        time.sleep(0.5)
    raise TimeoutError(f"LipSync did not change to {setting} within 300 s")


def scale_lipsync(graph: LocalGraph, count: int) -> None:
    """Give LipSync this number of replicas; return when they run, and no other."""
    deployment_of(graph.config, "LipSync")["num_replicas"] = count
    graph.deploy(graph.config)
    until_s = time.perf_counter() + 60
    while time.perf_counter() < until_s:
        states = serve.status().applications[APP].deployments["LipSync"].replica_states
        if {str(getattr(state, "value", state)): number for state, number in states.items()} == {"RUNNING": count}:
            return
        time.sleep(0.5)
    raise TimeoutError(f"LipSync has {states} after 60 s, not {count} replicas")


def manual_figures(setup: Setup) -> dict[str, float]:
    """MuseTalk's way by row, measured in a process of its own before the graph runs.

    One program speaks one utterance after another, so its number of sessions is its speed over 25 frames per second,
    and the last of CROWD sessions waits for all others.
    """
    command = [sys.executable, "-m", "benchmarks.musetalk_loop", "--out", str(setup.out), "--device", setup.device]
    command += ["--text", SENTENCE] if setup.small else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"MuseTalk's way: {json.dumps({key: round(value, 3) for key, value in figures.items()})}", flush=True)
    first_ms, all_ms = 1e3 * figures["first_frame_s"], 1e3 * figures["last_frame_s"]
    rows = {
        **dict.fromkeys(("lipsync-cropped", "lipsync-full"), figures["lipsync"]),
        **dict.fromkeys(("ttff", "ttff-p95"), first_ms),
        "ttff-20": (0.95 * CROWD - 1) * all_ms + first_ms,
        "sessions-cropped": int(figures["blended"] / 25),
    }
    if "gfpgan" in figures:
        rows |= {"enhance": figures["gfpgan"], "sessions-gfpgan": int(figures["enhanced"] / 25)}
    return rows


def main() -> int:
    parser = argument_parser(__doc__)
    add_setup_arguments(parser)
    parser.set_defaults(out=Path("out/targets"), compile="inductor", replicas=list(REPLICAS))
    keys = [row.key for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="ROW", help=", ".join(keys))
    parser.add_argument("--seconds", type=float, default=120.0, help="how long watched sessions speak")
    parser.add_argument("--row-seconds", type=replicas, nargs="+", default=[], metavar="ROW=N", help="of single rows")
    parser.add_argument("--steps", type=float, nargs="+", default=STEPS, help="numbers of sessions over the target")
    parser.add_argument("--repeats", type=int, default=40, help="utterances whose TTFF is measured")
    parser.add_argument("--stage-seconds", type=float, default=5.0, help="how long a stage is driven")
    parser.add_argument("--no-manual", action="store_true", help="leave out MuseTalk's way")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    rows = tuple(row for row in ROWS if row.key in arguments.only)
    results = Results()

    def save() -> None:
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(asdict(results), indent=1))

    with contextlib.suppress(KeyboardInterrupt):  # the table shows what was measured until then
        measure(arguments, rows, results, save)
    save()
    print(table(rows, results))
    if not results.values:
        print("No row was measured.")
        return 2
    return 1 if missed(rows, results) else 0


def measure(arguments: argparse.Namespace, rows: tuple[Row, ...], results: Results, save: Callable[[], None]) -> None:
    """Fill in the results of the rows. save: called after each row, because the program may be stopped."""
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        results.notes |= {row.key: GPU for row in rows}
        return
    setup = setup_of(arguments)
    setup.out.mkdir(parents=True, exist_ok=True)
    times = arguments.seconds, dict(arguments.row_seconds), arguments.steps, arguments.repeats, arguments.stage_seconds
    Bench(setup, rows, *times, not arguments.no_manual, results, save).run()


if __name__ == "__main__":
    sys.exit(main())
