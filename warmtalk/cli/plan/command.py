"""`warmtalk plan`: reads the tables, makes the plans and prints them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from warmtalk.cli.plan.planning import MEASURED, PRICES, Measured, Plan, Prices, plan, read
from warmtalk.cli.plan.report import fact_table, overview_table, stage_table
from warmtalk.cli.plan.simulation import Load
from warmtalk.cli.yaml_files import copy_shipped

SIZES = (10, 100, 1000, 10_000)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The options of the command; see there."""

    sessions: tuple[int, ...]
    gpu: str
    enhance: float
    speaking: float
    viewers: float
    decoder: str
    spare: int = 0


def plans(
    request: PlanRequest,
    profile: Path | None = None,
    prices_file: Path | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> list[Plan]:
    """One plan per number of sessions. Raises InputError or ConfigError."""
    prices: Prices = read(prices_file or PRICES, Prices)
    measured: Measured = read(MEASURED, Measured)
    if profile:
        from warmtalk.cli.profile.command import read_profile  # here: it imports the stages

        measured = measured.with_profile(read_profile(profile), request.gpu, prices.gpus)
    measured = measured.with_decoder(request.decoder)
    load = Load(1, speaking=request.speaking, enhance=request.enhance)
    made = []
    for sessions in request.sessions:
        step(f"simulating {sessions} sessions")
        made.append(plan(sessions, request.gpu, load, measured, prices, request.viewers, request.spare))
    return made


def write_prices(path: Path) -> None:
    """Copy the shipped price table. Raises ExistsError."""
    copy_shipped(PRICES, path)
    Console().print(f"{path}: edit it, and pass it with --prices.", markup=False, highlight=False)


def show(made: list[Plan], as_json: bool) -> None:
    """Print one plan in full, several as a table, or all as JSON."""
    if as_json:
        print(json.dumps([asdict(item) for item in made], indent=1))
        return
    if len(made) == 1:
        Console().print(stage_table(made[0]))
        Console().print(fact_table(made[0]), highlight=False)
    else:
        Console().print(overview_table(made))
    for item in made:
        for note in item.notes:
            Console().print(f"• {item.sessions:,} sessions: {note}", markup=False, highlight=False)
