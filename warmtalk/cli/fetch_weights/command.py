"""The steps of `warmtalk fetch-weights`: check files and disk space, download, record hashes; or only verify."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from models.errors import WeightsError
from models.weights.checksums import sha256_of
from models.weights.installed import (
    FileState,
    LockEntry,
    file_state,
    file_states,
    find_misplaced,
    move_into_place,
    read_lock,
    record_hash,
)
from models.weights.manifest import WeightFile, select, set_of
from warmtalk.cli.fetch_weights.download import Fetcher, UnreachableError

SPARE_DISK_BYTES = 1 << 30  # must stay free after the downloads
PIPED_WIDTH = 400  # columns of the plan outside a terminal, so that URLs are complete
REPLACED_SUFFIX = ".replaced"  # a wrong file is renamed, not deleted: it may be the user's own


def fetch_weights(
    root: Path,
    only: Iterable[str] = (),
    mirror: str | None = None,
    verify: bool = False,
    dry_run: bool = False,
    fetcher: Fetcher | None = None,
) -> int:
    """The command. Returns its exit status: 1 if a file could not be fetched or fails verification.

    root: the `weights` folder. only: names of sets, bundles or files; empty for all. Raises ConfigError for an unknown
    name or an invalid mirror, WeightsError for too little disk space, CorruptError for a broken lock file.
    """
    console, only = Console(stderr=True), list(only)
    files = select(only)
    if verify:
        return _verify(root, files, console, named=bool(only))
    fetcher = fetcher or Fetcher(mirror)
    if dry_run:
        _show_plan(root, files, fetcher)
        return 0
    for file in files:
        if found := find_misplaced(root, file):
            console.print(f"moved {found.relative_to(root)} → {move_into_place(root, file, found).relative_to(root)}")
    with _bar(console) as bar, fetcher:
        wanted = [state for state in file_states(root, files) if not _is_good(root, state, bar, console)]
        _refuse_offline(wanted)
        check_disk(root, wanted)
        return _fetch_all(root, wanted, fetcher, bar, console) or _conclude(files, wanted, console)


# --- files on disk


def _is_good(root: Path, state: FileState, bar: Progress, console: Console) -> bool:
    """Whether a file needs no download. Hashes a file that is not in the lock file; renames a wrong one."""
    if not state.present or state.verified:
        return state.verified
    if state.right_size:
        with _line(bar, f"checking {state.file.path}", state.found_bytes) as line:
            sha256 = sha256_of(state.path, lambda count: bar.advance(line, count))
        if state.file.sha256 in (None, sha256):
            record_hash(root, state.file, sha256)
            console.print(f"found {state.file.path}, {_size(state.found_bytes)}, sha256 {sha256[:12]}…")
            return True
        fault = f"its sha256 is {sha256[:12]}… instead of {str(state.file.sha256)[:12]}…"
    else:
        fault = f"it has {state.found_bytes} bytes instead of {state.file.size_bytes}"
    aside = state.path.with_name(state.path.name + REPLACED_SUFFIX)
    state.path.replace(aside)
    console.print(f"{state.file.path} differs from the manifest: {fault}. It is kept as {aside.name}.")
    return False


def check_disk(root: Path, wanted: Iterable[FileState]) -> None:
    """Raises WeightsError unless the disk has room for the downloads and SPARE_DISK_BYTES more."""
    needed = sum(map(_remaining_bytes, wanted))
    folder = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if needed and free < needed + SPARE_DISK_BYTES:
        raise WeightsError(
            f"The downloads need {_size(needed)}, and {folder} has {_size(free)} free.",
            f"Free {_size(needed + SPARE_DISK_BYTES - free)}, fetch less with --only, or set WARMTALK_HOME.",
        )


def _refuse_offline(wanted: list[FileState]) -> None:
    """HF_HUB_OFFLINE forbids downloads, for huggingface_hub and for this command. Raises WeightsError."""
    if wanted and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise WeightsError(
            f"{len(wanted)} files must be downloaded, and HF_HUB_OFFLINE is set.",
            "Unset it, or copy the files into place: `warmtalk fetch-weights --dry-run` lists them.",
        )


def _remaining_bytes(state: FileState) -> int:
    return max(0, (state.file.size_bytes or 0) - state.part_bytes)


# --- downloads


def _fetch_all(root: Path, wanted: list[FileState], fetcher: Fetcher, bar: Progress, console: Console) -> int:
    """Fetch every file; a failed one does not stop the others. Returns 1 if any failed."""
    dead: set[str] = set()  # servers that did not answer: do not retry them for every file
    failed = 0
    for state in wanted:
        host = httpx.URL(fetcher.urls(state.file)[0]).host
        if host in dead:
            console.print(f"[bold red]not fetched[/] {state.file.path}: {host} does not answer.", highlight=False)
            failed += 1
            continue
        try:
            _fetch_one(root, state, fetcher, bar, console)
        except WeightsError as error:
            failed += 1
            if isinstance(error, UnreachableError):
                dead.add(host)
            console.print(f"[bold red]not fetched[/] {error.message}", highlight=False)
            console.print(f"[bold]→[/] {error.remedy}", highlight=False)
    return 1 if failed else 0


def _fetch_one(root: Path, state: FileState, fetcher: Fetcher, bar: Progress, console: Console) -> None:
    file = state.file
    try:
        with _line(bar, file.path, file.size_bytes, state.part_bytes) as line:
            sha256 = fetcher.fetch(file, state.path, lambda done: bar.update(line, completed=done))
        record_hash(root, file, sha256)
    except OSError as error:
        raise WeightsError(
            f"{state.path} cannot be written: {error}.", "Free disk space, or correct the permissions."
        ) from error
    console.print(f"fetched {file.path}, {_size(state.path.stat().st_size)}, sha256 {sha256[:12]}…")


def _conclude(files: list[WeightFile], wanted: list[FileState], console: Console) -> int:
    licences = {f"{entry.name}: {entry.licence}": None for entry in map(set_of, files)}
    console.print(f"[green]{_files(files)} complete[/], {len(wanted)} fetched now. Licences: {'; '.join(licences)}.")
    return 0


# --- verification


def _verify(root: Path, files: list[WeightFile], console: Console, named: bool) -> int:
    """Hash the files and compare them with the manifest, or with the lock file. Downloads and writes nothing.

    A file that was never fetched fails only if it was named. A file of the lock file that is gone always fails, and so
    does a folder with none of the files.
    """
    lock = read_lock(root)
    faults: dict[str, str] = {}
    good = 0
    with _bar(console) as bar:
        for file in files:
            fault = _fault(file_state(root, file, lock), lock.get(file.path), named, bar)
            if fault:
                faults[file.path] = fault
            good += fault is None
    for path, fault in faults.items():
        console.print(f"[bold red]differs[/] {path}: {fault}", highlight=False)
    if faults:
        console.print("[bold]→[/] Run `warmtalk fetch-weights` with the same names: it replaces files that differ.")
    elif not good:
        console.print(f"[bold red]missing[/] {root} contains none of the weights.", highlight=False)
        console.print("[bold]→[/] Run `warmtalk fetch-weights`.")
    else:
        console.print(f"[green]{good} of {_files(files)} verified[/] in {root}")
    return 1 if faults or not good else 0


def _fault(state: FileState, entry: LockEntry | None, named: bool, bar: Progress) -> str | None:
    """What is wrong with a file; None if it is right, "" if it was never fetched."""
    if not state.present:
        return "it was deleted" if entry else "it is missing" if named else ""
    wanted = state.file.sha256 or (entry.sha256 if entry else None)
    if not state.right_size:
        return f"it has {state.found_bytes} bytes instead of {state.file.size_bytes}"
    if wanted is None:
        return "its hash is unknown: fetch it first"
    with _line(bar, f"verifying {state.file.path}", state.found_bytes) as line:
        found = sha256_of(state.path, lambda count: bar.advance(line, count))
    return None if found == wanted else f"its sha256 is {found[:12]}… instead of {wanted[:12]}…"


# --- output


def _show_plan(root: Path, files: list[WeightFile], fetcher: Fetcher) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("file", "size", "action", "sha256", "from", "licence"):
        table.add_column(
            column, justify="right" if column == "size" else "left", overflow="fold", no_wrap=column == "file"
        )
    needed = 0
    for state in file_states(root, files):
        file = state.file
        action = _action(root, state)
        needed += _remaining_bytes(state) if action.startswith(("download", "replace")) else 0
        url = fetcher.urls(file)[0]
        source = httpx.URL(url).host if console.is_terminal else url
        cells = [file.path, _size(file.size_bytes), action, (file.sha256 or "from server")[:12], source]
        table.add_row(*map(Text, [*cells, set_of(file).licence]))
    console.print(f"weights in {root}:", highlight=False)
    console.print(table)
    console.print(f"{_size(needed)} to download; nothing was changed.")


def _action(root: Path, state: FileState) -> str:
    if state.verified:
        return "nothing"
    if not state.present:
        found = find_misplaced(root, state.file)
        if found:
            return f"move {found.relative_to(root)}"
        return f"download from byte {state.part_bytes}" if state.part_bytes else "download"
    return "check" if state.right_size else "replace: wrong size"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip


@contextmanager
def _line(bar: Progress, text: str, total: int | None, done: int = 0) -> Iterator[TaskID]:
    line = bar.add_task(text, total=total, completed=done)
    try:
        yield line
    finally:
        bar.remove_task(line)


def _files(files: list[WeightFile]) -> str:
    return f"{len(files)} file{'s' if len(files) != 1 else ''}"


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "?"
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.2f} {unit}"
    return f"{size_bytes} B"
