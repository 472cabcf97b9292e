"""The two commands, from any folder, in a path with spaces, with whatever text: `warmtalk` gets it as it was typed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

RECORDER = f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), sys.argv[1:]]))\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The Makefile in a folder with spaces, set up already, with a `warmtalk` that prints how it was called."""
    folder = tmp_path / "my projects" / "warm talk"
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("requirements.lock", "pyproject.toml", ".venv/ready", ".venv/warm"):
        (folder / name).touch()
    script = folder / ".venv" / "bin" / "warmtalk"
    script.write_text(RECORDER)
    script.chmod(0o755)
    return folder


def make(repository: Path, *arguments: str, **environment: str) -> list:
    """[working folder, arguments] of the call that make comes to."""
    command = ["make", "-s", "--no-print-directory", "-C", str(repository), *arguments]
    inherited = {key: value for key, value in os.environ.items() if key not in ("TEXT", "MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd="/", env=inherited | environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "text",
    [
        "Hello.",
        'She said "hi".',
        "It's $5, `date`, $HOME and $(shell date).",
        "Zwei\tWörter; ls && false #!",
        "-- -o x",
    ],
)
def test_the_demo_says_the_text_as_it_was_typed(repository, text):
    expected = ["say", "-o", "out/demo.mp4", "--", text]
    assert make(repository, "demo", f"TEXT={text}") == [str(repository), expected]
    assert make(repository, "demo", TEXT=text)[1] == expected


def test_the_demo_has_a_text_of_its_own(repository):
    assert make(repository, "demo")[1][-1].startswith("Hello! I am a talking head.")


def test_serve_replaces_the_shell_so_that_ctrl_c_reaches_it(repository):
    assert make(repository, "serve") == [str(repository), ["serve"]]
    assert "\t@exec .venv/bin/warmtalk serve" in (ROOT / "Makefile").read_text()


def test_every_target_that_help_lists_exists(repository):
    done = subprocess.run(["make", "-s", "-C", str(repository), "help"], capture_output=True, text=True, timeout=30)
    targets = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"demo", "serve", "test", "check", "bench", "profile"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "-n", "-C", str(repository), target], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, (target, done.stderr)
