"""`warmtalk doctor`: checks this machine for what WarmTalk needs and says how to fix what is wrong. Changes nothing."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from configs import placement
from configs.exposure import api_keys_env, exposure_warning
from configs.serve_file import ConfigFileError, deployment_of, gpu_stages, load_serve_config
from deployments.common.paths import home
from models.errors import ConfigError, CorruptError
from models.weights import checksums
from models.weights import installed as weight_files
from models.weights import manifest as weights
from warmtalk.cli.machine import existing, nvidia_gpus, ray_processes, usable_cores, usable_memory_bytes
from warmtalk.cli.packages import (
    exact_requirement,
    in_checkout,
    install_remedy,
    missing_package,
    public,
    requirements,
    version_of,
)
from warmtalk.cli.ports import ServerRunningError, require_free_port

MIN_PYTHON = (3, 11)
MIN_MEMORY_GB = 6.0  # the whole process tree takes less than 5 GB
MIN_DISK_GB = 2.0  # one hour of session is about 0.5 GB; compiled models and avatars need more
MIN_SHM_GB = 0.7  # the object store of a local graph is 600 MB
PACKAGES = ("torch", "ray", "transformers", "diffusers")
FETCHED = "weights "  # prefix of the names of the checks of production weights
OWN_LINES = {*PACKAGES, "opencv-python-headless", "hibari-tts"}  # packages with a check of their own


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. `remedy` is empty if it passed; a check that is not required only prints a note."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    required: bool = True


def run_checks(config: str = "demo", folder: Path | None = None) -> list[Check]:
    """All checks, in the order in which to fix them.

    config: a Serve config file or its short name. folder: where results are written; home() by default.
    """
    folder = folder or home()
    checks: list[Callable[[], Check]] = [
        check_python,
        *(lambda name=name: check_package(name) for name in PACKAGES),
        lambda: check_gpu(config),
        lambda: check_placement(config),
        check_torchvision,
        check_opencv,
        check_codecs,
        lambda: check_encoder(config),
        check_voice,
        check_other_packages,
        check_weights,
        *(lambda entry=entry: check_fetched(entry, folder / weights.FOLDER) for entry in weights.SETS),
        check_ray_running,
        lambda: check_port(config),
        lambda: check_exposure(config),
        check_cores,
        check_memory,
        check_shared_memory,
        lambda: check_disk(folder),
        lambda: check_writable(folder),
    ]
    return [_guarded(check) for check in checks]


def _guarded(check: Callable[[], Check]) -> Check:
    """Run a check; one that fails to import a package becomes a failed check itself."""
    try:
        return check()
    except ImportError as error:
        message, remedy = missing_package(error)
        return Check(error.name or "packages", False, message, remedy)


# --- installed packages


def check_python() -> Check:
    ok = sys.version_info[:2] >= MIN_PYTHON
    remedy = "" if ok else f"Install Python {'.'.join(map(str, MIN_PYTHON))} or newer; 3.11 is tested."
    return Check("Python", ok, f"{platform.python_version()} on {platform.system()} {platform.machine()}", remedy)


def check_package(name: str) -> Check:
    """The installed version against the version that this project requires."""
    wanted, installed = requirements().get(name), version_of(name)
    if installed is None:
        return Check(name, False, "not installed", install_remedy())
    if wanted is not None and not wanted.contains(installed, prereleases=True):
        return Check(name, False, f"{installed}, but {wanted} is needed", install_remedy())
    return Check(name, True, installed)


def check_other_packages() -> Check:
    """Every required package that has no check of its own."""
    wanted = sorted(requirements().keys() - OWN_LINES)
    if not wanted:
        return Check("packages", False, "the package warmtalk is not installed", install_remedy())
    missing = [name for name in wanted if not check_package(name).ok]
    if missing:
        return Check("packages", False, f"missing or too old: {', '.join(missing)}", install_remedy())
    return Check("packages", True, f"{len(wanted)} more, all installed")


def check_torchvision() -> Check:
    """A torchvision built for another torch breaks `import transformers`, with an error that names neither."""
    torchvision, torch = version_of("torchvision"), version_of("torch")
    if torchvision is None or torch is None:
        return Check("torchvision", True, "not installed; not needed")
    wanted = exact_requirement("torchvision", on="torch") or public(torch)
    # a CUDA torchvision does not work with a CPU torch
    same_build = torch.endswith("+cpu") <= torchvision.endswith("+cpu")
    if wanted == public(torch) and same_build:
        return Check("torchvision", True, f"{torchvision}, built for torch {wanted}")
    found = f"{torchvision} is built for another torch than {torch}; importing transformers fails"
    return Check("torchvision", False, found, "Run `python -m pip uninstall torchvision`: WarmTalk does not need it.")


def check_opencv() -> Check:
    names = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
    found = {name: version for name in names if (version := version_of(name)) is not None}
    listing = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        remedy = f"They overwrite each other. Uninstall all of them. {install_remedy()}"
        return Check("OpenCV", False, listing, remedy)
    if not found or int(next(iter(found.values())).partition(".")[0]) < 5:
        remedy = "Run `python -m pip install 'opencv-python-headless>=5'`: older versions cannot run the face mesh."
        return Check("OpenCV", False, listing or "not installed", remedy)
    return Check("OpenCV", True, listing)


def check_codecs() -> Check:
    """H.264 and AAC encoders in the FFmpeg libraries of PyAV."""
    import av

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


def check_encoder(config: str = "demo") -> Check:
    """The H.264 encoder that Stitch would use on this machine, and why."""
    from models.media.h264 import choose_encoder

    try:
        setting = (deployment_of(load_serve_config(config), "Stitch").get("user_config") or {}).get("encoder", "auto")
    except ConfigFileError:
        setting = "auto"  # check_exposure reports the config file
    try:
        encoder, reason = choose_encoder(setting)
    except ConfigError as error:
        return Check("H.264 encoder", False, error.message, error.remedy)
    return Check("H.264 encoder", True, f"{encoder} ({reason})")


def check_voice() -> Check:
    installed, wanted = version_of("hibari-tts"), requirements().get("hibari-tts")
    if installed is None:
        return Check("hibari-tts", False, "not installed", install_remedy())
    if wanted is not None and not wanted.contains(installed):
        remedy = f"Run `python -m pip install hibari-tts{wanted}`; other versions speak, but may give no phoneme times."
        return Check("hibari-tts", False, f"{installed}, but {wanted} is expected", remedy, required=False)
    return Check("hibari-tts", True, installed)


def check_weights(folder: Path = checksums.EMBEDDED) -> Check:
    wrong = checksums.problems(folder)
    if wrong:
        remedy = "Reinstall the package: `python -m pip install --force-reinstall --no-deps` and the wheel's file."
        if in_checkout():
            remedy = "Run `git checkout -- models/embedded`; after training, `python -m models.weights.checksums`."
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return Check("embedded weights", False, "; ".join(wrong[:3]) + more, remedy)
    sizes = [(folder / name).stat().st_size for name in checksums.read_sums(folder)]
    return Check("embedded weights", True, f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, checksums match")


def check_fetched(entry: weights.WeightSet, root: Path) -> Check:
    """A set of production weights. They are optional. Compares sizes and the lock file, without reading the files."""
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


# --- the machine


def check_gpu(config: str = "demo") -> Check:
    """NVIDIA GPUs, and whether the installed torch can use them. Required if the config needs one on this machine."""
    gpus, torch = nvidia_gpus(), version_of("torch") or ""
    try:
        loaded = load_serve_config(config)
        needed = bool(gpu_stages(loaded))
    except ConfigFileError:
        loaded, needed = {}, False  # check_exposure reports the config file
    required = needed and loaded.get("proxy_location") != "EveryNode"  # the GPUs of a cluster may be on other nodes
    if needed and not gpus:
        remedy = "Use `--config demo` on this machine."
        return Check("GPU", False, f"none, but the config {Path(config).stem} needs one", remedy, required)
    if not gpus:
        return Check("GPU", True, "none; the embedded engines run on the CPU", required=False)
    if "+cpu" in torch:
        remedy = "Install torch's CUDA build (pytorch.org/get-started) and use `--config gpu`, or stay on the CPU."
        return Check("GPU", False, f"{', '.join(gpus)}; torch {torch} cannot use it", remedy, required)
    return Check("GPU", True, f"{', '.join(gpus)}; `--config gpu` uses it", required=False)


def check_placement(config: str) -> Check:
    """Whether the replicas of a config, each with its share of a GPU, fit the GPUs of this machine."""
    gpus = nvidia_gpus()
    try:
        loaded = load_serve_config(config)
    except ConfigFileError:
        return Check("GPU shares", True, "not checked", required=False)  # check_exposure reports the config file
    on_this_machine = gpus and loaded.get("proxy_location") != "EveryNode"
    problems = placement.check_placement(loaded, len(gpus) if on_this_machine else None)
    if problems:
        found, _, remedy = problems[0].rpartition(". ")
        return Check("GPU shares", False, found, remedy, required=False)
    return Check("GPU shares", True, f"those of {Path(config).stem} fit" if gpus else "no GPU to share", required=False)


def check_ray_running() -> Check:
    """Another Ray may run: WarmTalk starts its own. Stopping it could end a WarmTalk server or another's cluster."""
    pids = ray_processes()
    if not pids:
        return Check("running Ray", True, "none", required=False)
    processes = f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
    return Check("running Ray", True, f"yes ({processes}); WarmTalk starts its own beside it", required=False)


