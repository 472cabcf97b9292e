"""Downloads the checkpoints of models/weights/manifest.py; a file appears only when it is complete and verified.

A download is written to `NAME.part`, resumes from there, and gets its final name when its size and sha256 are right.
Files of the Hugging Face Hub and plain URLs use the same ranged GET: huggingface_hub provides the URL and the user's
token, and the Hub's headers give the size and sha256 of the file.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from models.errors import ConfigError, WeightsError
from models.weights.checksums import sha256_of
from models.weights.installed import PART_SUFFIX
from models.weights.manifest import HubFile, WeightFile

TIMEOUT_S = 30.0  # longest time without a byte
PAUSES_S = (1.0, 2.0, 4.0)  # before each retry
MAX_RETRY_AFTER_S = 60.0
PROGRESS_BYTES = 1 << 20  # an attempt that brings this much resets the count of failures
HEADERS = {
    "Accept-Encoding": "identity",
    "User-Agent": "warmtalk",
}  # no compression, so that ranges count
SHA256 = re.compile(r"[0-9a-f]{64}")
Progress = Callable[[int], object]  # bytes of the file so far


class UnreachableError(WeightsError):
    """A server did not answer, or broke the connection, on every attempt."""


class _RetryError(Exception):
    """This attempt failed and a retry may succeed. pause_s: the server's Retry-After."""

    def __init__(self, cause: str, pause_s: float = 0.0) -> None:
        super().__init__(cause)
        self.pause_s = pause_s


class _NotFoundError(Exception):
    """404: no such file at this URL."""


class _DamagedError(Exception):
    """All bytes arrived, and they differ from the manifest."""


@dataclass(frozen=True, slots=True)
class Announced:
    """Size and sha256 of the whole file, as the server announces them; None if it does not."""

    size_bytes: int | None
    sha256: str | None


class Fetcher:
    """Fetches files, one at a time.

    mirror: an endpoint with the Hub's API; plain URLs are requested as MIRROR/HOST/PATH first, then from their own
    server. timeout_s: longest time without a byte. pauses_s: before each retry.
    """

    def __init__(
        self, mirror: str | None = None, timeout_s: float = TIMEOUT_S, pauses_s: tuple[float, ...] = PAUSES_S
    ) -> None:
        self.mirror = _checked(mirror) if mirror else None
        self.pauses_s = pauses_s
        self._client = httpx.Client(timeout=httpx.Timeout(timeout_s), follow_redirects=True, headers=HEADERS)

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def urls(self, file: WeightFile) -> list[str]:
        """The URLs to try, in order."""
        if isinstance(file.source, HubFile):
            from huggingface_hub import hf_hub_url

            source = file.source
            return [hf_hub_url(source.repository, source.file, revision=source.revision, endpoint=self.mirror)]
        own = httpx.URL(file.source.url)
        return ([f"{self.mirror}/{own.netloc.decode()}{own.raw_path.decode()}"] if self.mirror else []) + [str(own)]

    def fetch(self, file: WeightFile, target: Path, progress: Progress = lambda done: None) -> str:
        """Download `file` to `target`, replacing an existing file; returns its sha256.

        Raises WeightsError (not found, not allowed, different from the manifest) or UnreachableError. After a broken
        connection the bytes stay in `target` + `.part` for the next call; damaged bytes are deleted.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + PART_SUFFIX)
        with _locked_part(part) as out:
            resumed = os.fstat(out.fileno()).st_size > 0
            try:
                sha256 = self._fetch_checked(file, out, progress)
            except _DamagedError as error:
                out.truncate(0)
                if not resumed:
                    raise self._damaged(file, error) from error
                try:  # the resumed bytes may be of another version
                    sha256 = self._fetch_checked(file, out, progress)
                except _DamagedError as second:
                    out.truncate(0)
                    raise self._damaged(file, second) from second
            os.fsync(out.fileno())
            part.replace(target)
        return sha256

    def _damaged(self, file: WeightFile, error: Exception) -> WeightsError:
        remedy = "The download was deleted. Try again, or use another --mirror."
        return WeightsError(f"{file.path} from {self.urls(file)[0]} is damaged: {error}.", remedy)

    def _fetch_checked(self, file: WeightFile, out: IO[bytes], progress: Progress) -> str:
        """Download all bytes of `file` into `out`; returns their sha256. Raises _DamagedError."""
        announced = self._from_any(file, out, progress)
        found_bytes, found = os.fstat(out.fileno()).st_size, sha256_of(Path(out.name))
        if file.size_bytes not in (None, found_bytes):
            raise _DamagedError(f"{found_bytes} bytes instead of {file.size_bytes}")
        wanted = file.sha256 or announced.sha256
        if wanted not in (None, found):
            raise _DamagedError(f"its sha256 is {found[:12]}… instead of {str(wanted)[:12]}…")
        return found

    def _from_any(self, file: WeightFile, out: IO[bytes], progress: Progress) -> Announced:
        urls = self.urls(file)
        for url in urls:
            try:
                return self._download(url, file, out, progress)
            except _NotFoundError:
                continue
        remedy = "Check --mirror." if self.mirror else "It may have moved: try a newer version of WarmTalk."
        raise WeightsError(f"{file.path} is not at {' nor at '.join(urls)} (404).", remedy)

    def _download(self, url: str, file: WeightFile, out: IO[bytes], progress: Progress) -> Announced:
        """Try until the file is complete; each attempt resumes where the last one stopped."""
        failures = 0
        while True:
            before = os.fstat(out.fileno()).st_size
            try:
                return self._attempt(url, file, out, progress)
            except (httpx.TransportError, _RetryError) as error:
                out.flush()
                if os.fstat(out.fileno()).st_size - before >= PROGRESS_BYTES:
                    failures = 0
                if failures == len(self.pauses_s):
                    cause = str(error) or type(error).__name__
                    remedy = "Check the network or pass --mirror, then run the command again: it resumes."
                    raise UnreachableError(f"{file.path} could not be fetched from {url}: {cause}.", remedy) from error
                time.sleep(max(self.pauses_s[failures], getattr(error, "pause_s", 0.0)))
                failures += 1
            except (httpx.RequestError, httpx.InvalidURL) as error:
                raise WeightsError(f"{url} cannot be fetched: {error}.", "Check --mirror.") from error

    def _attempt(self, url: str, file: WeightFile, out: IO[bytes], progress: Progress) -> Announced:
        """One GET, appended to `out`. Raises _RetryError if it ends early."""
        have = os.fstat(out.fileno()).st_size
        if file.size_bytes is not None and have > file.size_bytes:
            out.truncate(0)
            have = 0
        if have and have == file.size_bytes and file.sha256:
            return Announced(have, file.sha256)  # complete; the hash is checked later
        headers = {**self._hub_headers(file), **({"Range": f"bytes={have}-"} if have else {})}
        with self._client.stream("GET", url, headers=headers) as answer:
            # 1. status, and where the answer starts in the file
            _refuse(answer, file, url)
            if answer.status_code == 416:
                out.truncate(0)
                raise _RetryError("the server could not resume the download")
            start, total = _extent(answer)
            if start != have and start != 0:
                out.truncate(0)
                raise _RetryError(f"the server resumed at byte {start} instead of {have}")
            announced = _announced(answer, total)
            _compare(announced, file, url)
            # 2. the bytes
            out.truncate(start)
            out.seek(start)
            count = start
            for block in answer.iter_raw():
                count += len(block)
                if file.size_bytes is not None and count > file.size_bytes:
                    raise _DamagedError(f"more than {file.size_bytes} bytes")
                out.write(block)
                progress(count)
            out.flush()
        wanted = file.size_bytes or announced.size_bytes
        if wanted is not None and count < wanted:
            raise _RetryError(f"it ended after {count} of {wanted} bytes")
        return announced

    def _hub_headers(self, file: WeightFile) -> dict[str, str]:
        """The user's Hub token; sent to the Hub only, never to a mirror or another server."""
        if self.mirror or not isinstance(file.source, HubFile):
            return {}
        from huggingface_hub import get_token

        token = get_token()
        return {"Authorization": f"Bearer {token}"} if token else {}


