"""Helpers that the benchmarks share: command line, machine, bars, and reading MP4 data."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil

from models.types import Float32

Bar = tuple[str, float, bool]  # name of the figure, bar, whether a larger value is better


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that prints the module's docstring, with its examples, as help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def machine() -> str:
    """A short description of this machine."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores of {next(names, platform.processor())}, {memory_gib:.0f} GiB, no GPU"


def finish(figures: Mapping[str, float], bars: Mapping[str, float], path: Path) -> int:
    """Write the figures as JSON and print the broken bars. Returns the exit status: 1 if a figure exceeds its bar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **figures, "bars": bars}, indent=1))
    broken = [name for name, bar in bars.items() if figures[name] > bar]
    print(f"bars broken: {', '.join(broken)}" if broken else "all bars hold")
    return 1 if broken else 0


def bar_table(
    bars: Sequence[Bar], value_of: Callable[[str], float | None], missing: Callable[[str], str] = lambda name: ""
) -> tuple[list[str], bool]:
    """One line per bar, and whether all measured figures hold. missing: a note for a figure that was not measured."""
    lines, good = [], True
    for name, bar, larger in bars:
        value = value_of(name)
        if value is None:
            lines.append(f"{name:28}     not measured{missing(name)}")
            continue
        holds = value >= bar if larger else value <= bar
        good &= holds
        lines.append(f"{name:28} {value:8.3f}  {'≥' if larger else '≤'} {bar:<6g} {'ok' if holds else 'MISSED'}")
    return lines, good


def complete_boxes(data: bytes) -> list[tuple[bytes, int]]:
    """(type, end) of each complete box at the start of MP4 data that may end anywhere."""
    found: list[tuple[bytes, int]] = []
    at = 0
    while at + 8 <= len(data) and at + (size := int.from_bytes(data[at : at + 4], "big")) <= len(data) and size >= 8:
        found.append((data[at + 4 : at + 8], at + size))
        at += size
    return found


def fragments_end(data: bytes) -> int:
    """The end of the last complete fragment: of the last box that is not a moof still waiting for its mdat."""
    return next((end for kind, end in reversed(complete_boxes(data)) if kind != b"moof"), 0)


def decode_audio(data: bytes) -> tuple[Float32, int]:
    """The mono samples `(n,)` of an MP4, and their rate in Hz."""
    with av.open(io.BytesIO(data)) as file:
        rate = file.streams.audio[0].rate
        return np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)]), rate


def rms(values: Any) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))
