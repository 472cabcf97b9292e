"""A local HTTP server for tests that serves files like the Hugging Face Hub, and fails as configured."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """One answer of the server. data: the whole file. The other fields configure failures."""

    data: bytes = b""
    status: int = 200
    ranges: bool = True  # False: Range is ignored; status 200 from the first byte
    stop_after: int | None = None  # body bytes sent before the connection closes
    hang: bool = False  # wait after `stop_after` instead of closing
    declared: int | None = None  # wrong Content-Length
    shift: int = 0  # error in the start of Content-Range
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str = ""


@dataclass
class WeightsServer:
    """files: path → answers to the first, second, … request; the last one is repeated."""

    url: str
    files: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def put(self, path: str, *answers: Answer) -> None:
        self.files[path] = list(answers)

    def ranges(self, path: str) -> list[str]:
        """The Range header of each request for a path, or an empty string."""
        return [headers.get("range", "") for asked, headers in self.requests if asked == path]


@contextmanager
def serve() -> Iterator[WeightsServer]:
    """Run the server on a free port of 127.0.0.1."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads = True
    server = WeightsServer(f"http://127.0.0.1:{http.server_address[1]}")
    http.weights = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: WeightsServer = self.server.weights  # type: ignore[attr-defined]
        server.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        queue = server.files.get(self.path)
        if not queue:
            self._head(404, {"Content-Length": "0"})
            return
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        if answer.redirect:
            self._head(302, {"Location": answer.redirect, "Content-Length": "0", **answer.headers})
            return
        if answer.status != 200:
            self._head(answer.status, {"Content-Length": "0", **answer.headers})
            return
        self._file(answer, server)

    def _file(self, answer: Answer, server: WeightsServer) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and answer.ranges else 0
        size = len(answer.data)
        if start >= size and start:
            self._head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        body = answer.data[start:]
        headers = {"Content-Length": str(len(body) if answer.declared is None else answer.declared), **answer.headers}
        if "Transfer-Encoding" in headers:
            del headers["Content-Length"]
        if start:
            headers["Content-Range"] = f"bytes {start + answer.shift}-{size - 1}/{size}"
        self._head(206 if start else 200, headers)
        self.wfile.write(body[: answer.stop_after])
        self.wfile.flush()
        if answer.hang:
            server.released.wait(20)
        if answer.hang or answer.stop_after is not None or answer.declared is not None:
            self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
