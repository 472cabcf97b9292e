"""`warmtalk profile`: measures, judges, and writes the results."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.status import Status

from configs.serve_file import ConfigFileError, config_path, load_serve_config
from models.errors import ConfigError, InputError
from models.runtime.atomic_file import replace_file
from models.runtime.ceilings import Ceilings
from warmtalk.cli.machine import nvidia_gpus, usable_cores
from warmtalk.cli.profile import networks
from warmtalk.cli.profile.alone import default_avatar, profile_alone
from warmtalk.cli.profile.graph import Options, profile_graph
from warmtalk.cli.profile.live import profile_live
from warmtalk.cli.profile.roofline import CallCost, Network, judge
from warmtalk.cli.profile.statistics import compare
from warmtalk.cli.profile.suggest import Suggestion, cores_needed, suggest

FORMAT = 1
MIB_MB = 2**20 / 1e6

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What to profile: a stage alone, a graph at `address`, or else a graph that is started here."""

    config: str = "demo"
    options: Options = field(default_factory=Options)
    alone: bool = False
    address: str | None = None
    seconds: float = 10.0
    for_sessions: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for options that exclude each other."""
        if self.alone and self.address:
            raise InputError("--alone needs no graph, and --address names one.", "Use one of them.")
        if self.alone and not self.options.stage:
            raise InputError("--alone profiles one stage.", "Name it: --stage LipSync.")


@dataclass(frozen=True, slots=True)
class Files:
    """Where results are written, and the profile to compare with."""

    json: Path | None = None
    html: Path | None = None
    trace: Path | None = None
    baseline: Path | None = None
    apply: Path | None = None  # the patched copy of the config

    def check(self, request: Request) -> None:
        """Before measuring, which takes a minute. Raises InputError, ConfigError."""
        for path in filter(None, (self.json, self.html, self.trace, self.apply)):
            if path.is_dir():
                raise InputError(f"{path} is a folder.", "Name a file.")
        if self.trace and (request.alone or request.address):
            raise InputError(
                "A trace follows one utterance, which only a graph of its own speaks.", "Leave out --trace."
            )
        if self.apply and self.apply.suffix != ".yaml":
            raise InputError(f"{self.apply} is no .yaml file.", "Name the new config with -o my.yaml.")
        if self.apply and self.apply.resolve() == config_of(request.config).resolve():
            raise InputError(f"{self.apply} is the config itself.", "Name another file: the config stays as it is.")
        if self.baseline:
            read_profile(self.baseline)


def numbers(text: str, option: str, least: int = 1) -> list[int]:
    """`1,4,16` as numbers, ascending. Raises InputError."""
    try:
        found = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        found = []
    if not found or found[0] < least:
        raise InputError(f"{option} is {text!r}.", f"Give numbers from {least} on: {option} 1,4,16.")
    return found


@contextmanager
def beside(status: Status, graph: AbstractContextManager[Any]) -> Iterator[None]:
    """The context in which a graph runs, which has displays of its own while it starts and stops."""
    status.stop()
    with graph:
        status.start()
        try:
            yield
        finally:
            status.stop()
    status.start()


def read_it(url: str) -> str:
    """What to do where a server runs already."""
    return f"Add `--address {url}` to read what it records, or pass --port to start another."


def config_of(name: str) -> Path:
    """Raises ConfigError."""
    try:
        return config_path(name)
    except ConfigFileError as error:
        raise ConfigError(str(error), "Correct --config.") from error


def loaded_config(name: str) -> dict[str, Any]:
    """Raises ConfigError."""
    try:
        return load_serve_config(name)
    except ConfigFileError as error:
        raise ConfigError(str(error), "Correct the file, or name another with --config.") from error


def read_profile(path: Path) -> dict[str, Any]:
    """A profile that `--json` wrote. Raises InputError."""
    try:
        profile = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Make it with `warmtalk profile --json FILE`.") from error
    if not isinstance(profile, dict) or profile.get("format") != FORMAT:
        raise InputError(f"{path} is no profile of this version.", "Make it with `warmtalk profile --json FILE`.")
    return profile


def run(request: Request, graph: AbstractContextManager[Any], step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
    """The profile as JSON, and the traced utterance. graph: in which it runs. Raises WarmTalkError."""
    config, stage, trace = loaded_config(request.config), request.options.stage, {}
    if stage and stage not in {entry["name"] for entry in config["applications"][0]["deployments"]}:
        raise InputError(f"{request.config} has no stage {stage!r}.", "Name it as in the config: LipSync, Enhance, …")
    facts: dict[str, Any] = {"mode": "alone" if request.alone else "live" if request.address else "graph"}
    if request.alone:
        assert stage is not None
        facts["stages"] = {stage: profile_alone(config, stage, request.options.sizes, step)}
    elif request.address:
        facts["stages"] = profile_live(request.address, request.seconds, step)
    else:
        with graph:
            profile = asyncio.run(profile_graph(request.options, step))
        facts |= profile.to_dict()
        trace, counted = profile.trace, _count(config, stage, step)  # of a machine that does nothing else again
        for name, row in facts["stages"].items():
            row |= counted.get(name, {})
    if stage:
        facts["stages"] = {name: row for name, row in facts["stages"].items() if name == stage}
    return judged({"format": FORMAT, "config": request.config, **facts}, request.address is None), trace


def _count(config: dict[str, Any], only: str | None, step: Step) -> dict[str, dict[str, Any]]:
    """The networks of the stages, counted in a process of its own."""
    step("counting the networks, and measuring what this device can do")
    entries = [(entry["name"], entry.get("user_config") or {}) for entry in config["applications"][0]["deployments"]]
    stages = [entry for entry in entries if entry[0] in networks.CALLS and only in (None, entry[0])]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(networks.examine_all, stages, default_avatar(config)).result()


def judged(profile: dict[str, Any], here: bool = True) -> dict[str, Any]:
    """The profile with the device, and per stage `frames_per_s`, `call_s`, `roofline`. here: it ran on this device."""
    ceilings = {}
    for row in profile["stages"].values():
        speeds = {int(size): speed["median"] for size, speed in row.get("speed", {}).items()}
        row["frames_per_s"] = {str(size): round(speed, 1) for size, speed in speeds.items()}
        cost = CallCost.fit(speeds) if speeds else None
        if cost is not None:
            row["call_s"] = cost.to_dict()
        network = Network(**row["network"]) if row.get("network") else None
        ceiling = Ceilings(**row["ceilings"]) if row.get("ceilings") else None
        if ceiling is not None:
            ceilings[ceiling.device, ceiling.dtype] = ceiling
        frames = _frames_used(row, list(speeds))
        row["roofline"] = judge(speeds.get(frames, 0.0), frames, cost, network, ceiling, _wait_share(row)).to_dict()
    profile["device"] = _device(list(ceilings.values())) if here else {}
    return profile


def _frames_used(row: dict[str, Any], sizes: Sequence[int]) -> int:
    """The measured number of frames per call that is nearest to the stage's batch, or without one to its calls."""
    if not sizes:
        return row.get("batch_size") or 1
    usual = row.get("batch_size") or row.get("frames", 0) / max(1, row.get("calls", 0)) or max(sizes)
    return min(sizes, key=lambda size: (abs(size - usual), size))


