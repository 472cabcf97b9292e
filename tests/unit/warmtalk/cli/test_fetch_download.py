"""Downloads from a faulty server on 127.0.0.1: the target file is complete and right, or does not exist."""

from __future__ import annotations

import fcntl
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError, WeightsError
from models.weights.manifest import HubFile, WebFile, WeightFile
from tests.support.weights_server import Answer, WeightsServer, serve
from warmtalk.cli.fetch_weights import download
from warmtalk.cli.fetch_weights.download import Fetcher, UnreachableError

DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = bytes(byte ^ 1 for byte in DATA)
HUB_PATH = "/owner/model/resolve/abc/net/unet.pth"
HUB = WeightFile("net/unet.pth", HubFile("owner/model", "net/unet.pth", "abc"), len(DATA), SHA256)
UNKNOWN = WeightFile("net/unet.pth", HubFile("owner/model", "net/unet.pth", "abc"))
LINKED = {"X-Linked-Etag": f'"{SHA256}"', "X-Linked-Size": str(len(DATA))}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serve() as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "net" / "unet.pth"


def fetcher(server: WeightsServer, timeout_s: float = 5.0, attempts: int = 3) -> Fetcher:
    return Fetcher(server.url, timeout_s=timeout_s, pauses_s=(0.0,) * (attempts - 1))


def fetch(server: WeightsServer, file: WeightFile, target: Path, **options: Any) -> str:
    with fetcher(server, **options) as running:
        return running.fetch(file, target)


def part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def write_part(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True)
    part(target).write_bytes(data)


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_download_leaves_the_file_and_nothing_else(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA))
    seen: list[int] = []
    with fetcher(server) as running:
        assert running.fetch(HUB, target, seen.append) == SHA256
    assert target.read_bytes() == DATA and names(target) == ["unet.pth"]
    assert seen == sorted(seen) and seen[-1] == len(DATA)
    assert server.ranges(HUB_PATH) == [""]
    assert server.requests[0][1]["accept-encoding"] == "identity"


def test_a_download_resumes_after_a_broken_connection(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA, stop_after=100_000), Answer(DATA, stop_after=50_000), Answer(DATA))
    assert fetch(server, HUB, target) == SHA256
    assert server.ranges(HUB_PATH) == ["", "bytes=100000-", "bytes=150000-"]
    assert target.read_bytes() == DATA and names(target) == ["unet.pth"]


def test_partial_bytes_are_kept_for_the_next_run(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA, stop_after=1000), Answer(DATA, stop_after=1000))
    with pytest.raises(UnreachableError, match="could not be fetched") as caught:
        fetch(server, HUB, target, attempts=2)
    assert "run the command again" in caught.value.remedy
    assert part(target).read_bytes() == DATA[:2000] and not target.exists()
    server.put(HUB_PATH, Answer(DATA))
    fetch(server, HUB, target)
    assert server.ranges(HUB_PATH)[-1] == "bytes=2000-" and target.read_bytes() == DATA


def test_attempts_with_progress_are_not_counted_as_failures(
    server: WeightsServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PROGRESS_BYTES", 50_000)
    server.put(HUB_PATH, *[Answer(DATA, stop_after=60_000)] * 4, Answer(DATA))
    fetch(server, HUB, target, attempts=2)
    assert target.read_bytes() == DATA and len(server.requests) == 5


def test_a_server_without_ranges_sends_the_whole_file_again(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA, stop_after=100_000), Answer(DATA, ranges=False))
    assert fetch(server, HUB, target) == SHA256
    assert target.read_bytes() == DATA and server.ranges(HUB_PATH) == ["", "bytes=100000-"]


@pytest.mark.parametrize("file", [HUB, UNKNOWN])
def test_a_wrong_range_restarts_the_download(server: WeightsServer, target: Path, file: WeightFile) -> None:
    write_part(target, DATA[:1000])
    server.put(HUB_PATH, Answer(DATA, shift=7), Answer(DATA))
    assert fetch(server, file, target) == SHA256
    assert server.ranges(HUB_PATH) == ["bytes=1000-", ""] and target.read_bytes() == DATA


def test_a_part_of_another_version_is_discarded(server: WeightsServer, target: Path) -> None:
    write_part(target, OTHER[:1000])
    server.put(HUB_PATH, Answer(DATA))
    assert fetch(server, HUB, target) == SHA256
    assert server.ranges(HUB_PATH) == ["bytes=1000-", ""] and target.read_bytes() == DATA


def test_a_longer_part_is_truncated(server: WeightsServer, target: Path) -> None:
    write_part(target, OTHER)
    server.put(HUB_PATH, Answer(DATA[:1000], ranges=False))
    fetch(server, UNKNOWN, target)
    assert target.read_bytes() == DATA[:1000]


