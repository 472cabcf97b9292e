"""The Makefile from any folder, in a path with spaces: what it runs, and what set-up shows on the terminal."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

RECORDER = f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), sys.argv[1:]]))\n"
SETUP_FILES = ("requirements.lock", "pyproject.toml", "setup.py")

# `python -m venv .venv` puts this same script there; its pip prints much, and fails for $FAIL.
PYTHON = f"""#!{sys.executable}
import os, pathlib, shutil, sys
command = " ".join(sys.argv[1:])
if command == "-m venv .venv":
    pathlib.Path(".venv/bin").mkdir(parents=True)
    shutil.copy(sys.argv[0], ".venv/bin/python")
if "-m pip" in command:
    print("Collecting a package\\n" * 400)
    if os.environ.get("FAIL", "no such command") in command:
        sys.exit("ERROR: the disk is full")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile in a folder with spaces in its path."""
    folder = tmp_path / "my projects" / "warm talk"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    for name in SETUP_FILES:
        (folder / name).write_text("torch==1.0\n")
    return folder


@pytest.fixture
def ready(checkout: Path) -> Path:
    """A checkout after `make setup`, with a `warmtalk` that prints how it was called."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    for name in ("ready", "warm"):
        (checkout / ".venv" / name).touch()
    _script(checkout / ".venv" / "bin" / "warmtalk", RECORDER)
    return checkout


def _script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "--no-print-directory", "-C", str(folder), *arguments]
    inherited = {key: value for key, value in os.environ.items() if key not in ("TEXT", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd="/", env=inherited | environment, capture_output=True, text=True, timeout=60)


def called(folder: Path, *arguments: str, **environment: str) -> list:
    """[working folder, arguments] with which make called `warmtalk`."""
    done = make(folder, *arguments, **environment)
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
def test_demo_passes_the_text_unchanged(ready, text):
    expected = ["say", "-o", "out/demo.mp4", "--", text]
    assert called(ready, "demo", f"TEXT={text}") == [str(ready), expected]
    assert called(ready, "demo", TEXT=text)[1] == expected


def test_demo_has_a_default_text(ready):
    assert called(ready, "demo")[1][-1].startswith("Hello! I am a talking head.")


def test_serve_replaces_the_shell_so_that_ctrl_c_reaches_it(ready):
    assert called(ready, "serve") == [str(ready), ["serve"]]
    assert "\t@exec .venv/bin/warmtalk serve" in (ROOT / "Makefile").read_text()


def test_setup_prints_one_line_per_step(checkout, tmp_path):
    done = make(checkout, "setup", PYTHON=str(_script(tmp_path / "python", PYTHON)))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines[1:]] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(line.endswith("… done") for line in lines[1:]) and done.stderr == ""
    assert (checkout / ".venv" / "setup.log").read_text().count("Collecting a package") == 1200
    assert make(checkout, "setup").stdout == ""  # a second time there is nothing to do


def test_a_failed_setup_shows_the_end_of_the_log_and_names_it(checkout, tmp_path):
    done = make(checkout, "setup", PYTHON=str(_script(tmp_path / "python", PYTHON)), FAIL="-r requirements.lock")
    assert done.returncode != 0
    assert "3/4 Installing the other packages … failed" in done.stdout
    assert "ERROR: the disk is full" in done.stdout and ".venv/setup.log" in done.stdout
    assert len(done.stdout.splitlines()) < 40
    assert not (checkout / ".venv" / "ready").exists()


def test_every_target_in_the_help_exists(ready):
    targets = [line.split()[0] for line in make(ready, "help").stdout.splitlines()]
    assert {"demo", "serve", "test", "check", "bench", "profile"} <= set(targets)
    for target in targets:
        done = make(ready, "-n", target)
        assert done.returncode == 0, (target, done.stderr)
