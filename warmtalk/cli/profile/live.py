"""Profiles a graph that serves others: it reads what the replicas have recorded, and sends no speech."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np

from models.errors import ConfigError, StageError
from warmtalk.cli.profile.alone import row_of
from warmtalk.cli.profile.driving import APP
from warmtalk.cli.profile.statistics import Measure
from warmtalk.cli.tables import STAGES
from warmtalk.client.calls import authorization

SAMPLE_S = 2.0
Sample = dict[str, list[dict[str, Any]]]  # by stage: the statistics of every replica
Step = Callable[[str], None]

PARTS = ("queue_ms", "compute_ms")


def profile_live(address: str, seconds: float, step: Step = lambda name: None) -> dict[str, dict[str, Any]]:
    """The rows of the stages. address: `http://host:port` of a server, or of its Ray (`auto`, `host:6379`).

    Raises StageError, ConfigError.
    """
    if address.startswith(("http://", "https://")):
        return asyncio.run(_sampled(_over_http(address), seconds, step))
    from ray.exceptions import RayError

    _connect(address)
    try:
        return asyncio.run(_sampled(_over_ray, seconds, step))
    except RayError as error:
        raise StageError(f"The graph at {address} does not answer: {error}.", "Is it running?") from error


async def _sampled(sample: Callable[[], Awaitable[Sample]], seconds: float, step: Step) -> dict[str, dict[str, Any]]:
    samples, end_s = [], time.monotonic() + seconds
    while True:
        samples.append(await sample())
        step(f"{len(samples)} samples")
        if time.monotonic() + SAMPLE_S > end_s:
            return rows_of(samples)
        await asyncio.sleep(SAMPLE_S)


def _over_http(address: str) -> Callable[[], Awaitable[Sample]]:
    async def sample() -> Sample:
        async with httpx.AsyncClient(base_url=address, headers=authorization(), timeout=10) as client:
            answer = await client.get("/admin/state")
        if answer.status_code in (401, 403):
            raise ConfigError(f"{address} requires an API key.", "Export it as WARMTALK_API_KEY.")
        if answer.status_code != 200:
            raise StageError(f"{address}/admin/state answered {answer.status_code}.", "Is it a WarmTalk server?")
        return {stage: facts["replicas"] for stage, facts in answer.json()["stages"].items()}

    return sample


def _connect(address: str) -> None:
    import ray

    try:
        ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray raises many types for an address that does not answer
        remedy = "Start the graph (`warmtalk serve`), or leave out --address to profile one on this machine."
        raise StageError(f"No Ray cluster answers at {address}: {error}.", remedy) from error


async def _over_ray() -> Sample:
    from ray import serve

    from warmtalk.cli.profile.graph import every_stats

    application = serve.status().applications.get(APP)
    if application is None:
        raise StageError(f"That Ray runs no application named {APP!r}.", "Start the graph: `warmtalk serve`.")
    stages = [stage for stage in STAGES if stage in application.deployments]
    return dict(zip(stages, await asyncio.gather(*map(every_stats, stages)), strict=True))


# --- rows


def rows_of(samples: list[Sample]) -> dict[str, dict[str, Any]]:
    """The rows. Percentiles are of the last minute: p50 weighted by calls, p95 and p99 of the worst replica.

    Stages without calls have only memory and start.
    """
    rows = {}
    transfer = [_merged([stats["transfer"] for stats in sample.get("Stitch", ())]) for sample in samples]
    for stage in (stage for stage in STAGES if samples[-1].get(stage)):
        latest = samples[-1][stage]
        largest = max(latest, key=lambda stats: stats["gpu_mb"] or stats["rss_mb"])
        row: dict[str, Any] = {
            "replicas": len(latest),
            **row_of(largest, int(latest[0]["config"].get("batch_size", 0))),
        }
        row["queued"] = max(sum(stats["queued"] for stats in sample.get(stage, ())) for sample in samples)
        calls = [[stats["recent"] for stats in sample.get(stage, ())] for sample in samples]
        row["calls"], row["frames"] = (sum(recent[key] for recent in calls[-1]) for key in ("calls", "frames"))
        row["live_frames_per_s"] = round(sum(recent["frames"] / recent["span_s"] for recent in calls[-1]), 1)
        found = {part: [_weighted(part, recents) for recents in calls] for part in PARTS}
        found["transfer_ms"] = [_weighted("transfer_ms", sample.get(stage, [])) for sample in transfer]
        for part, values in found.items():
            measured = [value for value in values if value]
            if measured:
                row[part] = measured[-1]
                row.setdefault("medians", {})[part] = Measure.of([value["p50"] for value in measured]).to_dict()
        rows[stage] = row
    return rows


def _merged(replicas: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By stage: the transfer times that each replica of Stitch has recorded."""
    merged: dict[str, list[dict[str, Any]]] = {}
    for replica in replicas:
        for stage, recent in replica.items():
            merged.setdefault(stage, []).append(recent)
    return merged


def _weighted(part: str, recents: list[dict[str, Any]]) -> dict[str, float]:
    """p50 weighted by calls; p95 and p99 of the worst replica. Empty without calls."""
    known = [recent for recent in recents if recent["calls"] and part in recent]
    if not known:
        return {}
    middle = float(np.average([recent[part]["p50"] for recent in known], weights=[recent["calls"] for recent in known]))
    return {"p50": round(middle, 2), **{key: max(recent[part][key] for recent in known) for key in ("p95", "p99")}}
