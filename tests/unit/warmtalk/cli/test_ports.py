"""A port is free, unusable, used by a WarmTalk server, or used by something else; each has its own message."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.errors import ConfigError
from warmtalk.cli.ports import ServerRunningError, is_warmtalk, require_free_port, server_url

WARMTALK = {"/healthz": (200, {"status": "ok"}), "/abilities": (200, {"recognition": True})}


@pytest.fixture
def serve() -> Iterator[Callable[[dict], int]]:
    """serve({path: (status, JSON)}) → the port of a server that answers so."""
    servers = []

    def start(answers: dict) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answers.get(self.path, (404, {}))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something listens that does not speak HTTP."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_warmtalk_server_is_recognised(serve):
    port = serve(WARMTALK)
    with pytest.raises(ServerRunningError, match="already running") as caught:
        require_free_port("127.0.0.1", port)
    assert caught.value.url == f"http://127.0.0.1:{port}"


def test_a_warmtalk_server_that_requires_a_key_is_recognised(serve):
    port = serve({**WARMTALK, "/abilities": (401, {"error": {"code": "unauthorized"}})})
    assert is_warmtalk(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("answers", [{}, {"/healthz": (200, {"status": "ok"})}, {"/healthz": (200, ["ok"])}])
def test_another_http_server_is_not_taken_for_warmtalk(serve, answers):
    with pytest.raises(ConfigError, match="in use by another process") as caught:
        require_free_port("127.0.0.1", serve(answers))
    assert "--port" in caught.value.remedy and not isinstance(caught.value, ServerRunningError)


def test_a_process_that_does_not_answer_is_not_taken_for_warmtalk(taken):
    assert not is_warmtalk(f"http://127.0.0.1:{taken}", timeout_s=0.1)


@pytest.mark.parametrize("host, port", [("127.0.0.1", 99_999), ("192.0.2.1", 8000), ("127.0.0.1", "http")])
def test_an_unusable_port_is_not_reported_as_in_use(host, port):
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        require_free_port(host, port)
    assert "in use" not in str(caught.value)


def test_checking_a_free_port_leaves_it_free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_a_server_that_listens_everywhere_is_reached_locally():
    assert server_url("0.0.0.0", 8000) == "http://127.0.0.1:8000"