def check_port(config: str) -> Check:
    """Whether the HTTP port of the config is free. Another one can be chosen with --port."""
    try:
        http = load_serve_config(config).get("http_options") or {}
    except ConfigFileError:
        http = {}  # check_exposure reports the config file
    host, port = http.get("host", "127.0.0.1"), http.get("port", 8000)
    name = f"port {port}"
    try:
        require_free_port(host, port)
    except ServerRunningError as error:
        remedy = f"Use it: `warmtalk say --server {error.url}`, or open {error.url}. --port starts another."
        return Check(name, False, f"a WarmTalk server runs at {error.url}", remedy, required=False)
    except ConfigError as error:
        return Check(name, False, error.message, error.remedy, required=False)
    return Check(name, True, "free", required=False)


def check_exposure(config: str) -> Check:
    """Whether the server of this config file is open to other machines without a key."""
    name = f"config {Path(config).stem}"
    try:
        loaded = load_serve_config(config)
    except ConfigFileError as error:
        return Check(name, False, str(error), "Correct the file, or name another with --config.", required=False)
    if warning := exposure_warning(loaded):
        found, _, remedy = warning.partition(". ")
        return Check(name, False, found, remedy or "Export it before `warmtalk serve`.", required=False)
    access = "an API key is required" if api_keys_env(loaded) else "reachable from this machine only"
    return Check(name, True, access, required=False)


