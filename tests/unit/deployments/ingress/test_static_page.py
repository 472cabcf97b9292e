"""The chat page as it is served: at the root, with headers that let a browser run nothing else."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deployments.ingress.deployment import Ingress
from deployments.ingress.responses import api
from deployments.ingress.static_page import FOLDER

SOURCES = [path for path in FOLDER.rglob("*") if path.suffix in (".html", ".js", ".css", ".svg")]
assert Ingress  # its import puts the page's routes on `api`


@pytest.fixture
def client() -> TestClient:
    return TestClient(api, raise_server_exceptions=False)


def policy_of(answer) -> dict[str, str]:
    entries = answer.headers["content-security-policy"].split("; ")
    return dict(entry.split(" ", 1) for entry in entries)


def test_the_page_is_at_the_root(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert answer.content == (FOLDER / "index.html").read_bytes()
    assert client.head("/").status_code == 200


def test_nothing_but_its_own_files_may_run(client):
    for path in ("/", "/web/index.html"):
        policy = policy_of(client.get(path))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert "unsafe" not in str(policy) and policy["frame-ancestors"] == "'self'"
        assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_every_file_that_the_page_names_is_served(client):
    text = (FOLDER / "index.html").read_text()
    names = re.findall(r'(?:src|href)="(web/[^"#]+)"', text)
    for name in names:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200 and answer.headers["content-security-policy"], name


def test_a_file_that_was_seen_is_not_sent_again(client):
    first = client.get("/web/index.html")
    again = client.get("/web/index.html", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["cache-control"]) == (304, b"", "no-cache")


@pytest.mark.parametrize("path", ["/web/nothing.js", "/web/../configs/demo.yaml", "/web/%2e%2e/graph.py", "/web/"])
def test_what_is_not_in_the_folder_is_an_error_in_words(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json()["error"]["remedy"]


def test_docs_stay(client):
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
def test_nothing_comes_from_another_host(path: Path):
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", path.read_text()))
    assert addresses <= {"http://www.w3.org/2000/svg"}
