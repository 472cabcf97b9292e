"""The result of a load: figures, a table for the terminal, and one self-contained HTML page with plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from warmtalk.cli.html_report import INK, figure_of, html_page, svg_of
from warmtalk.cli.load.runner import Run
from warmtalk.cli.tables import STAGES

PERCENTILES = (50, 95, 99)
SHOWN_ERRORS = 8
COLOURS = dict(zip(STAGES, ("#0891b2", "#7c3aed", "#2563eb", "#ea580c", "#15803d"), strict=True))


def figures(run: Run) -> dict[str, float]:
    """The figures of a run. A session is held if it was watched without a late frame, a hold, a refusal or an error."""
    spoken = [turn for turn in run.turns if turn.ttff_ms is not None]
    ttff_ms = [turn.ttff_ms for turn in spoken if turn.ttff_ms is not None]
    troubled = {turn.session_id for turn in run.turns if turn.holds or turn.status != 200}
    troubled |= {stay.session_id for stay in run.stays if stay.late or stay.error}
    found: dict[str, float] = {
        "sessions": len(run.stays),
        "sessions at a time": max((count for _, count in run.active), default=0),
        "sessions held": sum(stay.session_id not in troubled for stay in run.stays),
        "utterances": len(run.turns),
        "interrupted": sum(turn.interrupted for turn in run.turns),
        "refused (429)": sum(turn.status == 429 for turn in run.turns),
        "failed": sum(turn.status not in (200, 429) for turn in run.turns) + sum(bool(s.error) for s in run.stays),
        "frames per second": sum(turn.frames for turn in run.turns) / max(run.took_s, 1e-9),
        "late frames": sum(stay.late for stay in run.stays),
        "holds of speech": sum(turn.holds for turn in run.turns),
        "held, s": sum(turn.held_s for turn in run.turns),
    }
    for percent in PERCENTILES:
        found[f"TTFF p{percent}, ms"] = float(np.percentile(ttff_ms, percent)) if ttff_ms else float("nan")
    return found


def stage_figures(run: Run) -> dict[str, dict[str, float]]:
    """Per stage: fewest and most replicas, and the mean and largest share of their time that they computed."""
    found = {}
    for stage in STAGES:
        counts, shares = replicas_over_time(run, stage), busy_over_time(run, stage)
        if counts:
            values, busy = [count for _, count in counts], [share for _, share in shares] or [0.0]
            found[stage] = {"least": min(values), "most": max(values), "busy": float(np.mean(busy)), "peak": max(busy)}
    return found


def replicas_over_time(run: Run, stage: str) -> list[tuple[float, int]]:
    """(seconds, running replicas), from the states of the stages."""
    known = [(at_s, state["stages"].get(stage)) for at_s, state in run.states]
    return [(at_s, int(found["states"].get("RUNNING", 0))) for at_s, found in known if found is not None]


def busy_over_time(run: Run, stage: str) -> list[tuple[float, float]]:
    """(seconds, share of the replicas' time that they computed), from the latest calls of each replica."""
    rows = []
    for at_s, state in run.states:
        shares = [_busy(replica) for replica in state["stages"].get(stage, {}).get("replicas", [])]
        if shares:
            rows.append((at_s, float(np.mean(shares))))
    return rows


def _busy(replica: dict[str, Any]) -> float:
    recent = replica.get("recent", {})
    span_ms = 1e3 * recent.get("span_s", 0.0)
    return float(min(1.0, recent["busy_ms"]["sum"] / span_ms)) if span_ms and "busy_ms" in recent else 0.0


def tables(run: Run) -> list[Table]:
    """For the terminal."""
    table = Table(title="load", show_header=False, box=box.SIMPLE_HEAD, title_justify="left")
    for name, value in figures(run).items():
        table.add_row(name, _number(value))
    stages = Table(title="stages", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("stage", "replicas", "busy, mean", "busy, peak"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for stage, row in stage_figures(run).items():
        stages.add_row(stage, _replicas(row), f"{row['busy']:.0%}", f"{row['peak']:.0%}")
    return [table, stages] if stages.rows else [table]


def _replicas(row: dict[str, float]) -> str:
    return f"{row['least']:.0f}" if row["least"] == row["most"] else f"{row['least']:.0f}–{row['most']:.0f}"


def _number(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.0f}" if value == round(value) or value >= 100 else f"{value:.2f}"


def errors(run: Run) -> list[tuple[str, int]]:
    """What went wrong, and how often, the most frequent first."""
    texts = [f"{turn.status or 'no answer'}: {turn.error}" for turn in run.turns if turn.error]
    texts += [f"{stay.watch}: {stay.error}" for stay in run.stays if stay.error]
    return Counter(texts).most_common(SHOWN_ERRORS)


def page(run: Run) -> str:
    """The whole report."""
    found = figures(run)
    held, all_sessions = found["sessions held"], found["sessions"]
    good = held == all_sessions
    scenario = run.scenario
    parts = [
        f'<header class="{"pass" if good else "broken"}"><h1>{held:.0f} of {all_sessions:.0f} sessions held</h1>'
        f"<p>{run.took_s:.0f} s, at most {scenario.sessions} sessions at a time, "
        f"{scenario.arrivals_per_s:g} arrivals/s, {scenario.enhance:.0%} enhanced</p></header>",
        _html_table(("figure", "value"), [(name, _number(value)) for name, value in found.items()]),
        _section("Sessions", _sessions_plot(run)),
        _section("Time to the first fragment", _ttff_plot(run)),
    ]
    if run.states:
        rows = [(s, _replicas(r), f"{r['busy']:.0%}", f"{r['peak']:.0%}") for s, r in stage_figures(run).items()]
        parts += [
            _section("Replicas", _stage_plot(run, replicas_over_time, "replicas")),
            _section("Share of their time that replicas compute", _stage_plot(run, busy_over_time, "busy")),
            _html_table(("stage", "replicas", "busy, mean", "busy, peak"), rows),
        ]
    else:
        parts.append(
            '<p class="warning">No state of the stages: /admin/state did not answer, or the key may not read it.</p>'
        )
    if wrong := errors(run):
        parts.append(_html_table(("error", "times"), [(text, str(count)) for text, count in wrong]))
    return html_page("warmtalk load", parts)


def _section(title: str, svg: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{svg}</section>"


def _html_table(head: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = [
        "<tr>"
        + f"<td>{escape(row[0])}</td>"
        + "".join(f'<td class="number">{escape(c)}</td>' for c in row[1:])
        + "</tr>"
        for row in rows
    ]
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _sessions_plot(run: Run) -> str:
    figure, axes = figure_of(9, 2.2)
    if run.active:
        axes.step(*zip(*run.active, strict=True), where="post", color="#2563eb", label="sessions")
    refused = [turn.at_s for turn in run.turns if turn.status == 429]
    failed = [turn.at_s for turn in run.turns if turn.status not in (200, 429)]
    for times_s, colour, name in ((refused, "#f59e0b", "refused (429)"), (failed, "#dc2626", "failed")):
        if times_s:
            axes.plot(times_s, [0] * len(times_s), "|", color=colour, markersize=14, label=name)
    return _finished(figure, axes, run, "sessions")


def _ttff_plot(run: Run) -> str:
    figure, axes = figure_of(9, 2.2)
    for enhanced, colour, name in ((False, "#2563eb", "without enhancement"), (True, "#ea580c", "with enhancement")):
        dots = [(t.at_s, t.ttff_ms) for t in run.turns if t.ttff_ms is not None and t.enhanced == enhanced]
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=3, label=name)
    axes.set_ylim(bottom=0)
    return _finished(figure, axes, run, "ms")


def _stage_plot(run: Run, series: Any, unit: str) -> str:
    figure, axes = figure_of(9, 2.4)
    for stage in STAGES:
        if rows := series(run, stage):
            axes.step(*zip(*rows, strict=True), where="post", color=COLOURS[stage], label=stage)
    axes.set_ylim(bottom=0)
    return _finished(figure, axes, run, unit)


def _finished(figure: Any, axes: Any, run: Run, unit: str) -> str:
    axes.set_xlim(0, max(run.took_s, 1.0))
    axes.set_xlabel("s", fontsize=8, color=INK)
    axes.set_ylabel(unit, fontsize=8, color=INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, ncols=5, loc="upper right")
    return svg_of(figure)