def check_cores() -> Check:
    cores = usable_cores()
    remedy = "" if cores >= 2 else "Use two cores or more: with one, video is produced slower than it plays."
    return Check("CPU cores", cores >= 2, f"{cores:g}", remedy, required=False)


def check_memory() -> Check:
    total_gb = usable_memory_bytes() / 1e9
    ok = total_gb >= MIN_MEMORY_GB
    remedy = "" if ok else f"Use a machine or a container limit of {MIN_MEMORY_GB:g} GB or more."
    return Check("memory", ok, f"{total_gb:.1f} GB", remedy, required=False)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Ray's object store holds the frames between stages here; if it is small, Ray uses the disk and slows down."""
    if not folder.is_dir():
        return Check("shared memory", True, f"no {folder} on {platform.system()}; not needed", required=False)
    free_gb = shutil.disk_usage(folder).free / 1e9
    ok = free_gb >= MIN_SHM_GB
    remedy = "" if ok else "In Docker, start with `--shm-size=2g`; in Kubernetes, mount an emptyDir with medium Memory."
    return Check("shared memory", ok, f"{free_gb:.1f} GB free in {folder}", remedy, required=False)


def check_disk(folder: Path) -> Check:
    free_gb = shutil.disk_usage(existing(folder)).free / 1e9
    ok = free_gb >= MIN_DISK_GB
    remedy = "" if ok else f"Free {MIN_DISK_GB:g} GB, or set WARMTALK_HOME to a folder on another disk."
    return Check("disk", ok, f"{free_gb:.1f} GB free for sessions in {folder}", remedy)


def check_writable(folder: Path) -> Check:
    results = folder / "results"
    try:
        with tempfile.NamedTemporaryFile(dir=existing(results)) as file:
            file.write(b"warmtalk")
    except OSError as error:
        remedy = "Make it writable for this user, or set WARMTALK_HOME to another folder."
        return Check("results folder", False, f"{results} is not writable: {error.strerror}", remedy)
    return Check("results folder", True, f"{results} is writable")


# --- output


def main(as_json: bool = False, config: str = "demo") -> int:
    """Print the checks; returns 1 if a required one fails, else 0."""
    checks = run_checks(config)
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
        failed = Text("failed", "bold red") if check.required else Text("note", "yellow")
        table.add_row(Text("ok", "green") if check.ok else failed, Text(check.name), Text(check.found))
        if check.remedy and not check.name.startswith(FETCHED):  # one line below for all of these
            table.add_row("", "", Text(f"→ {check.remedy}", "bold"))
    console.print(table)
    if any(check.name.startswith(FETCHED) and not check.ok for check in checks):
        console.print("[bold]→ For avatars from your own videos: `warmtalk fetch-weights --only production`.[/]")
    bad = sum(check.required and not check.ok for check in checks)
    console.print(f"{bad} of {len(checks)} checks failed." if bad else "WarmTalk can run on this machine.")
