"""`warmtalk quality`: analyses one or two videos, evaluates the gates, writes the report and prints the numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.avatar.store import AvatarStore
from models.errors import InputError
from models.runtime.atomic_file import replace_file
from warmtalk.cli.quality.analysis import MAX_SECONDS, Progress, analyse_video
from warmtalk.cli.quality.evaluate import evaluate
from warmtalk.cli.quality.page import Report, render_page

FORMAT = 1  # of the JSON
PAGE_SUFFIXES = (".html", ".htm")
AVATARS, SYNCNET = "results/avatars", "weights/syncnet/latentsync_syncnet.pt"  # under home()


@dataclass(frozen=True, slots=True)
class QualityRequest:
    """The arguments of the command. avatar_id: the avatar that a video without a sidecar shows."""

    video: Path
    avatar_id: str | None = None
    reference: Path | None = None
    seconds: float = MAX_SECONDS
    syncnet_weights: Path | None = None


def reports(
    request: QualityRequest, store: AvatarStore, progress: Progress | None = None
) -> tuple[Report, Report | None]:
    """Evaluate the video, and the reference if there is one. Raises InputError, CorruptError, AvatarNotFound."""

    def report(path: Path) -> Report:
        analysis = analyse_video(path, store, request.avatar_id, request.seconds, progress)
        if progress is not None:
            progress("evaluating", 0, 0)
        return Report(analysis, evaluate(analysis, request.syncnet_weights))

    return report(request.video), report(request.reference) if request.reference is not None else None


def run(request: QualityRequest, output: Path | None, as_json: bool, progress: Progress) -> bool:
    """Evaluate, write the report, print the numbers; returns whether every gate passes.

    Raises the errors of `reports`, and OSError.
    """
    from rich.console import Console

    from deployments.common.paths import builtin_avatars, output_path

    if output is not None and (output.is_dir() or output.suffix.lower() not in PAGE_SUFFIXES):
        found = "is a folder" if output.is_dir() else "does not end in .html"
        raise InputError(f"{output} {found}; the report is an HTML page.", "Use a name such as -o report.html.")
    store = AvatarStore(output_path(AVATARS), builtin_avatars())
    weights = request.syncnet_weights or output_path(SYNCNET)
    report, reference = reports(replace(request, syncnet_weights=weights), store, progress)
    if output is not None:
        write_page(report, reference, output)
    console = Console()
    console.print(table(report, reference))
    for warning in report.analysis.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if output is not None:
        console.print(str(output), style="bold green", markup=False)
    if as_json:
        print(to_json(report, reference), flush=True)
    return not report.broken


def to_dict(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    analysis = report.analysis
    return {
        "format": FORMAT,
        "video": str(analysis.media.path),
        "passed": not report.broken,
        "frames": analysis.frames,
        "fps": round(analysis.fps, 5),
        "avatar_id": analysis.avatar_id or None,
        "sidecar": analysis.sidecar is not None,
        "source": analysis.source is not None,
        "gates": {gate.name: gate.to_dict(analysis.fps) for gate in report.gates},
        "warnings": analysis.warnings,
    }


def to_json(report: Report, reference: Report | None) -> str:
    """The report, and that of the reference, as one line of JSON."""
    beside = {} if reference is None else {"reference": to_dict(reference)}
    return json.dumps({**to_dict(report), **beside}, ensure_ascii=False)


def write_page(report: Report, reference: Report | None, path: Path) -> None:
    """Write the HTML page, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, render_page(report, reference).encode(), sync=False)


def table(report: Report, reference: Report | None) -> Any:
    """The gates as a table for the terminal."""
    from rich.table import Table

    verdict = f"{len(report.broken)} gates broken" if report.broken else "all gates pass"
    rows = Table(title=f"{report.name}: {verdict}")
    for heading in ("", "gate", "value", *([reference.name] if reference else []), "limit", ""):
        rows.add_column(heading)
    colours = {"pass": "green", "broken": "bold red", "info": "", "skipped": "dim"}
    others = {gate.name: gate for gate in reference.gates} if reference else {}
    for gate in report.gates:
        sign = {"pass": "ok", "broken": "BROKEN", "info": "", "skipped": "–"}[gate.verdict]
        beside = [_short(others[gate.name].value, others[gate.name].unit)] if reference else []
        cells = [sign, gate.title, _short(gate.value, gate.unit), *beside, gate.limit, gate.why]
        rows.add_row(*cells, style=colours[gate.verdict])
    return rows


def _short(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g} {unit}".strip()
