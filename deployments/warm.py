"""Compiles the embedded models once, so that later starts find them ready: `python -m deployments.warm`."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console

from configs.schema import LipSyncConfig
from configs.serve_file import deployment_of, load_serve_config
from deployments.lipsync import load_engine
from deployments.paths import cache_dir
from deployments.stage import parse_config
from models.engines import find_engine
from models.restore import ENGINES


def warm(config_name: str = "demo") -> None:
    """Compile what the stages of this config would compile at their first start; quick when it is done already."""
    config = load_serve_config(config_name)
    console = Console(stderr=True)
    lipsync: LipSyncConfig = parse_config("LipSync", deployment_of(config, "LipSync").get("user_config") or {})
    enhance = parse_config("Enhance", deployment_of(config, "Enhance").get("user_config") or {})
    begin_s = time.monotonic()
    with console.status("compiling the embedded models (once, under a minute)"):
        size = lipsync.batch_size
        load_engine(lipsync).generate(np.zeros((size, 8, 32, 32), np.float16), np.zeros((size, 50, 384), np.float16))
        options = {"cache_dir": cache_dir(), **enhance.options} if enhance.engine == "small" else enhance.options
        find_engine(enhance.engine, ENGINES).load(**options).restore(np.zeros((1, 256, 256, 3), np.uint8))
    console.print(f"models ready in {time.monotonic() - begin_s:.1f} s, kept in {cache_dir()}")


if __name__ == "__main__":
    warm()
