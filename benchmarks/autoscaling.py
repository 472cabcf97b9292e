"""Compares the autoscaling policy of LipSync with Serve's own, which counts requests, under the same burst of sessions.

    python -m benchmarks.autoscaling                       # on any machine, about five minutes
    python -m benchmarks.autoscaling --png docs/images/autoscaling.png

Only LipSync is deployed, with the settings of configs/cluster.yaml and an engine that waits FRAME_S per frame and does
not compute, so that replicas do not compete for cores. A replica takes START_S to start. Sessions speak without a pause
and keep AHEAD_S made, with four chunks in flight, as Stitch does. A chunk is late when it arrives after a player that
started with the first one needs it. Steady: the seconds from the burst until no chunk is late any more.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve

from benchmarks.common import argument_parser
from configs.serve_file import deployment_of, load_serve_config
from deployments.common.paths import builtin_avatars, output_path
from deployments.common.stage import Stamped
from deployments.common.urgency import Urgency
from deployments.lipsync import LipSync
from models.avatar.store import AvatarStore
from models.types import CROP_PX, FeatureWindows, Float16, UInt8

APP, AVATAR = "autoscaling", "presenter"
FPS, CHUNK, WINDOW, AHEAD_S = 25, 16, 4, 4.0
FRAME_S, START_S = 1 / 100, 5.0  # one replica makes 100 frames/s: four sessions
FEW, MANY = 2, 14
PHASES_S = (15.0, 60.0, 45.0)  # few sessions, many, few
SLACK_S = 0.3  # playback buffer
POLICIES = ("requests", "work")


class SleepingFaces:
    """A lip-sync engine that waits as long as a device would compute, and returns grey faces."""

    def __init__(self) -> None:
        avatar = AvatarStore(output_path("results/avatars"), builtin_avatars()).load(AVATAR, frames=False)
        self.vae_fingerprint = avatar.vae_fingerprint

    @classmethod
    def load(cls, *paths: Any, **options: Any) -> SleepingFaces:
        time.sleep(START_S)
        return cls()

    def generate(self, latents: Float16, windows: Float16) -> UInt8:
        time.sleep(FRAME_S * len(latents))
        return np.full((len(latents), CROP_PX, CROP_PX, 3), 128, np.uint8)


@dataclass(slots=True)
class Run:
    """What happened under one policy. Times in seconds from the start of the load."""

    late_s: list[float] = field(default_factory=list)  # when late chunks were due
    chunks: int = 0
    replicas: list[tuple[float, int]] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        burst_s, end_s = PHASES_S[0], sum(PHASES_S)
        steps = zip(self.replicas, [*self.replicas[1:], (end_s, 0)], strict=True)
        counts = [count for _, count in self.replicas]
        return {
            "late fragments": len(self.late_s),
            "fragments": self.chunks,
            "replica-seconds": sum((after_s - at_s) * count for (at_s, count), (after_s, _) in steps),
            "seconds until steady": max([0.0, *(late_s - burst_s for late_s in self.late_s)]),
            "most replicas": max(counts),
            "changes of the number": sum(a != b for a, b in itertools.pairwise(counts)),
        }


async def session(name: str, seconds: float, began_s: float, run: Run) -> None:
    """One session that speaks for `seconds`: chunks in order, WINDOW in flight, at most AHEAD_S ahead."""
    handle = serve.get_deployment_handle("LipSync", APP)
    windows = FeatureWindows(np.zeros((CHUNK, 50, 384), np.float16), FPS)
    started_s, flying = 0.0, deque[tuple[float, asyncio.Task[float]]]()

    async def chunk(position: int, due_s: float) -> float:
        urgency = Urgency(due_s - time.monotonic(), CHUNK / FPS, background=False)
        await handle.generate.remote(Stamped(windows, ()), 0, CHUNK, AVATAR, position, 0, urgency, name)
        return time.monotonic()

    async def take() -> None:
        nonlocal started_s
        at_s, task = flying.popleft()
        came_s = await task
        started_s = started_s or came_s
        run.chunks += 1
        if came_s > started_s + at_s + SLACK_S:
            run.late_s.append(started_s + at_s - began_s)

    for position in range(0, round(seconds * FPS), CHUNK):
        at_s = position / FPS  # of its first frame
        if started_s and (wait_s := started_s + at_s - AHEAD_S - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        due_s = (started_s or time.monotonic()) + at_s
        flying.append((at_s, asyncio.create_task(chunk(position, due_s))))
        if len(flying) == WINDOW:
            await take()
    while flying:
        await take()


async def watch_replicas(run: Run, began_s: float) -> None:
    """Note the number of running replicas twice a second, until cancelled."""
    while True:
        states = serve.status().applications[APP].deployments["LipSync"].replica_states
        run.replicas.append((time.monotonic() - began_s, int(states.get("RUNNING", 0))))
        await asyncio.sleep(0.5)


async def load(run: Run) -> None:
    """FEW sessions all the time, and MANY in the middle phase."""
    began_s = time.monotonic()
    watching = asyncio.create_task(watch_replicas(run, began_s))
    few = [asyncio.create_task(session(f"few-{k}", sum(PHASES_S), began_s, run)) for k in range(FEW)]
    await asyncio.sleep(PHASES_S[0])
    many = [asyncio.create_task(session(f"many-{k}", PHASES_S[1], began_s, run)) for k in range(MANY - FEW)]
    await asyncio.gather(*few, *many)
    watching.cancel()


def measure(policy: str) -> Run:
    """Deploy LipSync with that policy, and put the load on it."""
    given = dict(deployment_of(load_serve_config("cluster"), "LipSync"))
    scaling = given["autoscaling_config"] | {"max_replicas": 8, "downscale_delay_s": 10}
    if policy == "requests":
        scaling.pop("policy")
    config = {"engine": f"{__name__.replace('__main__', 'benchmarks.autoscaling')}:SleepingFaces", "batch_size": CHUNK}
    deployment = serve.deployment(LipSync, name="LipSync").options(
        user_config=config, autoscaling_config=scaling, ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=given["max_ongoing_requests"], graceful_shutdown_timeout_s=5,
    )  # fmt: skip
    serve.run(deployment.bind(), name=APP, route_prefix=None)
    run = Run()
    asyncio.run(load(run))
    serve.delete(APP)
    return run


def plot(runs: dict[str, Run], path: Path) -> None:
    """Replicas over time, and when fragments were late."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes, colours = figure.subplots(), {"requests": "tab:orange", "work": "tab:blue"}
    names = {"requests": "Serve's own policy (requests)", "work": "ByDeadline (work that is due)"}
    for offset, (policy, run) in enumerate(runs.items()):
        times_s, counts = zip(*run.replicas, strict=True)
        late = len(run.late_s)
        axes.step(times_s, counts, where="post", color=colours[policy], label=f"{names[policy]}: {late} late fragments")
        axes.plot(run.late_s, [-0.35 - 0.25 * offset] * late, "|", color=colours[policy])
    needed = [(0.0, FEW), (PHASES_S[0], MANY), (PHASES_S[0] + PHASES_S[1], FEW), (sum(PHASES_S), FEW)]
    axes.step(*zip(*((at_s, count * FPS * FRAME_S) for at_s, count in needed), strict=True), where="post",
              color="grey", linestyle=":", label="replicas' worth of work")  # fmt: skip
    axes.set(xlabel="seconds", ylabel="replicas of LipSync; marks below: late fragments")
    axes.legend(loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--png", type=Path, help="draw the replicas over time")
    arguments = parser.parse_args()
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    try:
        runs = {policy: measure(policy) for policy in POLICIES}
    finally:
        serve.shutdown()
        ray.shutdown()
    figures = {policy: run.figures() for policy, run in runs.items()}
    print(f"| figure | {' | '.join(POLICIES)} |\n| --- | --- | --- |")
    for name in figures[POLICIES[0]]:
        print(f"| {name} | {' | '.join(f'{figures[policy][name]:.0f}' for policy in POLICIES)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    if arguments.png:
        plot(runs, arguments.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
