"""README.md and docs/: Python, YAML, commands, names and links match the project; generated pages are up to date."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mypy import api as mypy
from typer.main import get_command

from configs.schema import STAGES, AppConfig
from deployments.ingress.deployment import api
from tests.support.paths import ROOT
from warmtalk.cli.app import app

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert spec is not None and spec.loader is not None
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

TEXT = "\n".join(page.read_text() for page in PAGES)
AWAIT = "async with", "await "


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of each fenced block of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, code) for page in PAGES for code in fence.findall(page.read_text())]


@pytest.fixture(scope="module")
def type_check(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[str, str, int]]]:
    """type_check(*files): output, errors and status of a strict type check, as in a user's own program."""
    options = ["--strict", "--config-file", "", "--python-version", "3.11", "--follow-imports=silent"]
    options += ["--cache-dir", str(tmp_path_factory.mktemp("mypy"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYPATH", str(ROOT))
        yield lambda *files: mypy.run([*options, *map(str, files)])


def test_python_passes_a_strict_type_checker_as_it_stands(type_check: Callable[..., Any], tmp_path: Path) -> None:
    """A snippet with a top-level `await` is checked as the body of a function."""
    files = []
    for number, (page, code) in enumerate(blocks("python")):
        if any(line.startswith(AWAIT) for line in code.splitlines()):
            code = "async def main() -> None:\n" + textwrap.indent(code, "    ")
        files.append(tmp_path / f"{page.split('.')[0].lower()}_{number}.py")
        files[-1].write_text(code)
    assert len(files) >= 4
    output, errors, status = type_check(*files)
    assert status == 0, output + errors


def test_the_type_check_rejects_wrong_calls(type_check: Callable[..., Any], tmp_path: Path) -> None:
    """Shows that the test above can fail."""
    file = tmp_path / "wrong.py"
    file.write_text(
        "from warmtalk import Client\n\n"
        "client = Client()\n"
        'client.speak("Hi", sesion_id="x")\n'
        'client.say(["Hi"], "x", strength=0.5)\n'
        'client.prepare("a.mp4", "me", fps=26)\n'
        'client.stream("Hi").close()\n'
    )
    output, _, status = type_check(file)
    assert status == 1 and re.findall(r"wrong\.py:(\d): error", output) == ["4", "5", "6"], output


def test_yaml_snippets_match_the_config_schema() -> None:
    """Each `user_config`, under its stage or alone, and each `args`."""
    checked = 0
    for page, code in blocks("yaml"):
        given = yaml.safe_load(textwrap.dedent(code))
        for kind, values in sections(given):
            kind.model_validate(values)
            checked += 1
        assert given, page
    assert checked >= 4


def sections(given: object) -> list[tuple[type, dict[str, object]]]:
    """The parts of a config snippet that the schema describes, at whatever level the snippet begins."""
    found: list[tuple[type, dict[str, object]]] = []
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, dict):
            continue
        if "import_path" in entry:  # another application
            continue
        if isinstance(entry.get("user_config"), dict):
            values = entry["user_config"]
            stage = entry.get("name") or next(
                n for n, kind in STAGES.items() if values.keys() <= kind.model_fields.keys()
            )
            found.append((STAGES[stage], values))
        if isinstance(entry.get("args"), dict):
            found.append((AppConfig, entry["args"]))
        for key in ("deployments", "applications"):
            found += sections(entry.get(key) or [])
        if entry.keys() <= set().union(*(kind.model_fields for kind in STAGES.values())):
            found.append((next(k for k in STAGES.values() if entry.keys() <= k.model_fields.keys()), entry))
    return found


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_generated_pages_are_up_to_date(name: str) -> None:
    """`make docs` writes them."""
    assert (ROOT / "docs" / name).read_text() == generate.PAGES[name]()


def test_the_reference_describes_every_key_of_every_stage() -> None:
    models = {"AppConfig": AppConfig, **STAGES}
    missing = [
        f"{stage}.{key}"
        for stage, kind in models.items()
        for key, field in kind.model_fields.items()
        if not field.description
    ]
    assert missing == []


def test_the_api_page_describes_every_route_and_parameter() -> None:
    schema, page = api.openapi(), (ROOT / "docs" / "http-api.md").read_text()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert f"## {method.upper()} {path}\n" in page
            for parameter in operation.get("parameters", []):
                described = parameter.get("description") or parameter["schema"].get("description")
                assert described, f"{method} {path}: {parameter['name']} has no description"


def test_the_readme_has_at_most_160_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|^)warmtalk ([a-z][a-z-]+)\b", TEXT, re.MULTILINE))))
def test_every_command_in_the_docs_exists(command: str) -> None:
    assert command in get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_has_help_with_a_valid_example() -> None:
    """The example is parsed, not run."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        example = re.fullmatch(r"Example: `warmtalk (.+)`", command.epilog or "")
        assert example and command.help, name
        said = shlex.split(example.group(1))
        assert said[0] == name
        command.make_context(name, said[1:])


def test_targets_benchmarks_links_and_paths_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)", TEXT)):
        assert f"\n{target}:" in makefile, target
    for module in set(re.findall(r"python -m (benchmarks\.[a-z_]+)", TEXT)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    folders = "docs|configs|tests|cluster|training|models|examples|web|deployments|benchmarks"
    for path in set(re.findall(rf"(?<![\w/])((?:{folders})/[\w./-]*\w)(?![\w<])", TEXT)):
        assert (ROOT / path).exists() or (ROOT / f"{path}.md").exists(), path


def test_json_in_examples_is_valid() -> None:
    bodies = re.findall(r"-d '(\{.*?\})'", TEXT)
    assert len(bodies) >= 3 and all(json.loads(body) for body in bodies)
