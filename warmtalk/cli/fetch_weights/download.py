"""Downloads the checkpoints of models/weights/manifest.py: whole and right under their names, or not there at all.

A download grows in `NAME.part`, goes on from there after a break, and takes its final name only when its size and
sha256 are right. Files of the Hugging Face Hub and plain URLs go through the same ranged GET: huggingface_hub gives the
URL and the caller's token, and the Hub's own headers carry size and sha256 of what it is about to send.
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

TIMEOUT_S = 30.0  # without a byte
PAUSES_S = (1.0, 2.0, 4.0)  # before each further attempt
LONGEST_PAUSE_S = 60.0  # of those that a server asks for
REAL_PROGRESS_BYTES = 1 << 20  # an attempt that brought this much is not held against the file
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "warmtalk"}  # encoded, lengths and ranges would not be a file's
SHA256 = re.compile(r"[0-9a-f]{64}")
Progress = Callable[[int], object]  # bytes of the file that are there


class UnreachableError(WeightsError):
    """A server did not answer, or broke off, more often than it is retried."""


class _AgainError(Exception):
    """This attempt failed and another may not. `pause_s` is what the server asks for."""

    def __init__(self, cause: str, pause_s: float = 0.0) -> None:
        super().__init__(cause)
        self.pause_s = pause_s


class _NotThereError(Exception):
    """404: this URL has no such file."""


class _DamagedError(Exception):
    """All bytes came, and they are not those of the manifest."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a server says that the whole file is; None where it does not say."""

    size_bytes: int | None
    sha256: str | None


class Fetcher:
    """Fetches one file after another.

    mirror: an endpoint that speaks the Hub's API; plain URLs are asked of it as MIRROR/HOST/PATH first, then of their
    own server. timeout_s: the longest wait without a byte. pauses_s: before each further attempt.
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
        """Where a file is asked for, in order."""
        if isinstance(file.source, HubFile):
            from huggingface_hub import hf_hub_url

            source = file.source
            return [hf_hub_url(source.repository, source.file, revision=source.revision, endpoint=self.mirror)]
        own = httpx.URL(file.source.url)
        return ([f"{self.mirror}/{own.netloc.decode()}{own.raw_path.decode()}"] if self.mirror else []) + [str(own)]

    def fetch(self, file: WeightFile, target: Path, progress: Progress = lambda done: None) -> str:
        """Bring `file` to `target`, replacing what is there; returns its sha256.

        Raises WeightsError: not there, not allowed, other bytes than the manifest's; UnreachableError. What came before
        a break stays in `target` + `.part`, for the next call; damaged bytes do not.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + PART_SUFFIX)
        with _held(part) as out:
            resumed = os.fstat(out.fileno()).st_size > 0
            try:
                sha256 = self._fetch_checked(file, out, progress)
            except _DamagedError as error:
                out.truncate(0)
                if not resumed:
                    raise self._damaged(file, error) from error
                try:  # the first bytes may be of another version, or of another file
                    sha256 = self._fetch_checked(file, out, progress)
                except _DamagedError as second:
                    out.truncate(0)
                    raise self._damaged(file, second) from second
            os.fsync(out.fileno())
            part.replace(target)
        return sha256

    def _damaged(self, file: WeightFile, error: Exception) -> WeightsError:
        remedy = "Nothing of it was kept. Try again, or another --mirror."
        return WeightsError(f"{file.path} came damaged from {self.urls(file)[0]}: {error}.", remedy)

    def _fetch_checked(self, file: WeightFile, out: IO[bytes], progress: Progress) -> str:
        """All bytes of `file` in `out`; returns their sha256. Raises _DamagedError for wrong ones."""
        promise = self._from_any(file, out, progress)
        found_bytes, found = os.fstat(out.fileno()).st_size, sha256_of(Path(out.name))
        if file.size_bytes not in (None, found_bytes):
            raise _DamagedError(f"{found_bytes} bytes instead of {file.size_bytes}")
        wanted = file.sha256 or promise.sha256
        if wanted not in (None, found):
            raise _DamagedError(f"its sha256 is {found[:12]}… instead of {str(wanted)[:12]}…")
        return found

    def _from_any(self, file: WeightFile, out: IO[bytes], progress: Progress) -> Promise:
        urls = self.urls(file)
        for url in urls:
            try:
                return self._download(url, file, out, progress)
            except _NotThereError:
                continue
        remedy = "Check --mirror." if self.mirror else "It may have moved: look for a newer version of WarmTalk."
        raise WeightsError(f"{file.path} is not at {' nor at '.join(urls)} (404).", remedy)

    def _download(self, url: str, file: WeightFile, out: IO[bytes], progress: Progress) -> Promise:
        """Attempt after attempt, each from where the last one broke off."""
        failures = 0
        while True:
            before = os.fstat(out.fileno()).st_size
            try:
                return self._attempt(url, file, out, progress)
            except (httpx.TransportError, _AgainError) as error:
                out.flush()
                if os.fstat(out.fileno()).st_size - before >= REAL_PROGRESS_BYTES:
                    failures = 0
                if failures == len(self.pauses_s):
                    cause = str(error) or type(error).__name__
                    remedy = "Check the network, or give a --mirror. What has come stays: run the command again."
                    raise UnreachableError(f"{file.path} could not be fetched from {url}: {cause}.", remedy) from error
                time.sleep(max(self.pauses_s[failures], getattr(error, "pause_s", 0.0)))
                failures += 1
            except (httpx.RequestError, httpx.InvalidURL) as error:
                raise WeightsError(f"{url} cannot be fetched: {error}.", "Check --mirror.") from error

    def _attempt(self, url: str, file: WeightFile, out: IO[bytes], progress: Progress) -> Promise:
        """One GET, appended to `out`. Raises _AgainError where it ends early."""
        have = os.fstat(out.fileno()).st_size
        if file.size_bytes is not None and have > file.size_bytes:
            out.truncate(0)
            have = 0
        if have and have == file.size_bytes and file.sha256:
            return Promise(have, file.sha256)  # whole already; the hash will tell
        headers = {**self._hub_headers(file), **({"Range": f"bytes={have}-"} if have else {})}
        with self._client.stream("GET", url, headers=headers) as answer:
            # 1. what came, and from where on
            _refuse(answer, file, url)
            if answer.status_code == 416:
                out.truncate(0)
                raise _AgainError("the server could not go on where the last attempt ended")
            start, total = _extent(answer)
            if start != have and start != 0:
                out.truncate(0)
                raise _AgainError(f"the server went on at byte {start} instead of {have}")
            promise = _promise(answer, total)
            _compare(promise, file, url)
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
        wanted = file.size_bytes or promise.size_bytes
        if wanted is not None and count < wanted:
            raise _AgainError(f"it ended after {count} of {wanted} bytes")
        return promise

    def _hub_headers(self, file: WeightFile) -> dict[str, str]:
        """The token of someone who is logged in: for files of the Hub alone, and never for a mirror."""
        if self.mirror or not isinstance(file.source, HubFile):
            return {}
        from huggingface_hub import get_token

        token = get_token()
        return {"Authorization": f"Bearer {token}"} if token else {}


