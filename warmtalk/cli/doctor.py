"""Checks this machine for what WarmTalk needs, and says how to mend what is wrong. Changes nothing, starts nothing."""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.exposure import api_keys_env, exposure_warning
from configs.serve_file import ConfigFileError, load_serve_config
from deployments.common.paths import home
from models.errors import CorruptError
from models.weights import checksums
from models.weights import installed as weight_files
from models.weights import manifest as weights
from warmtalk.cli.machine import (
    existing,
    nvidia_gpus,
    public,
    requirements,
    requires_of,
    satisfies,
    usable_cores,
    usable_memory_bytes,
    version_of,
)

INSTALL = "python -m pip install -r requirements.lock"
OLDEST_PYTHON = (3, 10)
LEAST_MEMORY_GB = 6.0  # the whole process tree takes under 5 GB, and the system wants some
LEAST_DISK_GB = 2.0  # an hour of session is about 0.5 GB; compiled models and avatars come on top
LEAST_SHM_GB = 0.7  # the object store of a local graph is 600 MB
PACKAGES = ("torch", "ray", "transformers", "diffusers")
FETCHED = "weights "  # how the names of checks of production weights begin
OWN_LINES = {*PACKAGES, "opencv-python-headless", "hibari-tts"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `remedy` is empty when all is well; a check that is not required only warns."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    required: bool = True


def run_checks(port: int = 8000, folder: Path | None = None, config: str = "demo") -> list[Check]:
    """All checks, in the order in which one would mend them.

    port: where the HTTP server will listen. folder: where results are written; the working folder by default.
    config: a Serve config file, or its short name.
    """
    folder = folder or home()
    checks: list[Callable[[], Check]] = [
        check_python,
        *(lambda name=name: check_package(name) for name in PACKAGES),
        check_gpu,
        check_torchvision,
        check_opencv,
        check_codecs,
        check_voice,
        check_other_packages,
        check_weights,
        *(lambda entry=entry: check_fetched(entry, folder / weights.FOLDER) for entry in weights.SETS),
        check_ray_running,
        lambda: check_port(port),
        lambda: check_exposure(config),
        check_cores,
        check_memory,
        check_shared_memory,
        lambda: check_disk(folder),
        lambda: check_writable(folder),
    ]
    return [_guarded(check) for check in checks]


def _guarded(check: Callable[[], Check]) -> Check:
    """A check that cannot import what it looks with is a finding of its own, and no end of the examination."""
    try:
        return check()
    except ImportError as error:
        return Check(error.name or "packages", False, f"cannot be imported: {error}", f"Run `{INSTALL}`.")


# --- what is installed


def check_python() -> Check:
    ok = sys.version_info[:2] >= OLDEST_PYTHON
    remedy = "" if ok else f"Install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer; 3.11 is what is tested."
    return Check("Python", ok, f"{platform.python_version()} on {platform.system()} {platform.machine()}", remedy)


def check_package(name: str) -> Check:
    """The installed version against requirements.txt, read from its metadata: importing would take seconds."""
    wanted, installed = requirements().get(name, ""), version_of(name)
    if installed is None:
        return Check(name, False, "not installed", f"Run `{INSTALL}`, or `make setup`.")
    if not satisfies(installed, wanted):
        return Check(name, False, f"{installed}, but {wanted} is needed", f"Run `{INSTALL}`, or `make setup`.")
    return Check(name, True, installed)


def check_other_packages() -> Check:
    """Every package of requirements.txt that has no line of its own."""
    wanted = requirements().keys() - OWN_LINES
    missing = [name for name in sorted(wanted) if not check_package(name).ok]
    if missing:
        return Check(
            "packages", False, f"missing or too old: {', '.join(missing)}", f"Run `{INSTALL}`, or `make setup`."
        )
    return Check(
        "packages", bool(wanted), f"{len(wanted)} others of requirements.txt", "" if wanted else f"Run `{INSTALL}`."
    )


def check_torchvision() -> Check:
    """A torchvision built for another torch breaks `import transformers`, with an error that names neither."""
    torchvision, torch = version_of("torchvision"), version_of("torch")
    if torchvision is None or torch is None:
        return Check("torchvision", True, "not installed; not needed")
    pins = [re.match(r"torch\s*\(?==\s*([\d.]+)", line) for line in requires_of("torchvision")]
    wanted = next((pin.group(1) for pin in pins if pin), public(torch))
    same_build = torch.endswith("+cpu") <= torchvision.endswith(
        "+cpu"
    )  # a CUDA torchvision finds no CUDA in a CPU torch
    if wanted == public(torch) and same_build:
        return Check("torchvision", True, f"{torchvision}, made for torch {wanted}")
    return Check(
        "torchvision",
        False,
        f"{torchvision} is made for another torch than {torch}: transformers would not import",
        "Run `python -m pip uninstall torchvision`: WarmTalk does not need it.",
    )


def check_opencv() -> Check:
    names = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
    found = {name: version for name in names if (version := version_of(name)) is not None}
    listing = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        remedy = f"They overwrite one another: uninstall all of them, then run `{INSTALL}`."
        return Check("OpenCV", False, listing, remedy)
    if not found or not satisfies(next(iter(found.values())), ">=5"):
        remedy = "Run `python -m pip install 'opencv-python-headless>=5'`: older ones cannot run the face mesh."
        return Check("OpenCV", False, listing or "not installed", remedy)
    return Check("OpenCV", True, listing)


def check_codecs() -> Check:
    """H.264 and AAC encoders in the FFmpeg that PyAV carries."""
    try:
        import av
    except ImportError as error:
        return Check("PyAV codecs", False, f"PyAV cannot be imported: {error}", f"Run `{INSTALL}`.")
    missing = []
    for codec in ("libx264", "aac"):
        try:
            av.Codec(codec, "w")
        except ValueError:
            missing.append(codec)
    if missing:
        remedy = "Install PyAV's own wheel: `python -m pip install --force-reinstall --only-binary av av`."
        return Check("PyAV codecs", False, f"av {version_of('av')} has no {', '.join(missing)}", remedy)
    return Check("PyAV codecs", True, f"libx264 and aac in av {version_of('av')}")


def check_voice() -> Check:
    installed, wanted = version_of("hibari-tts"), requirements().get("hibari-tts", "")
    if installed is None:
        return Check("hibari-tts", False, "not installed", f"Run `{INSTALL}`, or `make setup`.")
    if not satisfies(installed, wanted):
        remedy = f"Run `python -m pip install hibari-tts{wanted}`; another version speaks, but may not tell phonemes."
        return Check("hibari-tts", False, f"{installed}, made for {wanted.lstrip('=')}", remedy, required=False)
    return Check("hibari-tts", True, installed)


def check_weights(folder: Path = checksums.EMBEDDED) -> Check:
    wrong = checksums.problems(folder)
    if wrong:
        remedy = "Run `git checkout -- models/embedded`; after training, `python -m models.weights.checksums`."
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return Check("embedded weights", False, "; ".join(wrong[:3]) + more, remedy)
    sizes = [(folder / name).stat().st_size for name in checksums.read_sums(folder)]
    return Check("embedded weights", True, f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, checksums right")


def check_fetched(entry: weights.WeightSet, root: Path) -> Check:
    """A set of production weights: none is needed, since the embedded ones run without them. Reads no file's bytes."""
    name, remedy = FETCHED + entry.name, f"Run `warmtalk fetch-weights --only {entry.name}`."
    try:
        states = weight_files.file_states(root, entry.files)
    except CorruptError as error:
        return Check(name, False, error.message, error.remedy, required=False)
    if not any(state.present for state in states):
        part = sum(state.part_bytes for state in states)
        found = f"{part / 1e6:,.1f} MB fetched of" if part else "absent:"
        size = f"{entry.size_bytes / 1e6:,.1f} MB" if entry.size_bytes else "a few MB"
        return Check(name, False, f"{found} {size}, for {entry.stage}", remedy, required=False)
    wrong = [_fault_of(state) for state in states if not state.right_size]
    if wrong:
        return Check(name, False, "; ".join(wrong), remedy, required=False)
    size_mb = sum(state.found_bytes or 0 for state in states) / 1e6
    verified = "sha256 verified" if all(state.verified for state in states) else "sha256 not verified yet"
    return Check(name, True, f"{size_mb:,.1f} MB, {verified}", required=False)


def _fault_of(state: weight_files.FileState) -> str:
    if not state.present:
        return f"{state.file.path} is missing"
    return f"{state.file.path} has {state.found_bytes} bytes instead of {state.file.size_bytes}"


# --- what the machine has


def check_gpu() -> Check:
    """GPUs that the driver shows, and whether the installed torch can use them. None is needed."""
    gpus, torch = nvidia_gpus(), version_of("torch") or ""
    if not gpus:
        return Check("GPU", True, "none; the embedded engines run on the CPU", required=False)
    if "+cpu" in torch:
        remedy = "Install torch's CUDA build (pytorch.org/get-started) and use `--config gpu`, or stay on the CPU."
        return Check("GPU", False, f"{', '.join(gpus)}; but torch {torch} is built for the CPU", remedy, required=False)
    return Check("GPU", True, f"{', '.join(gpus)}; `--config gpu` uses it", required=False)


def check_ray_running() -> Check:
    import psutil

    pids = [p.info["pid"] for p in psutil.process_iter(["pid", "name"]) if p.info["name"] == "gcs_server"]
    if pids:
        remedy = "WarmTalk starts its own beside it. Stop it with `ray stop` if nothing of yours runs on it."
        return Check("running Ray", False, f"one runs already (process {pids[0]})", remedy, required=False)
    return Check("running Ray", True, "none", required=False)


def check_port(port: int) -> Check:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            remedy = f"Stop what listens there (`ss -ltnp 'sport = :{port}'`), or start with `--port`."
            return Check(f"port {port}", False, f"in use or not allowed: {error.strerror}", remedy, required=False)
    return Check(f"port {port}", True, "free", required=False)


def check_exposure(config: str) -> Check:
    """Whether a server of this config file stands open to more than this machine."""
    name = f"config {Path(config).stem}"
    try:
        loaded = load_serve_config(config)
    except ConfigFileError as error:
        return Check(name, False, str(error), "Mend the file, or name another with --config.", required=False)
    if warning := exposure_warning(loaded):
        found, _, remedy = warning.partition(". ")
        return Check(name, False, found, remedy or "Export it before `warmtalk serve`.", required=False)
    wants = "wants a key" if api_keys_env(loaded) else "is reached from this machine only"
    return Check(name, True, f"its server {wants}", required=False)


def check_cores() -> Check:
    cores = usable_cores()
    remedy = "" if cores >= 2 else "Use two cores or more: on one, the video is made slower than it plays."
    return Check("CPU cores", cores >= 2, f"{cores:g}", remedy, required=False)


def check_memory() -> Check:
    total_gb = usable_memory_bytes() / 1e9
    ok = total_gb >= LEAST_MEMORY_GB
    remedy = "" if ok else f"Use a machine, or a container limit, of {LEAST_MEMORY_GB:g} GB or more."
    return Check("memory", ok, f"{total_gb:.1f} GB", remedy, required=False)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Ray keeps frames between stages here; where it is small, Ray falls back to the disk and slows down."""
    if not folder.is_dir():
        return Check("shared memory", True, f"no {folder} on {platform.system()}; not needed", required=False)
    free_gb = shutil.disk_usage(folder).free / 1e9
    ok = free_gb >= LEAST_SHM_GB
    remedy = "" if ok else "In Docker, start with `--shm-size=2g`; in Kubernetes, mount an emptyDir with medium Memory."
    return Check("shared memory", ok, f"{free_gb:.1f} GB free in {folder}", remedy, required=False)


def check_disk(folder: Path) -> Check:
    free_gb = shutil.disk_usage(existing(folder)).free / 1e9
    ok = free_gb >= LEAST_DISK_GB
    remedy = "" if ok else f"Free {LEAST_DISK_GB:g} GB, or set WARMTALK_HOME to a folder on another disk."
    return Check("disk", ok, f"{free_gb:.1f} GB free for sessions in {folder}", remedy)


def check_writable(folder: Path) -> Check:
    results = folder / "results"
    try:
        with tempfile.NamedTemporaryFile(dir=existing(results)) as file:
            file.write(b"warmtalk")
    except OSError as error:
        remedy = "Make it writable for this user, or set WARMTALK_HOME to a folder that is."
        return Check("results folder", False, f"{results} cannot be written: {error.strerror}", remedy)
    return Check("results folder", True, f"{results} can be written")


# --- what is shown


def main(as_json: bool = False, port: int = 8000, config: str = "demo") -> int:
    """Print the checks; returns 1 when one that is required fails, else 0."""
    checks = run_checks(port, config=config)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print_table(checks)
    return 1 if any(check.required and not check.ok for check in checks) else 0


def print_table(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in checks:
        mark = (
            Text("ok", "green")
            if check.ok
            else Text("missing", "bold red")
            if check.required
            else Text("note", "yellow")
        )
        table.add_row(mark, Text(check.name), Text(check.found))
        if check.remedy and not check.name.startswith(FETCHED):  # these share one line below
            table.add_row("", "", Text(f"→ {check.remedy}", "bold"))
    console.print(table)
    if any(check.name.startswith(FETCHED) and not check.ok for check in checks):
        console.print("[bold]→ For other faces than the presenter's: `warmtalk fetch-weights --only production`.[/]")
    bad = sum(check.required and not check.ok for check in checks)
    console.print(f"{bad} of {len(checks)} checks must be mended." if bad else "WarmTalk can run on this machine.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.add_argument("--port", type=int, default=8000, help="where the server will listen")
    arguments = parser.parse_args()
    sys.exit(main(arguments.json, arguments.port))
