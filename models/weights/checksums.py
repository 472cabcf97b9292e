"""Hashes files, and writes and checks models/embedded/SHA256SUMS in the format of `sha256sum --check`.

python -m models.weights.checksums            write the file; needed after an embedded file has changed
python -m models.weights.checksums --check    list each file that is missing, changed or not listed; then exit with 1
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
SUMS = "SHA256SUMS"
IGNORED_SUFFIXES = (".md", ".pyc", ".part", ".tmp")  # documentation may change without a new list
BLOCK_BYTES = 1 << 20


def sha256_of(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """The sha256 of a file as hex digits. progress: called with the size of each block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def embedded_files(folder: Path = EMBEDDED) -> list[str]:
    """Sorted paths relative to `folder`, with forward slashes; without SHA256SUMS, documentation and hidden files."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in paths
        if path.name != SUMS
        and path.suffix not in IGNORED_SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
    )


def read_sums(folder: Path = EMBEDDED) -> dict[str, str]:
    """Relative path → sha256. Raises FileNotFoundError."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines if line.strip())}


def write_sums(folder: Path = EMBEDDED) -> int:
    """Write SHA256SUMS. Returns the number of files in it."""
    names = embedded_files(folder)
    text = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text(text, encoding="utf-8")
    return len(names)


def problems(folder: Path = EMBEDDED) -> list[str]:
    """One phrase per wrong embedded file; empty if all files are present and unchanged."""
    if not (folder / SUMS).is_file():
        return [f"{SUMS} is missing"]
    sums = read_sums(folder)
    found = set(embedded_files(folder))
    wrong = [f"{name} is missing" for name in sums if name not in found]
    wrong += [f"{name} is not listed" for name in sorted(found - sums.keys())]
    wrong += [f"{name} has changed" for name in sums if name in found and sha256_of(folder / name) != sums[name]]
    return wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.weights.checksums", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the files with the list; do not write it")
    if not parser.parse_args(arguments).check:
        print(f"{EMBEDDED / SUMS}: {write_sums()} files")
        return 0
    wrong = problems()
    print("\n".join(wrong) or "All embedded files match the list.", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
