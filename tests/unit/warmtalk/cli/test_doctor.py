"""`warmtalk doctor`: what each check finds and advises."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.weights import checksums
from models.weights import installed as weight_files
from models.weights import manifest as weights
from warmtalk.cli import doctor, packages, ports


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    table = {name.replace("_", "-"): version for name, version in installed.items()}
    for module in (doctor, packages):
        monkeypatch.setattr(module, "version_of", table.get)


def test_every_check_has_a_finding_and_every_failed_one_a_remedy(tmp_path: Path) -> None:
    checks = doctor.run_checks(folder=tmp_path)
    names = [check.name for check in checks]
    assert len(names) == len(set(names)) == 22 + len(weights.SETS)
    assert all(check.found for check in checks)
    assert all(bool(check.remedy) != check.ok for check in checks)


def test_shares_of_a_gpu_that_do_not_add_up_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (Path("configs/gpu.yaml")).read_text().replace("num_gpus: 0.5", "num_gpus: 0.8")
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ["NVIDIA H200, 143771 MiB"])
    check = doctor.check_placement(str(tmp_path / "mine.yaml"))
    assert not check.ok and "need 2 GPUs, not 1" in check.found and "LipSync 0.8" in check.found
    assert "Lower num_gpus" in check.remedy
    assert doctor.check_placement("gpu").ok and doctor.check_placement("cluster").ok
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: [])
    assert doctor.check_placement(str(tmp_path / "mine.yaml")).ok  # check_gpu says that there is none


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().ok
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    check = doctor.check_python()
    assert (check.ok, check.required) == (False, True) and "3.11" in check.remedy


def test_missing_and_old_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, ray="2.50.0")
    assert doctor.check_package("ray").found == "2.50.0, but >=2.60 is needed"
    assert doctor.check_package("torch").found == "not installed"
    assert not doctor.check_package("torch").ok and "make setup" in doctor.check_package("torch").remedy
    monkeypatch.setattr(packages, "in_checkout", lambda: False)
    assert "'warmtalk[server]'" in doctor.check_package("torch").remedy
    others = doctor.check_other_packages()
    assert not others.ok and "fastapi" in others.found and "ray" not in others.found


@pytest.mark.parametrize(
    ("torch", "torchvision", "requires", "ok"),
    [
        ("2.13.0+cpu", None, [], True),
        ("2.13.0+cpu", "0.28.0+cpu", ["numpy", "torch==2.13.0"], True),
        ("2.13.0", "0.28.0", ["torch (==2.13.0)"], True),
        ("2.13.0+cpu", "0.27.0+cpu", ["torch==2.12.0"], False),
        ("2.13.0+cpu", "0.28.0", ["torch==2.13.0"], False),
    ],
)
def test_a_torchvision_built_for_another_torch_fails(
    monkeypatch: pytest.MonkeyPatch, torch: str, torchvision: str | None, requires: list[str], ok: bool
) -> None:
    versions(monkeypatch, torch=torch, **({"torchvision": torchvision} if torchvision else {}))
    monkeypatch.setattr(packages, "requires_of", lambda package: requires)
    check = doctor.check_torchvision()
    assert check.ok is ok
    assert ok or "uninstall torchvision" in check.remedy


def test_opencv_must_be_installed_once_and_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_opencv().ok
    versions(monkeypatch, opencv_python="4.12.0")
    assert not doctor.check_opencv().ok and ">=5" in doctor.check_opencv().remedy
    versions(monkeypatch, opencv_python="5.0.0", opencv_python_headless="5.0.0")
    assert not doctor.check_opencv().ok and "overwrite" in doctor.check_opencv().remedy


def test_missing_encoders_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    assert doctor.check_codecs().ok

    def no_h264(name: str, mode: str) -> None:
        if name == "libx264":
            raise ValueError(name)

    monkeypatch.setattr(av, "Codec", no_h264)
    check = doctor.check_codecs()
    assert not check.ok and check.found.endswith("has no libx264")


def test_another_version_of_the_voice_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, hibari_tts="0.3.0")
    check = doctor.check_voice()
    assert (check.ok, check.required) == (False, False) and "hibari-tts==0.2.1" in check.remedy
    versions(monkeypatch)
    assert doctor.check_voice().required


def test_a_gpu_that_torch_cannot_use_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ["NVIDIA H200, 143771 MiB"])
    versions(monkeypatch, torch="2.13.0+cpu")
    check = doctor.check_gpu()
    assert (check.ok, check.required) == (False, False) and "H200" in check.found and "CUDA build" in check.remedy
    versions(monkeypatch, torch="2.13.0")
    assert doctor.check_gpu().ok
    monkeypatch.setattr(doctor, "nvidia_gpus", list)
    assert doctor.check_gpu().ok and "none" in doctor.check_gpu().found


@pytest.mark.parametrize(("config", "required"), [("gpu", True), ("cluster", False)])
def test_a_gpu_that_the_config_needs_here_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str, required: bool
) -> None:
    """A cluster's GPUs may be on other nodes."""
    monkeypatch.setattr(doctor, "nvidia_gpus", list)
    check = doctor.check_gpu(config)
    assert (check.ok, check.required) == (False, required)
    assert f"the config {config} needs one" in check.found and "--config demo" in check.remedy
    monkeypatch.setattr(doctor, "run_checks", lambda name: [doctor.check_gpu(name)])
    assert doctor.main(config=config) == int(required)
    assert f"none, but the config {config} needs one" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ["NVIDIA H200, 143771 MiB"])
    versions(monkeypatch, torch="2.13.0+cpu")
    assert doctor.check_gpu(config).required is required


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """A config whose port is in use by a process that does not answer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        path = tmp_path / "config.yaml"
        path.write_text(
            f"http_options: {{host: 127.0.0.1, port: {server.getsockname()[1]}}}\n"
            "applications: [{import_path: 'graph:build_app'}]\n"
        )
        yield path


def test_the_port_is_the_configs_and_may_be_in_use(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_warmtalk", lambda url: False)
    check = doctor.check_port(str(config))
    assert not check.ok and not check.required and "in use by another process" in check.found
    assert check.name != "port 8000" and "--port" in check.remedy
    monkeypatch.setattr(ports, "is_warmtalk", lambda url: True)
    check = doctor.check_port(str(config))
    assert "a WarmTalk server runs at http://127.0.0.1:" in check.found and "say --server http://" in check.remedy


def test_a_running_ray_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the cluster of a WarmTalk server, or somebody else's."""
    for pids, found in (([], "none"), ([12], "yes (process 12)"), ([12, 34], "yes (processes 12, 34)")):
        monkeypatch.setattr(doctor, "ray_processes", lambda pids=pids: pids)
        check = doctor.check_ray_running()
        assert check.ok and check.found.startswith(found) and check.remedy == ""


