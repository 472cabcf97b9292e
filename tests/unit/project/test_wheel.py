"""The wheel outside the checkout: what it contains, what the client needs, and that the command finds everything."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.wheel import Environment, build_sdist, build_wheel

FOLDERS = ("configs", "deployments", "models", "web")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """As after `pip install warmtalk`: with httpx and what that requires, and nothing else."""
    environment = Environment(tmp_path_factory.mktemp("client") / "venv", wheel)
    environment.borrow({"httpx"})
    return environment


@pytest.fixture(scope="module")
def server(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """As after `pip install 'warmtalk[server]'`."""
    environment = Environment(tmp_path_factory.mktemp("server") / "venv", wheel)
    environment.borrow()
    return environment


def test_site_packages_gains_one_name(client_only: Environment) -> None:
    names = {path.name for path in client_only.site_packages.iterdir()} - {"borrowed.pth"}
    assert names == {"warmtalk", "warmtalk-0.1.0.dist-info"}


def test_the_wheel_contains_the_servers_files_and_nothing_of_development(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [ROOT / "graph.py", *(path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file())]
    expected = {
        f"warmtalk/_server/{path.relative_to(ROOT)}"
        for path in sources
        if "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    found = {name for name in names if name.startswith("warmtalk/_server/")}
    assert found == expected
    for part in ("models/embedded/musetalk/unet.safetensors", "configs/demo.yaml", "web/index.html"):
        assert f"warmtalk/_server/{part}" in names
    assert "warmtalk/py.typed" in names and "warmtalk/cli/app.py" in names


def test_the_client_needs_httpx_alone(client_only: Environment) -> None:
    code = "import sys, warmtalk; warmtalk.Client(); print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(client_only.run(["-c", code]).split())
    assert "httpx" in loaded and not loaded & {"ray", "numpy", "torch", "typer", "pydantic", "yaml", "models"}


def test_the_command_without_the_server_extra_says_what_to_install(client_only: Environment) -> None:
    done = client_only.result(["say", "Hello."], program="warmtalk")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert " is not installed.\n→ Run: python -m pip install 'warmtalk[server]'" in done.stderr


def test_every_module_of_the_server_can_be_imported(server: Environment) -> None:
    """As a Ray worker does: from the private folder, with no trace of the checkout."""
    code = """
import json, sys
from importlib.util import find_spec
import warmtalk.cli
from warmtalk.cli import app, doctor, enhance, local_graph, prepare, say, warm
import graph
ours = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()
        if name.partition(".")[0] in ("warmtalk", "graph", "models", "deployments", "configs")}
print(json.dumps({"code": str(warmtalk.cli.CODE), "files": ours, "path": sys.path,
                  "tests": [name for name in ("tests", "training", "benchmarks") if find_spec(name)]}))
"""
    found = json.loads(server.run(["-c", code]).splitlines()[-1])
    package = server.site_packages / "warmtalk"
    assert Path(found["code"]) == package / "_server"
    assert len(found["files"]) > 100
    for name, file in found["files"].items():
        assert file is None or Path(file).is_relative_to(package), name
    assert str(ROOT) not in found["path"] and found["tests"] == []


def test_help_and_doctor_run_in_any_folder(server: Environment, tmp_path: Path) -> None:
    """A graph.py and a models/ in the working folder are not taken for ours."""
    (tmp_path / "graph.py").write_text("raise RuntimeError('of the working folder')")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('of the working folder')")
    shown = server.result(["--help"], cwd=tmp_path, program="warmtalk", COLUMNS="200")
    assert shown.returncode == 0 and all(name in shown.stdout for name in ("say", "serve", "prepare", "doctor"))
    done = server.result(["doctor", "--json"], cwd=tmp_path, program="warmtalk")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["embedded weights"]["ok"] and checks["packages"]["ok"] and checks["ray"]["ok"]
    remedies = " ".join(check["remedy"] for check in checks.values())
    assert "make " not in remedies and "git " not in remedies  # neither exists here


def test_prepare_reads_weights_and_config_from_the_wheel(server: Environment, tmp_path: Path) -> None:
    """The VAE is loaded before the picture is opened; one without a face is refused."""
    from PIL import Image

    Image.new("RGB", (128, 128)).save(tmp_path / "blank.png")
    arguments = ["prepare", "blank.png", "--avatar-id", "me"]
    cache = str(ROOT / ".cache")  # compiled models
    done = server.result(arguments, cwd=tmp_path, program="warmtalk", WARMTALK_CACHE=cache, OMP_NUM_THREADS="1")
    assert done.returncode == 1 and "no_face" in done.stderr, done.stderr


@pytest.mark.full
def test_a_wheel_built_from_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    archive = build_sdist(tmp_path)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    (tmp_path / "wheel").mkdir()
    again = build_wheel(tmp_path / "wheel", source)
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())
