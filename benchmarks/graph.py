"""Speed of the whole graph, warm, over HTTP: `python -m benchmarks.graph [--readme]`.

Starts configs/demo.yaml, speaks a fixed text with enhancement off and on, and reports RTF (seconds to make a second of
video), TTFF (request to first fragment at the client), start-up and memory. Exit status 1 when a bar is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import httpx
import psutil

from warmtalk.cli import CODE
from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.profiling import tree_megabytes

TEXT = (
    "Good morning, and welcome to the programme. Today we measure how long it takes to make this very sentence. "
    "The shorter the better, of course."
)
BARS = {"rtf": 1.2, "rtf_enhanced": 2.0, "ttff_s": 1.5, "ready_s": 45.0, "tree_gb": 5.0}
MARKS = ("<!-- bench:graph -->", "<!-- /bench:graph -->")


def measure(repeats: int, port: int) -> dict[str, float]:
    """Median RTF, RTF with enhancement, TTFF in s; start-up in s; memory of all processes in GB after the work."""
    begin_s = time.monotonic()
    with LocalGraph("demo", port) as graph, httpx.Client(base_url=graph.url, timeout=300) as client:
        ready_s = time.monotonic() - begin_s
        speak(client, False), speak(client, True)  # warm
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
    """RTF as the client sees it."""
    client.get("/reset", params={"session_id": "bench"}).raise_for_status()
    begin_s = time.perf_counter()
    answer = client.post("/speak", json={"text": TEXT, "session_id": "bench", "enhance": enhance})
    return (time.perf_counter() - begin_s) / float(answer.raise_for_status().json()["duration_s"])


def first_fragment_s(client: httpx.Client) -> float:
    """Seconds from the request until a whole fragment with pictures has arrived."""
    body = {"text": TEXT, "session_id": "bench-stream", "stream": True}
    begin_s, received = time.perf_counter(), b""
    with client.stream("POST", "/speak", json=body) as answer:
        answer.raise_for_status()
        for part in answer.iter_raw():
            received += part
            if b"mdat" in whole_boxes(received):
                return time.perf_counter() - begin_s
    raise RuntimeError("the stream ended without a fragment")


def whole_boxes(data: bytes) -> list[bytes]:
    """Kinds of the MP4 boxes that `data` holds whole."""
    kinds, position = [], 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size < 8 or position + size > len(data):
            break
        kinds.append(data[position + 4 : position + 8])
        position += size
    return kinds


def machine() -> str:
    """The machine in words."""
    name = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return f"{os.cpu_count()} cores of {name}, {psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU"


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


def write_readme(text: str, path: Path = CODE / "README.md") -> None:
    """Replace what stands between the marks."""
    old = path.read_text(encoding="utf-8")
    before, rest = old.split(MARKS[0])
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    arguments = parser.parse_args()
    result = measure(arguments.repeats, arguments.port)
    text = table(result)
    print(text)
    Path("out").mkdir(exist_ok=True)
    Path("out/bench.json").write_text(json.dumps({"machine": machine(), **result, "bars": BARS}, indent=1))
    if arguments.readme:
        write_readme(text)
    broken = [key for key, bar in BARS.items() if result[key] > bar]
    print(f"bars broken: {', '.join(broken)}" if broken else "all bars hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