def test_a_server_open_to_the_network_without_a_key_is_a_note() -> None:
    assert doctor.check_exposure("demo").found == "reachable from this machine only"
    cluster = doctor.check_exposure("cluster")
    assert not cluster.ok and not cluster.required and "0.0.0.0 and requires no API key" in cluster.found
    assert "api_keys_env of Ingress" in cluster.remedy
    assert "There is no config file" in doctor.check_exposure("nowhere").found


def test_few_cores_and_little_memory_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1.5)
    monkeypatch.setattr(doctor, "usable_memory_bytes", lambda: 2 * 10**9)
    assert (doctor.check_cores().ok, doctor.check_cores().found, doctor.check_cores().required) == (False, "1.5", False)
    assert (doctor.check_memory().ok, doctor.check_memory().found) == (False, "2.0 GB")
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2.0)
    monkeypatch.setattr(doctor, "usable_memory_bytes", lambda: 8 * 10**9)
    assert doctor.check_cores().ok and doctor.check_memory().ok


def test_little_disk_fails_and_little_shared_memory_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Usage:
        free = 10**8

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage)
    assert doctor.check_disk(tmp_path).found.startswith("0.1 GB") and doctor.check_disk(tmp_path).required
    assert "--shm-size" in doctor.check_shared_memory(tmp_path).remedy
    assert doctor.check_shared_memory(tmp_path / "none").ok


def test_the_results_folder_must_be_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.check_writable(tmp_path / "not" / "yet").ok
    assert list(tmp_path.iterdir()) == []

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    check = doctor.check_writable(tmp_path)
    assert not check.ok and check.found.endswith("Permission denied") and "WARMTALK_HOME" in check.remedy


def test_a_missing_package_fails_only_its_own_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    checks = doctor.run_checks(folder=tmp_path)
    found = [check for check in checks if check.name == "psutil"]
    assert len(found) == 2 and not any(check.ok for check in found)
    assert found[0].found == "The package 'psutil' is not installed."


