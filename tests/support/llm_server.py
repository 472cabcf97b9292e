"""A local OpenAI-compatible chat server for tests: it streams, refuses, sends garbage or breaks off, as configured."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        state: LLMServer = self.server.state  # type: ignore[attr-defined]
        state.requests.append((self.path, dict(self.headers), body))
        (state.answers.pop(0) if len(state.answers) > 1 else state.answers[0])(self)

    def begin(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def event(self, data: Any) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        try:
            self.wfile.write(f"data: {text}\n\n".encode())
            self.wfile.flush()
        except OSError:
            self.server.state.hung_up += 1  # type: ignore[attr-defined]
            raise

    def token(self, text: str | None, finish: str | None = None) -> None:
        self.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})

    def log_message(self, *args: object) -> None:
        """Do not log."""


@dataclass
class LLMServer:
    """Sends `answers` in turn, then the last one again. requests: (path, headers, body). hung_up: lost clients."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    hung_up: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


@contextmanager
def llm_server() -> Iterator[LLMServer]:
    http = _Server(("127.0.0.1", 0), Handler)
    http.state = LLMServer(f"http://127.0.0.1:{http.server_address[1]}/v1")  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield http.state  # type: ignore[attr-defined]
    finally:
        http.shutdown()
        http.server_close()


def streamed(*tokens: str | threading.Event, pause_s: float = 0.0, finish: str = "stop") -> Answer:
    """Sends tokens one after another; waits for each event among them."""

    def answer(http: Handler) -> None:
        http.begin()
        http.event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        for token in tokens:
            if isinstance(token, threading.Event):
                token.wait(30)
                continue
            http.token(token)
            time.sleep(pause_s)
        http.token(None, finish)
        http.event({"choices": [], "usage": {"total_tokens": 9}})
        http.event("[DONE]")

    return answer


def refused(status: int, message: str = "no", **headers: str) -> Answer:
    def answer(http: Handler) -> None:
        http.begin(status, "application/json", **headers)
        http.wfile.write(json.dumps({"error": {"message": message}}).encode())

    return answer


def broken_off(*tokens: str) -> Answer:
    def answer(http: Handler) -> None:
        http.begin()
        for token in tokens:
            http.token(token)

    return answer


def plain(*data: str, kind: str = "text/event-stream") -> Answer:
    """Sends the body unchanged, for formats that `event` does not write."""

    def answer(http: Handler) -> None:
        http.begin(kind=kind)
        for part in data:
            http.wfile.write(part.encode())
            http.wfile.flush()

    return answer


def chunk(content: object, finish: str | None = None, **delta: object) -> str:
    """An event whose JSON has unescaped non-ASCII characters, like vLLM's."""
    choice = {"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n"
