"""Who may import whom among the modules at the top, which import-linter does not take: it knows packages only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = sorted(ROOT.glob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_an_import_is_seen_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text("import graph.x as y\ndef f():\n    from cli import app\n")
    assert imported(path) == {"graph", "cli"}


@pytest.mark.parametrize("path", TOP, ids=lambda path: path.stem)
def test_nobody_imports_graph_but_cli_and_nobody_cli(path: Path) -> None:
    assert "cli" not in imported(path)
    assert path.stem in ("cli", "graph") or "graph" not in imported(path)


def test_graph_knows_the_stages_the_schema_and_serve_alone() -> None:
    assert imported(ROOT / "graph.py") == {
        "__future__",
        "typing",
        "pydantic",
        "ray",
        "configs",
        "deployments",
        "models",
    }


def test_nothing_but_cli_doctor_and_benchmarks_reaches_beyond_the_graph() -> None:
    beyond = {"fetching", "judging", "training", "benchmarks"}
    beyond |= {"launch", "doctor", "machine", "profiling", "enhancing", "preparing"}
    reaching = {path.stem: imported(path) & beyond for path in TOP}
    assert reaching["cli"] == {"fetching", "judging", "launch", "doctor", "profiling", "enhancing", "preparing"}
    assert reaching["doctor"] == {"machine", "training"}  # training.checksums: the embedded files against SHA256SUMS
    assert {name for name, names in reaching.items() if names} == {"cli", "doctor"}
