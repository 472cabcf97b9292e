"""A profile as one HTML page with plots: roofline, parts of a call, speed by batch, sessions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from rich.table import Table
from rich.text import Text

from warmtalk.cli.html_report import INK, figure_of, html_page, svg_of
from warmtalk.cli.profile import tables
from warmtalk.cli.profile.statistics import Verdict
from warmtalk.cli.profile.suggest import Suggestion
from warmtalk.cli.tables import STAGES

COLOURS = dict(zip(STAGES, ("#7c3aed", "#0891b2", "#2563eb", "#d97706", "#15803d"), strict=True))
PART_COLOURS = {"queue_ms": "#dc2626", "transfer_ms": "#f59e0b", "compute_ms": "#2563eb"}
REAL_TIME = "#94a3b8"


def render(profile: dict[str, Any], verdicts: Sequence[Verdict] = (), suggestions: Sequence[Suggestion] = ()) -> str:
    """The whole page."""
    device, config = profile.get("device") or {}, str(profile.get("config", ""))
    facts = [f"config {config}", f"mode {profile['mode']}", *filter(None, (device.get("name"), device.get("gpu")))]
    facts += [f"{device['cores']:g} cores"] if device else ["the device was not measured"]
    parts = [
        f'<header class="pass"><h1>Profile</h1><p>{escape(" · ".join(facts))}</p></header>',
        *(_section(table) for table in tables.tables(profile)),
        *(_plot(title, about, svg) for title, about, svg in _plots(profile)),
    ]
    if suggestions:
        parts.append(f"<section><h2>Suggestions</h2>{_suggestions(suggestions)}</section>")
    if verdicts:
        parts.append(_section(tables.comparison(verdicts)))
    return html_page(f"Profile of {config}", parts)


def _section(table: Table) -> str:
    """A table of the terminal as HTML."""
    columns = [[*column.cells] for column in table.columns]
    head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = ("".join(map(_cell, row)) for row in zip(*columns, strict=True))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<section><h2>{escape(str(table.title))}</h2><table><tr>{head}</tr>{body}</table></section>"


def _cell(cell: Any) -> str:
    text = escape(Text.from_markup(str(cell)).plain)
    if len(text) <= 40:
        return f'<td class="number">{text}</td>'
    return f"<td><b>{text.replace(': ', '</b><br>', 1)}</td>"


def _suggestions(suggestions: Iterable[Suggestion]) -> str:
    rows = (
        f"<tr><td>{escape(s.stage)}</td><td>{escape(s.key)}</td><td>{escape(str(s.now))} → "
        f"<b>{escape(str(s.value))}</b></td><td>{escape(s.reason)}</td></tr>"
        for s in suggestions
    )
    return f"<table><tr><th>stage</th><th>key</th><th>value</th><th>reason</th></tr>{''.join(rows)}</table>"


def _plot(title: str, about: str, svg: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(about)}</p>{svg}</section>"


def _plots(profile: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    stages = profile["stages"]
    counted = {stage: row for stage, row in stages.items() if row["roofline"]["gflop_s"]}
    if counted:
        about = "Lines: what this device can do in the number format of the stage. Dots: what the stages reach."
        yield "Roofline", about, _roofline(counted)
    timed = {stage: row for stage, row in stages.items() if "compute_ms" in row}
    if timed:
        about = "Median milliseconds of a call: alone (upper bar), and with most sessions (lower bar)."
        yield "Where the time of a call goes", about, _parts(timed)
    driven = {stage: row for stage, row in stages.items() if len(row.get("speed", {})) > 1}
    if driven:
        about = "Frames per second of a stage driven alone. Bars: where the median lies with 95 % confidence."
        yield "Speed by frames per call", about, _speeds(driven)
    if profile.get("sessions"):
        about = "Time to the first fragment, and the frames of all sessions; dashed: what they need at 25 frames/s."
        yield "Sessions", about, _sessions(profile["sessions"])


def _roofline(stages: dict[str, Any]) -> str:
    figure, axes = figure_of(7.6, 3.4)
    intensities = [row["roofline"]["flop_per_byte"] for row in stages.values()]
    low, high = min(0.1, *intensities), max(1000.0, *intensities)
    for ceiling in {tuple(sorted(row["ceilings"].items())): row["ceilings"] for row in stages.values()}.values():
        top, slope = ceiling["flop_s"] / 1e9, ceiling["bytes_s"] / 1e9
        line = axes.plot([low, top / slope, high], [low * slope, top, top], lw=1.2, color=INK, alpha=0.6)[0]
        label = f"{ceiling['device']} {ceiling['dtype']}: {top:,.0f} GFLOP/s, {slope:,.0f} GB/s"
        axes.annotate(label, (high, top), fontsize=7, color=line.get_color(), ha="right", va="bottom")
    for stage, row in stages.items():
        at = row["roofline"]["flop_per_byte"], row["roofline"]["gflop_s"]
        axes.plot(*at, "o", ms=7, color=COLOURS[stage])
        label = f"{stage}: {row['roofline']['bound']}"
        axes.annotate(label, at, xytext=(8, -3), textcoords="offset points", fontsize=8, color=COLOURS[stage])
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    _plain_log(axes.xaxis, (1,))
    _plain_log(axes.yaxis, (1,))
    axes.set_xlabel("operations per byte of memory traffic", fontsize=8, color=INK)
    axes.set_ylabel("GFLOP/s", fontsize=8, color=INK)
    return svg_of(figure)


def _parts(stages: dict[str, Any]) -> str:
    figure, axes = figure_of(7.6, 0.5 + 0.5 * len(stages))
    names = list(stages)
    for k, row in enumerate(stages.values()):
        for place, source in ((k - 0.2, row), (k + 0.2, row.get("under_load") or {})):
            left = 0.0
            for part, colour in PART_COLOURS.items():
                value = source.get(part, {}).get("p50", 0.0)
                label = part.removesuffix("_ms") if not k and source is row else None
                axes.barh(place, value, 0.36, left=left, color=colour, label=label)
                left += value
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms per call", fontsize=8, color=INK)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    return svg_of(figure)


def _speeds(stages: dict[str, Any]) -> str:
    figure, axes = figure_of(7.6, 2.6)
    for stage, row in stages.items():
        sizes = sorted(map(int, row["speed"]))
        found = [row["speed"][str(size)] for size in sizes]
        middle = [speed["median"] for speed in found]
        spread = [[speed["median"] - speed["low"] for speed in found], [s["high"] - s["median"] for s in found]]
        axes.errorbar(sizes, middle, spread, marker="o", ms=4, lw=1.3, capsize=3, color=COLOURS[stage], label=stage)
    axes.set(xscale="log", yscale="log")
    ticks = sorted({int(size) for row in stages.values() for size in row["speed"]})
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    _plain_log(axes.yaxis, (1, 2, 5))
    axes.set_xlabel("frames per call", fontsize=8, color=INK)
    axes.set_ylabel("frames/s", fontsize=8, color=INK)
    axes.legend(fontsize=7, frameon=False)
    return svg_of(figure)


def _sessions(sessions: dict[str, Any]) -> str:
    figure, axes = figure_of(7.6, 2.4)
    counts = list(map(int, sessions))
    rows = list(sessions.values())
    for p, style in (("p50", "-"), ("p95", ":")):
        axes.plot(
            counts, [row["ttff_ms"][p] for row in rows], style, marker="o", ms=4, color="#2563eb", label=f"TTFF {p}"
        )
    axes.set(ylim=(0, None), xticks=counts)
    axes.set_xlabel("sessions at the same time", fontsize=8, color=INK)
    axes.set_ylabel("ms", fontsize=8, color="#2563eb")
    right = axes.twinx()
    right.spines[:].set_visible(False)
    right.plot(counts, [row["frames_per_s"] for row in rows], marker="s", ms=4, color="#d97706", label="frames/s")
    right.plot(counts, [25 * count for count in counts], "--", color=REAL_TIME, lw=1)
    right.set(ylim=(0, None))
    right.tick_params(labelsize=7, colors="#d97706")
    right.set_ylabel("frames/s", fontsize=8, color="#d97706")
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    return svg_of(figure)


def _plain_log(axis: Any, steps: tuple[int, ...]) -> None:
    """Ticks at these multiples of powers of ten, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,g}")