def _checked(mirror: str) -> str:
    try:
        url = httpx.URL(mirror)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--mirror {mirror!r} is no URL: {error}.", "Give one like https://hf-mirror.com.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"--mirror {mirror!r} is no http or https URL.", "Give one like https://hf-mirror.com.")
    return mirror.rstrip("/")


@contextmanager
def _held(part: Path) -> Iterator[IO[bytes]]:
    """The part, open for reading and writing and locked against another `fetch-weights`; removed if it stays empty."""
    with part.open("a+b") as opened, part.open("r+b") as out:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WeightsError(
                f"{part} is being written by another process.", "Wait until the other `fetch-weights` ends."
            ) from error
        try:
            yield out
        finally:
            out.flush()
            if part.exists() and part.stat().st_size == 0:
                part.unlink()


def _refuse(answer: httpx.Response, file: WeightFile, url: str) -> None:
    """Raise for every status but those that carry the file, and 416."""
    status = answer.status_code
    if status in (200, 206, 416):
        return
    if status in (404, 410):
        raise _NotThereError
    if status in (408, 425, 429) or status >= 500:
        asked = answer.headers.get("Retry-After", "")
        raise _AgainError(
            f"the server answered {status}", min(float(asked), LONGEST_PAUSE_S) if asked.isdigit() else 0.0
        )
    if status in (401, 403) and isinstance(file.source, HubFile):
        page = f"https://huggingface.co/{file.source.repository}"
        remedy = f"Accept the conditions on {page} if it has any, and log in with `hf auth login`; or give a --mirror."
        raise WeightsError(f"{url} may not be read ({status}).", remedy)
    raise WeightsError(f"{url} answered {status}.", "Check the network and --mirror.")


def _extent(answer: httpx.Response) -> tuple[int, int | None]:
    """Where the answer's bytes start in the file, and how long the whole file is, where the server says so."""
    if answer.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if match is None:
            return -1, None  # of an unknown place
        return int(match[1]), int(match[2]) if match[2].isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _promise(answer: httpx.Response, total: int | None) -> Promise:
    """The Hub redirects large files to a store; its own answer has `X-Linked-Size` and `X-Linked-Etag`, a sha256."""
    for step in (*answer.history, answer):
        etag = step.headers.get("X-Linked-Etag", "").strip('W/"')
        if SHA256.fullmatch(etag):
            size = step.headers.get("X-Linked-Size", "")
            return Promise(int(size) if size.isdigit() else total, etag)
    return Promise(total, None)


def _compare(promise: Promise, file: WeightFile, url: str) -> None:
    """Raise WeightsError, before anything is downloaded, where the server offers another file than the manifest's."""
    if None not in (promise.size_bytes, file.size_bytes) and promise.size_bytes != file.size_bytes:
        difference = f"{promise.size_bytes} bytes instead of {file.size_bytes}"
    elif None not in (promise.sha256, file.sha256) and promise.sha256 != file.sha256:
        difference = f"sha256 {str(promise.sha256)[:12]}… instead of {str(file.sha256)[:12]}…"
    else:
        return
    raise WeightsError(f"{url} offers another file than {file.path}: {difference}.", "Try another --mirror.")
