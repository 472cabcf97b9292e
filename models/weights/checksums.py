"""Writes and checks models/embedded/SHA256SUMS, in the format of `sha256sum --check`.

python -m models.weights.checksums            write the file, after any embedded file has changed
python -m models.weights.checksums --check    exit with 1 and name each file that is missing, changed or not listed
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
SUMS = "SHA256SUMS"
IGNORED_SUFFIXES = (".md", ".pyc", ".part", ".tmp")  # prose may be mended without a new list


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def embedded_files(folder: Path = EMBEDDED) -> list[str]:
    """Paths relative to `folder`, with forward slashes, sorted; without the list itself and hidden files."""
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
    """Write the list; returns how many files it names."""
    names = embedded_files(folder)
    text = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text(text, encoding="utf-8")
    return len(names)


def problems(folder: Path = EMBEDDED) -> list[str]:
    """What is wrong with the embedded files, a phrase each; empty when all are there and unchanged."""
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
    parser.add_argument("--check", action="store_true", help="compare the files with the list instead of writing it")
    if not parser.parse_args(arguments).check:
        print(f"{EMBEDDED / SUMS}: {write_sums()} files")
        return 0
    wrong = problems()
    print("\n".join(wrong) or "all embedded files are as listed", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