def _checked(mirror: str) -> str:
    try:
        url = httpx.URL(mirror)
    except httpx.InvalidURL as error:
        raise ConfigError(
            f"--mirror {mirror!r} is not a URL: {error}.", "Use one like https://hf-mirror.com."
        ) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"--mirror {mirror!r} is not an http or https URL.", "Use one like https://hf-mirror.com.")
    return mirror.rstrip("/")


@contextmanager
def _locked_part(part: Path) -> Iterator[IO[bytes]]:
    """Open the part file for reading and writing, locked against other processes; delete it if it stays empty."""
    with part.open("a+b") as opened, part.open("r+b") as out:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WeightsError(
                f"{part} is being written by another process.", "Wait until the other `fetch-weights` has finished."
            ) from error
        try:
            yield out
        finally:
            out.flush()
            if part.exists() and part.stat().st_size == 0:
                part.unlink()


def _refuse(answer: httpx.Response, file: WeightFile, url: str) -> None:
    """Raises an error for every status except 200, 206 and 416."""
    status = answer.status_code
    if status in (200, 206, 416):
        return
    if status in (404, 410):
        raise _NotFoundError
    if status in (408, 425, 429) or status >= 500:
        asked = answer.headers.get("Retry-After", "")
        raise _RetryError(
            f"the server answered {status}", min(float(asked), MAX_RETRY_AFTER_S) if asked.isdigit() else 0.0
        )
    if status in (401, 403) and isinstance(file.source, HubFile):
        page = f"https://huggingface.co/{file.source.repository}"
        remedy = f"Accept the conditions on {page}, if any, and log in with `hf auth login`; or pass --mirror."
        raise WeightsError(f"Access to {url} is denied ({status}).", remedy)
    raise WeightsError(f"{url} answered {status}.", "Check the network and --mirror.")


def _extent(answer: httpx.Response) -> tuple[int, int | None]:
    """Where the answer starts in the file, and the size of the file if the server gives it."""
    if answer.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if match is None:
            return -1, None  # unknown position
        return int(match[1]), int(match[2]) if match[2].isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _announced(answer: httpx.Response, total: int | None) -> Announced:
    """The Hub redirects large files to a store; its own answer has `X-Linked-Size` and the sha256, `X-Linked-Etag`."""
    for step in (*answer.history, answer):
        etag = step.headers.get("X-Linked-Etag", "").strip('W/"')
        if SHA256.fullmatch(etag):
            size = step.headers.get("X-Linked-Size", "")
            return Announced(int(size) if size.isdigit() else total, etag)
    return Announced(total, None)


def _compare(announced: Announced, file: WeightFile, url: str) -> None:
    """Raises WeightsError, before the download, if the server offers another file than the manifest's."""
    if None not in (announced.size_bytes, file.size_bytes) and announced.size_bytes != file.size_bytes:
        difference = f"{announced.size_bytes} bytes instead of {file.size_bytes}"
    elif None not in (announced.sha256, file.sha256) and announced.sha256 != file.sha256:
        difference = f"sha256 {str(announced.sha256)[:12]}… instead of {str(file.sha256)[:12]}…"
    else:
        return
    raise WeightsError(f"{url} offers another file than {file.path}: {difference}.", "Try another --mirror.")