def embedded(folder: Path) -> Path:
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "unet.bin").write_bytes(b"weights")
    (folder / ".hidden").write_text("x")
    (folder / "README.md").write_text("about")
    return folder


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    folder = embedded(tmp_path)
    assert checksums.problems(folder) == ["SHA256SUMS is missing"]
    assert checksums.write_sums(folder) == 2
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert lines[0] == f"{hashlib.sha256(b'weights').hexdigest()}  unet.bin"
    assert lines[1].endswith("  vae/config.json")
    assert checksums.problems(folder) == []
    assert doctor.check_weights(folder).found == "2 files, 0.0 MB, checksums match"


def test_missing_changed_and_unlisted_weights_are_named(tmp_path: Path) -> None:
    folder = embedded(tmp_path)
    checksums.write_sums(folder)
    (folder / "unet.bin").write_bytes(b"weightz")
    (folder / "vae" / "config.json").unlink()
    (folder / "new.bin").write_bytes(b"")
    assert checksums.problems(folder) == ["vae/config.json is missing", "new.bin is not listed", "unet.bin has changed"]
    check = doctor.check_weights(folder)
    assert not check.ok and check.required and "unet.bin has changed" in check.found


def test_the_embedded_weights_match_their_checksums() -> None:
    assert checksums.problems() == [], "after training, run `python -m models.weights.checksums`"


NET = weights.WeightSet(
    "net",
    "a net",
    "LipSync",
    "MIT",
    (
        weights.WeightFile("net/net.json", weights.WebFile("http://127.0.0.1/a"), 2),
        weights.WeightFile(
            "net/net.pth", weights.WebFile("http://127.0.0.1/b"), 7, hashlib.sha256(b"weights").hexdigest()
        ),
    ),
)


def test_production_weights_are_absent_partial_wrong_or_verified(tmp_path: Path) -> None:
    def found() -> tuple[bool, str]:
        check = doctor.check_fetched(NET, tmp_path)
        assert not check.required and bool(check.remedy) != check.ok
        return check.ok, check.found

    assert found() == (False, "absent: 0.0 MB, for LipSync")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "net.pth.part").write_bytes(b"0" * 200_000)
    assert found() == (False, "0.2 MB fetched of 0.0 MB, for LipSync")
    (tmp_path / "net" / "net.pth").write_bytes(b"weight")
    assert found() == (False, "net/net.json is missing; net/net.pth has 6 bytes instead of 7")
    (tmp_path / "net" / "net.pth").write_bytes(b"weights")
    (tmp_path / "net" / "net.json").write_bytes(b"{}")
    assert found() == (True, "0.0 MB, sha256 not verified yet")
    for file in NET.files:
        weight_files.record_hash(tmp_path, file, hashlib.sha256((tmp_path / file.path).read_bytes()).hexdigest())
    assert found() == (True, "0.0 MB, sha256 verified")
    (tmp_path / weight_files.LOCK_NAME).write_text("{")
    ok, text = found()
    assert not ok and "weights.lock.json cannot be read" in text
    assert "Delete it" in doctor.check_fetched(NET, tmp_path).remedy


def test_the_table_names_the_fetch_command_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_table([doctor.check_fetched(entry, tmp_path) for entry in weights.SETS])
    text = capsys.readouterr().out
    assert all(f"weights {entry.name}" in text for entry in weights.SETS)
    assert text.count("fetch-weights") == 1 and "can run on this machine" in text


def test_main_prints_a_table_or_json_and_returns_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    well = doctor.Check("Python", True, "3.11")
    note = doctor.Check("port 8000", False, "in use", "Stop it.", required=False)
    broken = doctor.Check("torch", False, "not installed", "Install it.")
    monkeypatch.setattr(doctor, "run_checks", lambda config: [well, note])
    assert doctor.main() == 0
    text = capsys.readouterr().out
    assert re.search(r"note\s+port 8000\s+in use", text) and "→ Stop it." in text and "can run" in text
    monkeypatch.setattr(doctor, "run_checks", lambda config: [well, note, broken])
    assert doctor.main(as_json=True) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown[2] == {
        "name": "torch",
        "ok": False,
        "found": "not installed",
        "remedy": "Install it.",
        "required": True,
    }