def test_an_answer_without_a_length_that_ends_early_is_resumed(server: WeightsServer, target: Path) -> None:
    half = b"%x\r\n%s\r\n0\r\n\r\n" % (1000, DATA[:1000])
    server.put(HUB_PATH, Answer(half, headers={"Transfer-Encoding": "chunked"}), Answer(DATA))
    assert fetch(server, HUB, target) == SHA256
    assert server.ranges(HUB_PATH) == ["", "bytes=1000-"] and target.read_bytes() == DATA


def test_a_complete_part_needs_no_request(server: WeightsServer, target: Path) -> None:
    write_part(target, DATA)
    assert fetch(server, HUB, target) == SHA256
    assert server.requests == [] and names(target) == ["unet.pth"]


@pytest.mark.parametrize("file", [HUB, UNKNOWN])
def test_a_part_that_is_too_long_is_discarded(server: WeightsServer, target: Path, file: WeightFile) -> None:
    write_part(target, DATA + b"more")
    server.put(HUB_PATH, Answer(DATA))
    assert fetch(server, file, target) == SHA256
    assert target.read_bytes() == DATA


def test_damaged_bytes_are_deleted(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(OTHER))
    with pytest.raises(WeightsError, match=r"is damaged.* its sha256 is .* instead of"):
        fetch(server, HUB, target)
    assert names(target) == [] and len(server.requests) == 1


def test_a_failed_download_keeps_the_old_file(server: WeightsServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    server.put(HUB_PATH, Answer(OTHER))
    with pytest.raises(WeightsError, match="damaged"):
        fetch(server, HUB, target)
    assert target.read_bytes() == b"old" and names(target) == ["unet.pth"]


@pytest.mark.parametrize("declared", [len(DATA) - 1, len(DATA) + 1])
def test_a_wrong_length_is_refused_before_the_download(server: WeightsServer, target: Path, declared: int) -> None:
    server.put(HUB_PATH, Answer(DATA, declared=declared))
    with pytest.raises(WeightsError, match=f"another file .*{declared} bytes instead of {len(DATA)}"):
        fetch(server, HUB, target)
    assert names(target) == []


def test_a_truncated_file_with_a_consistent_length_is_refused(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA[:1000]))
    with pytest.raises(WeightsError, match=f"1000 bytes instead of {len(DATA)}"):
        fetch(server, HUB, target)
    assert names(target) == []


def test_an_html_page_is_refused(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(b"<html>Please log in to this network</html>"))
    with pytest.raises(WeightsError, match="another file"):
        fetch(server, HUB, target)
    assert names(target) == []


def test_a_wrong_etag_is_refused_before_the_download(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA, headers={"X-Linked-Etag": f'"{"0" * 64}"', "X-Linked-Size": str(len(DATA))}))
    with pytest.raises(WeightsError, match=r"another file .*sha256 000000000000… instead of"):
        fetch(server, HUB, target)
    assert names(target) == []


def test_the_hubs_hash_is_used_if_the_manifest_has_none(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(redirect=f"{server.url}/store/1", headers=LINKED))
    server.put("/store/1", Answer(DATA))
    assert fetch(server, UNKNOWN, target) == SHA256 and target.read_bytes() == DATA
    target.unlink()
    server.put("/store/1", Answer(OTHER))
    with pytest.raises(WeightsError, match="is damaged"):
        fetch(server, UNKNOWN, target)
    assert names(target) == []


def test_a_broken_connection_is_detected_without_a_hash(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA, stop_after=1000))
    with pytest.raises(UnreachableError):
        fetch(server, UNKNOWN, target, attempts=1)
    assert names(target) == ["unet.pth.part"]


def test_a_redirect_keeps_the_range(server: WeightsServer, target: Path) -> None:
    write_part(target, DATA[:1000])
    server.put(HUB_PATH, Answer(redirect=f"{server.url}/store/1", headers=LINKED))
    server.put("/store/1", Answer(DATA))
    assert fetch(server, HUB, target) == SHA256
    assert server.ranges("/store/1") == ["bytes=1000-"]


def test_endless_redirects_are_refused(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(redirect=HUB_PATH))
    with pytest.raises(WeightsError, match="cannot be fetched"):
        fetch(server, HUB, target)
    assert names(target) == []


def test_too_many_bytes_are_refused(server: WeightsServer, target: Path) -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(DATA) + 5, DATA + b"extra")
    server.put(HUB_PATH, Answer(body, headers={"Transfer-Encoding": "chunked"}))
    with pytest.raises(WeightsError, match=f"more than {len(DATA)} bytes"):
        fetch(server, HUB, target)
    assert names(target) == []


