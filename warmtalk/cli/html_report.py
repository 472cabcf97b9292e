"""Reports as one self-contained HTML page: no scripts, fonts or pictures from elsewhere. Plots are inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from html import escape
from typing import Any

INK = "#334155"

STYLE = """
:root { color-scheme: light; --ink: #0f172a; --soft: #64748b; --line: #e2e8f0; --good: #15803d; --bad: #dc2626; }
* { box-sizing: border-box; }
body { margin: 0; background: #f8fafc; color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 24px 16px 64px; }
header { border-radius: 14px; padding: 22px 26px; color: white; background: var(--good); }
header.broken { background: var(--bad); }
header h1 { margin: 0 0 4px; font-size: 28px; overflow-wrap: anywhere; }
header p { margin: 0; opacity: .92; overflow-wrap: anywhere; }
.warning { margin: 12px 0 0; padding: 8px 14px; border-left: 4px solid #f59e0b; background: #fffbeb;
           border-radius: 4px; }
table { width: 100%; border-collapse: collapse; margin: 20px 0 8px; background: white; border-radius: 12px;
        overflow: hidden; box-shadow: 0 1px 3px #0f172a1a; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px; }
th, td { padding: 9px 14px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td a { color: inherit; }
.sign { font-weight: 700; width: 1%; }
.pass .sign, .pass .state { color: var(--good); }
.broken .sign, .broken .state { color: var(--bad); }
.broken td { background: #fef2f2; }
.skipped td, .info .sign { color: var(--soft); }
section { background: white; border-radius: 12px; padding: 16px 20px; margin-top: 16px;
          box-shadow: 0 1px 3px #0f172a1a; border-left: 5px solid var(--line); }
section.pass { border-left-color: var(--good); }
section.broken { border-left-color: var(--bad); }
section h2 { margin: 0; font-size: 18px; }
section h2 span { float: right; font-variant-numeric: tabular-nums; }
section p { margin: 2px 0 8px; color: var(--soft); }
dl { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 6px 0; font-size: 13px; }
dl div { display: flex; gap: 6px; }
dt { color: var(--soft); white-space: nowrap; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
svg.plot { width: 100%; height: auto; display: block; }
img { width: 100%; display: block; border-radius: 6px; }
figcaption { font-size: 13px; color: var(--soft); margin-top: 8px; }
figure { margin: 8px 0 0; }
@media (max-width: 640px) { header h1 { font-size: 21px; } th, td { padding: 7px 8px; } .wide { display: none; } }
"""


def html_page(title: str, parts: Iterable[str]) -> str:
    """The page. title: plain text. parts: HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def figure_of(width: float, height: float) -> tuple[Any, Any]:
    """A figure of that size in inches, without pyplot, which keeps global state and may open a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#cbd5e1")
    axes.tick_params(labelsize=7, colors=INK, length=3)
    axes.grid(axis="y", color="#e2e8f0", lw=0.6)
    return figure, axes


def svg_of(figure: Any) -> str:
    """The figure as an SVG element of class `plot`."""
    from matplotlib import rc_context

    out = io.StringIO()
    # the salt makes element ids reproducible; text stays text, in the reader's font
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "warmtalk", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    whole = out.getvalue()
    svg = whole[whole.index("<svg") :]
    size = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="plot"', svg, count=1)
    return size
