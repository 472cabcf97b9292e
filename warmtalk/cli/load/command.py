"""`warmtalk load`: runs a scenario, prints the figures, writes the report."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from models.runtime.atomic_file import replace_file
from warmtalk.cli.load.report import errors, figures, page, stage_figures, tables
from warmtalk.cli.load.runner import Load, Run
from warmtalk.cli.load.scenario import SHIPPED, Scenario
from warmtalk.cli.yaml_files import copy_shipped


def write_scenario(path: Path) -> None:
    """Copy the shipped scenario. Raises ExistsError."""
    copy_shipped(SHIPPED, path)
    Console().print(f"{path}: edit it, and run `warmtalk load {path}`.", markup=False, highlight=False)


def run(url: str, scenario: Scenario, step: Callable[[str], None]) -> Run:
    """Run the scenario against the server at `url`. Raises httpx.HTTPError if it is not there."""
    return asyncio.run(Load(url, scenario, step).play())


def show(result: Run, html: Path | None, json_path: Path | None) -> None:
    """Print the figures, and write the files."""
    for table in tables(result):
        Console().print(table)
    for text, count in errors(result):
        Console().print(f"{count} × {text}", markup=False, highlight=False)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        replace_file(html, page(result).encode(), sync=False)
        Console().print(f"report: {html}", markup=False, highlight=False, soft_wrap=True)
    if json_path is not None:
        found = {name: None if math.isnan(value) else value for name, value in figures(result).items()}
        facts = {"figures": found, "stages": stage_figures(result)} | result.to_dict()
        json_path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(json_path, json.dumps(facts, indent=1).encode(), sync=False)