def test_a_busy_server_is_retried(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(status=500), Answer(status=429), Answer(DATA))
    assert fetch(server, HUB, target) == SHA256
    assert len(server.requests) == 3


def test_retry_after_has_a_limit(server: WeightsServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    wait, long_wait = {"Retry-After": "7"}, {"Retry-After": "9999"}
    server.put(HUB_PATH, Answer(status=503, headers=wait), Answer(status=503, headers=long_wait), Answer(DATA))
    with Fetcher(server.url, pauses_s=(1.0, 2.0)) as running:
        running.fetch(HUB, target)
    assert pauses == [7.0, download.MAX_RETRY_AFTER_S]


def test_a_broken_server_is_given_up_after_all_attempts(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(status=500))
    with pytest.raises(UnreachableError, match="answered 500"):
        fetch(server, HUB, target, attempts=3)
    assert len(server.requests) == 3 and names(target) == []


@pytest.mark.parametrize(
    ("status", "message", "remedy"),
    [
        (404, r"is not at .* \(404\)", "--mirror"),
        (401, r"is denied \(401\)", "hf auth login"),
        (403, "403", "log in"),
    ],
)
def test_a_refusal_is_final_and_has_a_remedy(
    server: WeightsServer, target: Path, status: int, message: str, remedy: str
) -> None:
    server.put(HUB_PATH, Answer(status=status))
    with pytest.raises(WeightsError, match=message) as caught:
        fetch(server, HUB, target)
    assert remedy in caught.value.remedy and not isinstance(caught.value, UnreachableError)
    assert len(server.requests) == 1 and names(target) == []


def test_a_hanging_server_is_retried_after_the_timeout(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA, stop_after=70_000, hang=True), Answer(DATA))
    assert fetch(server, HUB, target, timeout_s=0.3) == SHA256
    assert server.ranges(HUB_PATH) == ["", "bytes=70000-"]


def test_a_server_that_always_hangs_is_given_up(server: WeightsServer, target: Path) -> None:
    server.put(HUB_PATH, Answer(DATA, stop_after=0, hang=True))
    with pytest.raises(UnreachableError):
        fetch(server, HUB, target, timeout_s=0.2, attempts=2)
    assert names(target) == []


def test_a_closed_port_is_unreachable(target: Path) -> None:
    with serve() as gone:
        url = gone.url
    with pytest.raises(UnreachableError, match="could not be fetched"), Fetcher(url, pauses_s=()) as running:
        running.fetch(HUB, target)


def test_a_plain_url_is_tried_at_the_mirror_first(server: WeightsServer, target: Path) -> None:
    with serve() as origin:
        path = "/releases/v1/GFPGAN.pth"
        file = WeightFile("GFPGAN.pth", WebFile(origin.url + path), len(DATA), SHA256)
        host = origin.url.removeprefix("http://")
        assert fetcher(server).urls(file) == [f"{server.url}/{host}{path}", origin.url + path]
        origin.put(path, Answer(DATA))
        assert fetch(server, file, target) == SHA256
        assert [asked for asked, _ in server.requests] == [f"/{host}{path}"] and origin.ranges(path) == [""]
        server.put(f"/{host}{path}", Answer(DATA))
        fetch(server, file, target)
        assert len(origin.requests) == 1


def test_without_a_mirror_files_come_from_the_hub_at_their_commit() -> None:
    url = "https://huggingface.co/owner/model/resolve/abc/net/unet.pth"
    assert Fetcher().urls(HUB) == [url]
    assert Fetcher("https://hf-mirror.com/").urls(HUB) == [url.replace("huggingface.co", "hf-mirror.com")]


def test_the_token_is_sent_to_the_hub_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    web = WeightFile("a", WebFile("https://example.org/a"))
    assert Fetcher()._hub_headers(HUB) == {"Authorization": "Bearer hf_secret"}
    assert Fetcher()._hub_headers(web) == Fetcher("https://hf-mirror.com")._hub_headers(HUB) == {}


@pytest.mark.parametrize("mirror", ["hf-mirror.com", "ftp://host", "http://", "http://[::1"])
def test_a_mirror_that_is_not_a_url_is_refused(mirror: str) -> None:
    with pytest.raises(ConfigError, match="--mirror"):
        Fetcher(mirror)


def test_two_downloads_of_one_file_exclude_each_other(server: WeightsServer, target: Path) -> None:
    write_part(target, DATA[:1000])
    with part(target).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(WeightsError, match="another process"):
            fetch(server, HUB, target)
    assert part(target).read_bytes() == DATA[:1000] and server.requests == []
