"""Measures the speed of the whole graph, warm, over HTTP.

    python -m benchmarks.graph
    python -m benchmarks.graph --repeats 5 --docs

Starts configs/demo.yaml, speaks a fixed text without and with enhancement, and reports RTF (seconds per second of
video), TTFF (from the request to the first fragment at the client), start-up time and memory. Exit status 1 if a bar is
broken.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import httpx

from benchmarks.common import argument_parser, complete_boxes, finish, machine
from warmtalk.cli import CODE
from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.profile.graph import tree_megabytes

TEXT = (
    "Good morning, and welcome to the programme. Today we measure how long it takes to make this very sentence. "
    "The shorter the better, of course."
)
BARS = {"rtf": 1.2, "rtf_enhanced": 2.0, "ttff_s": 1.5, "ready_s": 45.0, "tree_gb": 5.0}
MARKS = ("<!-- bench:graph -->", "<!-- /bench:graph -->")


def measure(repeats: int, port: int) -> dict[str, float]:
    """Median RTF, RTF with enhancement and TTFF in s; start-up time in s; memory of all processes in GB at the end."""
    begin_s = time.monotonic()
    with LocalGraph("demo", port) as graph, httpx.Client(base_url=graph.url, timeout=300) as client:
        ready_s = time.monotonic() - begin_s
        speak(client, False), speak(client, True)  # warm up
        plain = [speak(client, False) for _ in range(repeats)]
        enhanced = [speak(client, True) for _ in range(repeats)]
        streamed = [first_fragment_s(client) for _ in range(2 * repeats)]
        tree_gb = tree_megabytes() / 1e3
    return {
        "rtf": statistics.median(plain),
        "rtf_enhanced": statistics.median(enhanced),
        "ttff_s": statistics.median(streamed),
        "ready_s": ready_s,
        "tree_gb": tree_gb,
    }


def speak(client: httpx.Client, enhance: bool) -> float:
    """The RTF that the client measures."""
    client.get("/reset", params={"session_id": "bench"}).raise_for_status()
    begin_s = time.perf_counter()
    answer = client.post("/speak", json={"text": TEXT, "session_id": "bench", "enhance": enhance})
    return (time.perf_counter() - begin_s) / float(answer.raise_for_status().json()["duration_s"])


def first_fragment_s(client: httpx.Client) -> float:
    """Seconds from the request until the first complete fragment with frames."""
    body = {"text": TEXT, "session_id": "bench-stream", "stream": True}
    begin_s, received = time.perf_counter(), b""
    with client.stream("POST", "/speak", json=body) as answer:
        answer.raise_for_status()
        for part in answer.iter_raw():
            received += part
            if any(kind == b"mdat" for kind, _ in complete_boxes(received)):
                return time.perf_counter() - begin_s
    raise RuntimeError("the stream ended without a fragment")


def table(result: dict[str, float]) -> str:
    """Markdown: figure, bar, and their ratio."""
    names = {
        "rtf": "RTF, 512² output, enhancement off",
        "rtf_enhanced": "RTF with enhancement",
        "ttff_s": "TTFF of a streamed `/speak`, s",
        "ready_s": "graph ready after, s",
        "tree_gb": "memory of all processes, GB",
    }
    lines = [f"`make bench` on {machine()}, warm:", "", "| figure | measured | bar | of the bar |"]
    lines.append("| --- | --- | --- | --- |")
    for key, name in names.items():
        lines.append(f"| {name} | {result[key]:.2f} | ≤ {BARS[key]:g} | {result[key] / BARS[key]:.0%} |")
    return "\n".join(lines)


def write_docs(text: str, path: Path = CODE / "docs" / "performance.md") -> None:
    """Replace the text between MARKS."""
    old = path.read_text(encoding="utf-8")
    before, rest = old.split(MARKS[0])
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="utterances per figure")
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--docs", action="store_true", help="write the table to docs/performance.md")
    arguments = parser.parse_args()
    result = measure(arguments.repeats, arguments.port)
    text = table(result)
    print(text)
    if arguments.docs:
        write_docs(text)
    return finish(result, BARS, Path("out/bench.json"))


if __name__ == "__main__":
    sys.exit(main())
