"""Checks that the replicas of a config fit the GPUs: shares add up on each GPU, since no replica spans two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

EPSILON = 1e-6  # Ray counts GPUs in steps of 1/10,000


@dataclass(frozen=True, slots=True)
class Need:
    """A replica that needs `gpus`: below 1 a share of one, else whole ones."""

    stage: str
    gpus: float


def check_placement(config: dict[str, Any], gpus: int | None = None) -> list[str]:
    """Why replicas of a config do not fit the GPUs; empty if they do.

    gpus: of the machine; checked for the replicas that always run, and for as many as autoscaling may start. None: only
    whether each share can be had at all.
    """
    problems = [
        f"{need.stage}: num_gpus is {need.gpus:g}. Use a share up to 1, or a whole number."
        for need in _needs(config, "min_replicas")
        if need.gpus > 1 and need.gpus != int(need.gpus)
    ]
    if problems or gpus is None:
        return problems
    for key, which in (("min_replicas", "The replicas that always run"), ("max_replicas", "All replicas together")):
        needs = list(_needs(config, key))
        if (used := gpus_needed(needs)) <= gpus:
            continue
        total = sum(need.gpus for need in needs)
        how = f"that is {total:g} in all" if total > gpus + EPSILON else "no division among the GPUs has room for all"
        shares = ", ".join(f"{need.stage} {need.gpus:g}" for need in needs)
        fix = "Lower num_gpus of a stage" if key == "min_replicas" else "Lower max_replicas or num_gpus of a stage"
        return [f"{which} need {used} GPUs, not {gpus}: {shares}; {how}. {fix}, or add GPUs."]
    return []


def gpus_needed(needs: list[Need]) -> int:
    """GPUs for all of them, the largest first, each on the first GPU with room."""
    free: list[float] = []
    for need in sorted(needs, key=lambda need: -need.gpus):
        if need.gpus >= 1:
            free += [0.0] * round(need.gpus)
            continue
        place = next((k for k, room in enumerate(free) if room >= need.gpus - EPSILON), None)
        if place is None:
            free.append(1.0)
            place = len(free) - 1
        free[place] -= need.gpus
    return len(free)


def _needs(config: dict[str, Any], key: str) -> Iterator[Need]:
    """One entry per replica that needs a GPU: of each stage `key` of its autoscaling, and at least one."""
    for application in config["applications"]:
        for entry in application.get("deployments") or []:
            gpus = float((entry.get("ray_actor_options") or {}).get("num_gpus") or 0)
            if not gpus:
                continue
            replicas = (entry.get("autoscaling_config") or {}).get(key, entry.get("num_replicas")) or 1
            yield from [Need(entry["name"], gpus)] * max(1, int(replicas if replicas != "auto" else 1))
