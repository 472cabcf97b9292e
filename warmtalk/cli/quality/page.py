"""The report as one self-contained HTML page: no scripts, fonts or pictures from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from warmtalk.cli.html_report import html_page
from warmtalk.cli.quality.analysis import VideoAnalysis
from warmtalk.cli.quality.gates import Gate
from warmtalk.cli.quality.plots import curve_svg, jpeg_url, strip
from warmtalk.cli.quality.signals import Signals

SIGNS = {"pass": "✓", "broken": "✕", "info": "·", "skipped": "–"}
WORDS = {"pass": "passed", "broken": "broken", "info": "no limit", "skipped": "not measured"}


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """The analysis of a video and its gates."""

    analysis: VideoAnalysis
    gates: list[Gate]

    @property
    def broken(self) -> list[Gate]:
        return [gate for gate in self.gates if gate.broken]

    @property
    def name(self) -> str:
        return self.analysis.media.path.name


def render_page(report: Report, reference: Report | None = None) -> str:
    """The whole page. reference: another video, whose numbers are shown in a column of their own."""
    analysis, broken = report.analysis, report.broken
    measured = sum(gate.has_limit and gate.value is not None for gate in report.gates)
    verdict = f"{len(broken)} of {measured} gates broken" if broken else f"All {measured} gates pass"
    parts = [
        f'<header class="{"broken" if broken else "pass"}"><h1>{SIGNS["broken" if broken else "pass"]} {verdict}</h1>',
        f"<p>{escape(report.name)} · {_facts(analysis)}</p>",
        f"<p>{escape(', '.join(gate.title for gate in broken))}</p>" if broken else "",
        "</header>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in analysis.warnings),
        _table(report, reference),
        _utterances(analysis),
        *_sections(report),
    ]
    return html_page(f"{report.name}: {verdict}", parts)


def _facts(analysis: VideoAnalysis) -> str:
    media = analysis.media
    facts = [f"{media.width}×{media.height} px", f"{analysis.frames} frames", f"{analysis.fps:.5g} fps"]
    facts += [f"avatar {analysis.avatar_id}"] if analysis.avatar_id else []
    facts += ["with sidecar" if analysis.sidecar is not None else "without sidecar"]
    return escape(" · ".join(facts))


def _table(report: Report, reference: Report | None) -> str:
    beside = f"<th>{escape(reference.name)}</th>" if reference else ""
    rows = [f'<table><tr><th></th><th>gate</th><th>value</th>{beside}<th>limit</th><th class="wide"></th></tr>']
    others = {gate.name: gate for gate in reference.gates} if reference else {}
    for gate in report.gates:
        other = f'<td class="number">{_number(others[gate.name])}</td>' if reference else ""
        state = escape(gate.why) if gate.why else WORDS[gate.verdict]
        rows.append(
            f'<tr class="{gate.verdict}"><td class="sign">{SIGNS[gate.verdict]}</td>'
            f'<td><a href="#{gate.name}">{escape(gate.title)}</a></td><td class="number">{_number(gate)}</td>{other}'
            f'<td class="number">{escape(gate.limit)}</td><td class="state wide">{state}</td></tr>'
        )
    return "".join([*rows, "</table>"])


def _utterances(analysis: VideoAnalysis) -> str:
    if analysis.sidecar is None or not analysis.sidecar.utterances:
        return ""
    rows = [
        f"<dl><div><dt>{said.first_frame / analysis.fps:.1f} s</dt><dd>{escape(said.text or 'a recording')}</dd></div>"
        f"<div><dt>engines</dt><dd>{escape(', '.join(f'{k} {v}' for k, v in said.engines.items()))}</dd></div></dl>"
        for said in analysis.sidecar.utterances
    ]
    return f"<section><h2>Spoken text</h2>{''.join(rows)}</section>"


def _sections(report: Report) -> list[str]:
    analysis, quiet = report.analysis, Signals(report.analysis).quiet
    out = []
    for gate in report.gates:
        parts = [f'<section class="{gate.verdict}" id="{gate.name}"><h2>{SIGNS[gate.verdict]} {escape(gate.title)}']
        parts += [f"<span>{_number(gate)}</span></h2><p>{escape(gate.about)}</p>"]
        if gate.why:
            parts.append(f"<p>Not measured: {escape(gate.why)}.</p>")
        parts.append(_numbers(gate))
        if gate.curve is not None:
            parts.append(curve_svg(gate, gate.curve, analysis.fps, quiet))
        if gate.worst is not None:
            below = ", the source below it" if analysis.source is not None else ""
            caption = f"Around the worst moment, frame {gate.worst} at {gate.worst / analysis.fps:.2f} s{below}"
            picture = jpeg_url(strip(analysis, gate.worst))
            parts.append(f'<figure><img alt="{caption}" src="{picture}"><figcaption>{caption}</figcaption></figure>')
        out.append("".join([*parts, "</section>"]))
    return out


def _number(gate: Gate) -> str:
    return "–" if gate.value is None else escape(f"{gate.value:.3g} {gate.unit}".strip())


def _numbers(gate: Gate) -> str:
    limit = [("limit", gate.limit)] if gate.limit else []
    shown = [*limit, *((name.replace("_", " "), f"{value:.4g}") for name, value in gate.numbers.items())]
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in shown)
    return f"<dl>{rows}</dl>" if rows else ""
