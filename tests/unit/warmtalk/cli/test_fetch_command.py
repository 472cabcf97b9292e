"""`warmtalk fetch-weights`: exit status, output and the files afterwards.

A small manifest replaces the real one, and a server on 127.0.0.1 the Hub.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from models.weights import manifest as weights
from models.weights.manifest import HubFile, WebFile, WeightFile, WeightSet
from tests.support.weights_server import Answer, WeightsServer, serve
from warmtalk.cli import app as cli
from warmtalk.cli.fetch_weights import command
from warmtalk.cli.fetch_weights.download import Fetcher

UNET, CONFIG, GAN = b"unet weights" * 1000, b'{"in_channels": 8}', b"gan weights" * 500


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "Fetcher", lambda mirror: Fetcher(mirror, timeout_s=2.0, pauses_s=(0.0, 0.0)))
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    with serve() as running:
        net = (
            WeightFile("netV15/net.json", HubFile("o/net", "netV15/net.json", "abc"), len(CONFIG), sha256(CONFIG)),
            WeightFile("netV15/unet.pth", HubFile("o/net", "netV15/unet.pth", "abc"), len(UNET), sha256(UNET)),
        )
        gan = (WeightFile("GAN.pth", WebFile(f"{running.url}/releases/GAN.pth"), len(GAN), sha256(GAN)),)
        sets = (WeightSet("netV15", "a net", "LipSync", "MIT", net), WeightSet("GAN", "a gan", "Enhance", "X11", gan))
        monkeypatch.setattr(weights, "SETS", sets)
        monkeypatch.setattr(weights, "BUNDLES", {"production": ("netV15",)})
        running.put("/o/net/resolve/abc/netV15/net.json", Answer(CONFIG))
        running.put("/o/net/resolve/abc/netV15/unet.pth", Answer(UNET))
        running.put("/releases/GAN.pth", Answer(GAN))
        yield running


@pytest.fixture
def fetch(server: WeightsServer) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        server.requests.clear()
        return CliRunner().invoke(cli.app, ["fetch-weights", "--mirror", server.url, *arguments])

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def words(result: Result) -> str:
    return re.sub(r"\s+", " ", result.output)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


WHOLE = ["GAN.pth", "netV15/net.json", "netV15/unet.pth", "weights.lock.json"]


def test_all_files_are_fetched_and_recorded(fetch: Callable[..., Result], root: Path) -> None:
    result = fetch()
    assert result.exit_code == 0, result.output
    assert files(root) == WHOLE and (root / "netV15" / "unet.pth").read_bytes() == UNET
    lock = json.loads((root / "weights.lock.json").read_text())["files"]
    assert {name: entry["sha256"] for name, entry in lock.items()} == {
        "GAN.pth": sha256(GAN),
        "netV15/net.json": sha256(CONFIG),
        "netV15/unet.pth": sha256(UNET),
    }
    assert "3 files complete, 3 fetched now. Licences: netV15: MIT; GAN: X11." in words(result)


def test_a_second_run_downloads_nothing(fetch: Callable[..., Result], server: WeightsServer) -> None:
    fetch()
    result = fetch()
    assert result.exit_code == 0 and server.requests == [] and "0 fetched now" in words(result)


@pytest.mark.parametrize("only", ["netV15", "production", "netV15/net.json,netV15/unet.pth"])
def test_only_named_files_are_fetched(fetch: Callable[..., Result], root: Path, only: str) -> None:
    assert fetch("--only", only).exit_code == 0
    assert files(root) == ["netV15/net.json", "netV15/unet.pth", "weights.lock.json"]


def test_an_unknown_name_is_refused(fetch: Callable[..., Result], root: Path) -> None:
    result = fetch("--only", "unet")
    assert result.exit_code == 1 and "Use one of production, netV15, GAN." in words(result) and not root.exists()


def test_a_dry_run_shows_the_plan_and_changes_nothing(
    fetch: Callable[..., Result], server: WeightsServer, root: Path
) -> None:
    (root / "netV15" / "netV15").mkdir(parents=True)
    (root / "netV15" / "netV15" / "unet.pth").write_bytes(UNET)
    (root / "GAN.pth.part").write_bytes(GAN[:1000])
    before = files(root)
    result = fetch("--dry-run")
    assert result.exit_code == 0 and server.requests == [] and files(root) == before
    text = words(result)
    assert "move netV15/netV15/unet.pth" in text and "download from byte 1000" in text
    assert f"{server.url}/o/net/resolve/abc/netV15/net.json" in text
    assert f"{(len(CONFIG) + len(GAN) - 1000) / 1000:.2f} kB to download; nothing was changed." in text


def test_files_of_a_nested_download_are_moved_into_place(
    fetch: Callable[..., Result], server: WeightsServer, root: Path
) -> None:
    (root / "netV15" / "netV15").mkdir(parents=True)
    (root / "netV15" / "netV15" / "unet.pth").write_bytes(UNET)
    result = fetch("--only", "netV15")
    assert result.exit_code == 0 and "moved netV15/netV15/unet.pth → netV15/unet.pth" in words(result)
    assert [path for path, _ in server.requests] == ["/o/net/resolve/abc/netV15/net.json"]
    assert files(root) == ["netV15/net.json", "netV15/unet.pth", "weights.lock.json"]
    assert not (root / "netV15" / "netV15").exists()


@pytest.mark.parametrize("wrong", [UNET[:100], UNET[:-1] + b"?"])
def test_a_truncated_or_changed_file_is_renamed_and_fetched(
    fetch: Callable[..., Result], root: Path, wrong: bytes
) -> None:
    (root / "netV15").mkdir(parents=True)
    (root / "netV15" / "unet.pth").write_bytes(wrong)
    result = fetch("--only", "netV15")
    assert result.exit_code == 0 and "differs from the manifest" in words(result)
    assert (root / "netV15" / "unet.pth").read_bytes() == UNET
    assert (root / "netV15" / "unet.pth.replaced").read_bytes() == wrong


def test_a_failed_file_does_not_stop_the_others(
    fetch: Callable[..., Result], server: WeightsServer, root: Path
) -> None:
    server.put("/o/net/resolve/abc/netV15/net.json", Answer(status=404))
    server.put("/o/net/resolve/abc/netV15/unet.pth", Answer(UNET[:-1] + b"?"))
    result = fetch()
    assert result.exit_code == 1 and files(root) == ["GAN.pth", "weights.lock.json"]
    assert "netV15/net.json is not at" in words(result) and "is damaged" in words(result)
    assert "fetched now" not in words(result)


def test_an_unreachable_server_is_tried_for_one_file_only(
    fetch: Callable[..., Result], server: WeightsServer, root: Path
) -> None:
    for path in list(server.files):
        server.put(path, Answer(status=503))
    result = fetch("--only", "netV15")
    assert result.exit_code == 1 and len(server.requests) == 3, "three attempts at the first file"
    assert "127.0.0.1 does not answer" in words(result) and files(root) == []


def test_an_interrupted_run_resumes(fetch: Callable[..., Result], server: WeightsServer, root: Path) -> None:
    unet = "/o/net/resolve/abc/netV15/unet.pth"
    server.put(unet, Answer(UNET, stop_after=3000), Answer(status=500))
    assert fetch("--only", "netV15").exit_code == 1
    assert files(root) == ["netV15/net.json", "netV15/unet.pth.part", "weights.lock.json"]
    server.put(unet, Answer(UNET))
    assert fetch("--only", "netV15").exit_code == 0
    assert server.ranges(unet) == ["bytes=3000-"] and (root / "netV15" / "unet.pth").read_bytes() == UNET


def test_too_little_disk_space_is_reported_before_the_download(
    fetch: Callable[..., Result], server: WeightsServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = command.SPARE_DISK_BYTES + len(CONFIG) + len(UNET) - 1

    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: Usage)
    result = fetch("--only", "netV15")
    assert result.exit_code == 1 and "Free 1 B" in words(result) and server.requests == [] and not root.exists()
    Usage.free += 1
    assert fetch("--only", "netV15").exit_code == 0


def test_complete_files_need_no_disk_space(fetch: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    fetch()

    class Usage:
        free = 0

    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: Usage)
    assert fetch().exit_code == 0


def test_hf_hub_offline_forbids_downloads(
    fetch: Callable[..., Result], server: WeightsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = fetch()
    assert result.exit_code == 1 and server.requests == [] and "HF_HUB_OFFLINE" in result.output


def test_a_folder_that_is_not_writable_is_reported(
    fetch: Callable[..., Result], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Fetcher, "fetch", refuse)
    result = fetch("--only", "GAN")
    assert result.exit_code == 1 and "cannot be written" in words(result) and "Traceback" not in result.output


def test_verify_passes_unchanged_files(fetch: Callable[..., Result], server: WeightsServer) -> None:
    fetch()
    result = fetch("--verify")
    assert result.exit_code == 0 and "3 of 3 files verified" in words(result) and server.requests == []


@pytest.mark.parametrize("change", ["flipped", "truncated", "gone"])
def test_verify_names_changed_files(fetch: Callable[..., Result], root: Path, change: str) -> None:
    fetch()
    path = root / "netV15" / "unet.pth"
    if change == "flipped":
        stat = path.stat()
        path.write_bytes(UNET[:-1] + b"?")
        command.os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # not even the mtime differs
    elif change == "truncated":
        path.write_bytes(UNET[:-1])
    else:
        path.unlink()
    before = files(root)
    result = fetch("--verify")
    assert result.exit_code == 1 and files(root) == before
    assert re.findall(r"differs (\S+):", words(result)) == ["netV15/unet.pth"]
    assert fetch("--verify", "--only", "GAN").exit_code == 0


def test_verify_uses_the_recorded_hash_if_the_manifest_has_none(
    fetch: Callable[..., Result], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = WeightFile("GAN.pth", weights.SETS[1].files[0].source)
    monkeypatch.setattr(weights, "SETS", (WeightSet("GAN", "a gan", "Enhance", "X11", (file,)),))
    assert fetch().exit_code == 0 and fetch("--verify").exit_code == 0
    (root / "GAN.pth").write_bytes(GAN[::-1])
    result = fetch("--verify")
    assert result.exit_code == 1 and "differs GAN.pth: its sha256" in words(result)


def test_verify_fails_without_files_but_not_for_sets_never_fetched(fetch: Callable[..., Result], root: Path) -> None:
    empty = fetch("--verify")
    assert empty.exit_code == 1 and "contains none of the weights" in words(empty)
    fetch("--only", "GAN")
    assert fetch("--verify").exit_code == 0
    assert fetch("--verify", "--only", "netV15").exit_code == 1


def test_a_mirror_that_is_not_a_url_is_refused(server: WeightsServer) -> None:
    result = CliRunner().invoke(cli.app, ["fetch-weights", "--mirror", "hf-mirror.com"])
    assert result.exit_code == 1 and "not an http or https URL" in words(result)


def test_help_names_the_sets_and_an_example() -> None:
    text = words(CliRunner().invoke(cli.app, ["fetch-weights", "--help"], env={"COLUMNS": "400"}))
    assert "warmtalk fetch-weights --only production" in text
    assert (
        "sd-vae, whisper, whisper-tiny.en, whisper-base, face-parse-bisent, GFPGANv1.4, dwpose, syncnet, taesd" in text
    )


def test_sizes_are_printed_with_units() -> None:
    assert [command._size(size) for size in (None, 12, 1983, 53_289_463, 3_400_074_924)] == [
        "?",
        "12 B",
        "1.98 kB",
        "53.29 MB",
        "3.40 GB",
    ]
