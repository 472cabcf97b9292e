"""The chat page: served at the root, with headers that allow only its own files."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deployments.ingress.static_page import FOLDER

SOURCES = [path for path in FOLDER.rglob("*") if path.suffix in (".html", ".js", ".css", ".svg")]


@pytest.fixture
def client(serve) -> TestClient:
    return serve()


def policy_of(answer) -> dict[str, str]:
    entries = answer.headers["content-security-policy"].split("; ")
    return dict(entry.split(" ", 1) for entry in entries)


def test_the_page_is_at_the_root(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert answer.content == (FOLDER / "index.html").read_bytes()
    assert client.head("/").status_code == 200


def test_the_content_security_policy_allows_only_own_files(client):
    for path in ("/", "/web/index.html"):
        policy = policy_of(client.get(path))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert "unsafe" not in str(policy) and policy["frame-ancestors"] == "'self'"
        assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_every_file_that_the_page_names_is_served(client):
    text = (FOLDER / "index.html").read_text()
    names = re.findall(r'(?:src|href)="(web/[^"#]+)"', text)
    assert names
    for name in names:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200 and answer.headers["content-security-policy"], name


def test_an_unchanged_file_is_304(client):
    first = client.get("/web/index.html")
    again = client.get("/web/index.html", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["cache-control"]) == (304, b"", "no-cache")


@pytest.mark.parametrize("path", ["/web/nothing.js", "/web/../configs/demo.yaml", "/web/%2e%2e/graph.py", "/web/"])
def test_paths_outside_the_folder_are_404(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json()["error"]["remedy"]


def test_the_api_documentation_is_served(client):
    assert "/chat" in client.get("/openapi.json").json()["paths"] and client.get("/docs").status_code == 200


class _Inline(HTMLParser):
    found: list[str]

    def handle_starttag(self, tag: str, attributes) -> None:
        names = dict(attributes)
        if (tag == "script" and "src" not in names) or tag == "style" or "style" in names:
            self.found.append(tag)
        self.found += [name for name in names if name.startswith("on")]


def test_the_page_has_no_inline_script_or_style():
    parser = _Inline()
    parser.found = []
    parser.feed((FOLDER / "index.html").read_text())
    assert parser.found == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_file_refers_to_another_host(path: Path):
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", path.read_text()))
    assert addresses <= {"http://www.w3.org/2000/svg"}
