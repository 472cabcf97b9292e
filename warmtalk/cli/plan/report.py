"""Tables of plans, for the terminal and for the documentation."""

from __future__ import annotations

from rich import box
from rich.table import Table

from warmtalk.cli.plan.planning import Plan


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)


def stage_table(plan: Plan) -> Table:
    """One row per stage."""
    table = _table(f"{plan.sessions} sessions on {plan.gpus} × {plan.gpu}")
    for name in ("stage", "replicas", "num_gpus", "num_cpus", "busy", "frames per call"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in plan.stages:
        share = f"{stage.num_gpus:g}" if stage.num_gpus else "–"
        frames = f"{stage.frames_per_call:.1f}" if stage.frames_per_call else "–"
        table.add_row(stage.name, str(stage.replicas), share, f"{stage.num_cpus:g}", f"{stage.busy:.0%}", frames)
    return table


def fact_table(plan: Plan) -> Table:
    """The rest of a plan, as label and value."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    rows = {
        "sessions per GPU, at most": f"{plan.sessions_per_gpu:.1f}",
        "CPU cores": f"{plan.cores}",
        "TTFF, p95, without HTTP": f"{plan.ttff_p95_ms:.0f} ms",
        "bottleneck": plan.bottleneck,
        "next bottleneck": plan.next_bottleneck,
        "GPU memory of the models": f"{plan.gpu_memory_gb:.1f} GB per GPU",
        "video to the viewers": f"{plan.viewers_mbit_s:.0f} Mbit/s",
        "frames between the stages": f"{plan.internal_mb_s:.0f} MB/s",
        "session files": f"{plan.disk_gb_per_hour:.1f} GB per hour",
        "cost": f"{plan.cost_per_hour:.2f} {plan.currency} per hour, {plan.cost_per_session_hour:.3f} per session",
        "service times": f"measured on {plan.measured_on}" + ("" if plan.measured_on == plan.gpu else ", scaled"),
    }
    for label, value in rows.items():
        table.add_row(label, value)
    return table


OVERVIEW = ("sessions", "GPUs", "cores", "LipSync", "Enhance", "Stitch", "Ingress", "Mbit/s", "GB/h", "cost")


def overview_rows(plans: list[Plan]) -> list[tuple[str, ...]]:
    """One row per plan, by the columns of OVERVIEW. Stages: replicas. Mbit/s: to the viewers."""
    rows = []
    for plan in plans:
        replicas = {stage.name: f"{stage.replicas:,}" for stage in plan.stages}
        stages = [replicas.get(name, "–") for name in OVERVIEW[3:7]]
        sizes = f"{plan.sessions:,}", f"{plan.gpus:,}", f"{plan.cores:,}"
        flows = f"{plan.viewers_mbit_s:,.0f}", f"{plan.disk_gb_per_hour:,.0f}", f"{plan.cost_per_session_hour:.3f}"
        rows.append((*sizes, *stages, *flows))
    return rows


def overview_table(plans: list[Plan]) -> Table:
    """All plans beside each other."""
    table = _table(f"Plans for {plans[0].gpu}; cost in {plans[0].currency} per session and hour")
    for name in OVERVIEW:
        table.add_column(name, justify="right", no_wrap=True)
    for row in overview_rows(plans):
        table.add_row(*row)
    return table


def overview_markdown(plans: list[Plan]) -> str:
    """The same for docs/scaling.md, with what changes at each size below it."""
    lines = [f"| {' | '.join(OVERVIEW)} |", "|" + " --- |" * len(OVERVIEW)]
    lines += [f"| {' | '.join(row)} |" for row in overview_rows(plans)]
    lines.append("")
    lines += [
        f"- **{plan.sessions:,} sessions.** {' '.join(plan.notes) or 'One machine holds everything.'}" for plan in plans
    ]
    return "\n".join(lines)
