"""`warmtalk quality`: reads one or two videos, judges them, writes the page, prints the numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.avatar.store import AvatarStore
from models.errors import InputError
from warmtalk.cli.quality.judge import judge
from warmtalk.cli.quality.page import Judged, page
from warmtalk.cli.quality.reading import MAX_SECONDS, Progress, read_video

FORMAT = 1  # of the JSON
AVATARS, SYNCNET = "results/avatars", "weights/syncnet/latentsync_syncnet.pt"  # under home()


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. avatar_id: whose frames a video without a sidecar is held against."""

    video: Path
    avatar_id: str | None = None
    reference: Path | None = None
    seconds: float = MAX_SECONDS
    syncnet_weights: Path | None = None


def answer(question: Question, store: AvatarStore, progress: Progress | None = None) -> tuple[Judged, Judged | None]:
    """Judge the video, and the reference beside it. Raises InputError, CorruptError, AvatarNotFound."""

    def judged(path: Path) -> Judged:
        reading = read_video(path, store, question.avatar_id, question.seconds, progress)
        if progress is not None:
            progress("judging", 0, 0)
        return Judged(reading, judge(reading, question.syncnet_weights))

    return judged(question.video), judged(question.reference) if question.reference is not None else None


def run(question: Question, output: Path | None, as_json: bool, progress: Progress) -> bool:
    """Judge, write the page, print the numbers; whether every gate holds. Raises as `answer`, and OSError."""
    from rich.console import Console

    from deployments.common.paths import builtin_avatars, output_path

    if output is not None and output.is_dir():
        raise InputError(f"{output} is a folder.", "Name a page with -o, such as report.html.")
    store = AvatarStore(output_path(AVATARS), builtin_avatars())
    weights = question.syncnet_weights or output_path(SYNCNET)
    judged, reference = answer(replace(question, syncnet_weights=weights), store, progress)
    if output is not None:
        write_page(judged, reference, output)
    console = Console()
    console.print(table(judged, reference))
    for warning in judged.reading.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if output is not None:
        console.print(str(output), style="bold green", markup=False)
    if as_json:
        print(to_json(judged, reference), flush=True)
    return not judged.broken


def to_dict(judged: Judged) -> dict[str, Any]:
    """For JSON."""
    reading = judged.reading
    return {
        "format": FORMAT,
        "video": str(reading.media.path),
        "passed": not judged.broken,
        "frames": reading.frames,
        "fps": round(reading.fps, 5),
        "avatar_id": reading.avatar_id or None,
        "sidecar": reading.sidecar is not None,
        "source": reading.source is not None,
        "gates": {gate.name: gate.to_dict(reading.fps) for gate in judged.gates},
        "warnings": reading.warnings,
    }


def to_json(judged: Judged, reference: Judged | None) -> str:
    """One line."""
    beside = {} if reference is None else {"reference": to_dict(reference)}
    return json.dumps({**to_dict(judged), **beside}, ensure_ascii=False)


def write_page(judged: Judged, reference: Judged | None, path: Path) -> None:
    """Written whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(page(judged, reference), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def table(judged: Judged, reference: Judged | None) -> Any:
    """The gates as a table for the terminal."""
    from rich.table import Table

    rows = Table(title=f"{judged.name}: {len(judged.broken)} gates broken" if judged.broken else f"{judged.name}: good")
    for heading in ("", "gate", "value", *([reference.name] if reference else []), "bar", ""):
        rows.add_column(heading)
    colours = {"pass": "green", "broken": "bold red", "told": "", "skipped": "dim"}
    others = {gate.name: gate for gate in reference.gates} if reference else {}
    for gate in judged.gates:
        sign = {"pass": "ok", "broken": "BROKEN", "told": "", "skipped": "–"}[gate.verdict]
        beside = [_short(others[gate.name].value, others[gate.name].unit)] if reference else []
        cells = [sign, gate.title, _short(gate.value, gate.unit), *beside, gate.bar, gate.why]
        rows.add_row(*cells, style=colours[gate.verdict])
    return rows


def _short(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g} {unit}".strip()
