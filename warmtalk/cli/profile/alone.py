"""Profiles one stage in this process, without Ray: its engine, its batches and its memory."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from configs.serve_file import deployment_of
from models.errors import ConfigError, InputError
from warmtalk.cli.profile.driving import DRIVEN, InProcess, drive
from warmtalk.cli.profile.networks import examine

CLASSES = {
    "TTS": "deployments.tts",
    "AudioFeatures": "deployments.features",
    "LipSync": "deployments.lipsync",
    "Enhance": "deployments.enhance",
}


def profile_alone(
    config: dict[str, Any], stage: str, sizes: Sequence[int], step: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """The row of a stage as JSON: `speed`, `memory`, `start_s`, `network`, `ceilings`. config: of a Serve file.

    Larger calls than the config's batch_size are driven with a larger one. Raises InputError, ConfigError, and what the
    stage raises.
    """
    if stage not in DRIVEN:
        reason = f"{stage} cannot run alone: it calls the other stages."
        raise InputError(reason, f"Profile the graph, or one of {', '.join(DRIVEN)}.")
    return asyncio.run(_profile(config, stage, sizes, step))


async def _profile(
    config: dict[str, Any], name: str, sizes: Sequence[int], step: Callable[[str], None]
) -> dict[str, Any]:
    user_config, avatar_id = deployment_of(config, name).get("user_config") or {}, default_avatar(config)
    step(f"loading {name}")
    stage = getattr(importlib.import_module(CLASSES[name]), name)()
    await stage.reconfigure(user_config)
    batch_size, target = getattr(stage.config, "batch_size", 0), InProcess(stage)
    speeds = await drive(
        name, target, [size for size in sizes if size <= (batch_size or size)], avatar_id, batch_size, step
    )
    stats = await stage.stats()
    if batch_size and (larger := [size for size in sizes if size > batch_size]):
        full = min(64, max(larger))  # the largest of a config
        step(f"loading {name} with batches of {full}")
        try:
            await stage.reconfigure({**user_config, "batch_size": full})
            speeds |= await drive(name, target, larger, avatar_id, full, step)
        except ConfigError as error:
            step(f"{name} cannot have larger batches: {error.message}")
    step(f"counting {name}")
    counted = examine(name, user_config, avatar_id)
    return row_of(stats, batch_size) | {"speed": {size: speed.to_dict() for size, speed in speeds.items()}} | counted


def default_avatar(config: dict[str, Any]) -> str:
    """The avatar of sessions that name none."""
    return str((deployment_of(config, "Stitch").get("user_config") or {}).get("avatar_id", "presenter"))


def row_of(stats: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """What the statistics of a replica say, in the words of a profile."""
    memory = {key: round(stats[key], 1) for key in ("rss_mb", "gpu_mb", "gpu_reserved_mb", "gpu_peak_mb")}
    row = {"memory": memory, "start_s": stats["start_s"], "batch_size": batch_size, "config": stats["config"]}
    if stats.get("batches"):
        row["batch_fill"] = round(stats["batched_frames"] / stats["batches"], 2)
    if encoder := stats.get("encoder"):
        row["encoder"] = encoder
    return row
