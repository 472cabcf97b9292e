"""Compiles the embedded models once and caches them for later starts: `python -m warmtalk.cli.warm`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from configs.serve_file import deployment_of, load_serve_config
from deployments import enhance, lipsync
from deployments.common.paths import cache_dir
from deployments.common.stage import parse_config
from models.types import CROP_PX

Step = tuple[str, Callable[[], Any]]  # description, work


def steps(config: dict[str, Any]) -> list[Step]:
    """The steps that compile everything that the stages of this Serve config compile at their first start."""
    lips = parse_config("LipSync", deployment_of(config, "LipSync").get("user_config") or {})
    faces = parse_config("Enhance", deployment_of(config, "Enhance").get("user_config") or {})
    loaded: dict[str, Any] = {}
    latents = np.zeros((lips.batch_size, 8, 32, 32), np.float16)
    windows = np.zeros((lips.batch_size, 50, 384), np.float16)
    crop = np.zeros((1, CROP_PX, CROP_PX, 3), np.uint8)
    return [
        ("compiling lip sync", lambda: loaded.update(lips=lipsync.load_engine(lips))),
        ("first frames of lip sync", lambda: loaded["lips"].generate(latents, windows)),
        ("compiling the restorer", lambda: loaded.update(faces=enhance.load_engine(faces.engine, faces.options))),
        ("first face of the restorer", lambda: loaded["faces"].restore(crop)),
    ]


def warm(config_name: str = "demo", console: Console | None = None) -> None:
    """Compile the models, with a progress bar: under a minute the first time, seconds when they are cached."""
    console = console or Console(stderr=True)
    all_steps, begin_s = steps(load_serve_config(config_name)), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(all_steps))
        for description, work in all_steps:
            bar.update(task, description=f"{description} (once, under a minute)", refresh=True)
            work()
            bar.advance(task)
        bar.update(task, description="models compiled", refresh=True)
    console.print(f"models ready in {time.monotonic() - begin_s:.1f} s, cached in {cache_dir()}")


if __name__ == "__main__":
    warm()
