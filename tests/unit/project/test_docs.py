"""What README.md and docs/ say, held against the project: their Python, YAML, routes, commands, names and links."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import yaml
from mypy import api as mypy
from typer.main import get_command

from configs.schema import STAGES, AppConfig
from deployments.ingress.deployment import api
from tests.support.paths import ROOT
from warmtalk.cli.app import app

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
INTERNAL = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", "/", "/web"}  # FastAPI's, and the page's own
ALLOWED_AWAIT = "async with", "await "


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of each fenced block of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, code) for page in PAGES for code in fence.findall(page.read_text())]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", str(ROOT))


def test_python_passes_a_strict_type_checker_as_it_stands(tmp_path: Path) -> None:
    """As a user's own program would: the client is typed. What awaits at the top stands for the body of a function."""
    files = []
    for number, (page, code) in enumerate(blocks("python")):
        if any(line.startswith(ALLOWED_AWAIT) for line in code.splitlines()):
            code = "async def main() -> None:\n" + textwrap.indent(code, "    ")
        files.append(tmp_path / f"{page.split('.')[0].lower()}_{number}.py")
        files[-1].write_text(code)
    assert len(files) >= 4
    cache = str(tmp_path / "cache")
    options = [
        "--strict",
        "--config-file",
        "",
        "--cache-dir",
        cache,
        "--python-version",
        "3.11",
        "--follow-imports=silent",
    ]
    said, wrong, status = mypy.run([*options, *map(str, files)])
    assert status == 0, said + wrong


def test_a_wrong_call_does_not_pass_it(tmp_path: Path) -> None:
    """Else the test above would hold for anything."""
    file = tmp_path / "wrong.py"
    file.write_text(
        "from warmtalk import Client\n\n"
        "client = Client()\n"
        'client.speak("Hi", sesion_id="x")\n'
        'client.say(["Hi"], "x", strength=0.5)\n'
        'client.prepare("a.mp4", "me", fps=26)\n'
        'client.stream("Hi").close()\n'
    )
    options = ["--strict", "--config-file", "", "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"]
    said, _, status = mypy.run([*options, str(file)])
    assert status == 1 and re.findall(r"wrong\.py:(\d): error", said) == ["4", "5", "6"], said


def test_yaml_is_what_the_config_takes() -> None:
    """Each user_config, under its stage or alone, and each `args`."""
    checked = 0
    for page, code in blocks("yaml"):
        given = yaml.safe_load(textwrap.dedent(code))
        for kind, values in sections(given):
            kind.model_validate(values)
            checked += 1
        assert given, page
    assert checked >= 4


def sections(given: object) -> list[tuple[type, dict[str, object]]]:
    """The parts of a piece of a config file that the schema knows, wherever the piece begins."""
    found: list[tuple[type, dict[str, object]]] = []
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, dict):
            continue
        if "import_path" in entry:  # another application's
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


def test_every_route_is_told_of() -> None:
    schema = api.openapi()
    untold = [path for path in schema["paths"] if path not in INTERNAL and not told(path)]
    assert untold == [] and len(schema["paths"]) > 25


def told(path: str) -> bool:
    """Whether a page names the path, with an example or a placeholder in it, or what stands behind the session's id."""
    pattern = re.sub(r"\\\{\w+\\\}", r"(?:\\{\\w+\\}|[A-Za-z_<>-]+)", re.escape(path))
    behind = re.fullmatch(r"/sessions/\{session_id\}/([\w.]+)(/.*)?", path)
    return bool(re.search(pattern + r"(?![\w/])", TEXT)) or bool(
        behind and f"`{behind.group(1)}`" in TEXT + part_of_table()
    )


def part_of_table() -> str:
    """Names in the README's table of what lies under a session: `interrupt` (POST)."""
    return " ".join(f"`{name}`" for name in re.findall(r"^\| `([\w.]+)`", TEXT, re.MULTILINE))


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|^)warmtalk ([a-z][a-z-]+)\b", TEXT, re.MULTILINE))))
def test_every_command_that_is_named_is_there(command: str) -> None:
    assert command in get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_has_help_with_an_example_that_it_takes() -> None:
    """The example is parsed, not run: its options and arguments are those of the command."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        example = re.fullmatch(r"Example: `warmtalk (.+)`", command.epilog or "")
        assert example and command.help, name
        said = shlex.split(example.group(1))
        assert said[0] == name
        command.make_context(name, said[1:])


def test_everything_else_that_is_named_is_there() -> None:
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


def test_json_in_examples_is_json() -> None:
    bodies = re.findall(r"-d '(\{.*?\})'", TEXT)
    assert len(bodies) >= 3 and all(json.loads(body) for body in bodies)