def _wait_share(row: dict[str, Any]) -> float:
    """Of the queue in the time of a call: under load where that was measured."""
    load = row.get("under_load") or row
    parts = [load.get(part, {}).get("p50", 0.0) for part in ("queue_ms", "transfer_ms", "compute_ms")]
    return parts[0] / sum(parts) if sum(parts) else 0.0


def _device(ceilings: list[Ceilings]) -> dict[str, Any]:
    """This machine, in the words of `warmtalk plan`. The figures of its GPU where a stage uses it."""
    gpus = nvidia_gpus()
    name, _, memory = gpus[0].rpartition(",") if gpus else ("", "", "0")
    on_gpu = [ceiling for ceiling in ceilings if ceiling.device != "cpu"]
    used = on_gpu or ceilings
    return {
        "name": platform.node(),
        "cores": usable_cores(),
        "gpu": name,
        "gpus": len(gpus),
        "gpu_memory_mb": round(float(memory.split()[0]) * MIB_MB),
        "tflops": {ceiling.dtype: round(ceiling.flop_s / 1e12, 3) for ceiling in used},
        "bandwidth_gb_s": round(max((ceiling.bytes_s for ceiling in used), default=0.0) / 1e9, 1),
        "ceilings": [asdict(ceiling) for ceiling in ceilings],
    }


# --- results


def show(
    profile: dict[str, Any], trace: dict[str, Any], request: Request, files: Files, console: Console | None = None
) -> None:
    """Print the tables, write the files, and print and apply the suggestions. Raises WarmTalkError."""
    from warmtalk.cli.profile import page, tables
    from warmtalk.cli.profile.trace import chrome_trace

    console = console or Console()
    verdicts = compare(read_profile(files.baseline), profile) if files.baseline else []
    suggestions: list[Suggestion] = []
    if request.for_sessions:
        suggestions = suggest(profile, loaded_config(request.config), request.for_sessions)
        profile["suggestions"] = [asdict(suggestion) for suggestion in suggestions]
    for table in tables.tables(profile, verdicts):
        console.print(table)
    if profile.get("ttff_ms"):
        ttff_ms = float(np.median(profile["ttff_ms"]))
        console.print(f"TTFF {ttff_ms:.0f} ms (median), all processes {profile['tree_mb']} MB")
    if request.for_sessions:
        _show_suggestions(suggestions, request, files, profile, console)
    if files.trace:
        _write(files.trace, json.dumps(chrome_trace(trace)), console)
    if files.json:
        _write(files.json, json.dumps(profile, indent=1), console)
    if files.html:
        _write(files.html, page.render(profile, verdicts, suggestions), console)


def _show_suggestions(
    suggestions: Sequence[Suggestion], request: Request, files: Files, profile: dict[str, Any], console: Console
) -> None:
    from warmtalk.cli.profile import patch
    from warmtalk.cli.terminal import print_warning

    source = config_of(request.config)
    if not suggestions:
        console.print(f"{source.name} fits {request.for_sessions} sessions as it is.")
    for suggestion in suggestions:
        console.print(f"{suggestion.stage}: {suggestion.key} {suggestion.now} → {suggestion.value}", style="bold")
        console.print(f"  {suggestion.reason}", markup=False, highlight=False)
    device = profile.get("device") or {}
    cores = cores_needed(profile, loaded_config(request.config), request.for_sessions or 1)
    if device and cores > device["cores"]:
        text = (
            f"The stages would keep {cores:.1f} CPU cores busy, and this machine has {device['cores']:g}: more replicas"
        )
        print_warning(f"{text} here make nothing faster. `warmtalk plan` says what other machines need.")
    gpus = device.get("gpus") or None
    if files.apply:
        changed = patch.write_patched(source, suggestions, files.apply, gpus)
        console.print(f"[bold green]{files.apply}[/] (`warmtalk serve --config {files.apply}`, or `serve deploy`)")
    elif suggestions:
        text = source.read_text(encoding="utf-8")
        changed = patch.difference(text, patch.patched(text, suggestions), str(source), "suggested")
    else:
        return
    console.print(changed, markup=False, highlight=False, soft_wrap=True)


def _write(path: Path, text: str, console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode(), sync=False)
    console.print(f"[bold green]{path}[/]")
