"""Measures how soon a new session speaks while jobs run that are slower than real time: configs/demo.yaml over HTTP.

    python -m benchmarks.fairness

A job speaks 1,800 characters with face restoration, and nobody watches it. Each row is the time from a new session's
request to the first fragment of its video, at several times after the jobs have begun.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.common import argument_parser
from warmtalk.cli.local_graph import LocalGraph

SENTENCE = "A long text is spoken with restored faces, which two cores cannot make as fast as it is played. "
LONG = (SENTENCE * 20)[:1800]
SHORT = "Hello, this is a new session, and somebody waits for it."
EVERY_S, ASKED = 12.0, 3


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


async def first_fragment_s(client: httpx.AsyncClient, session_id: str) -> float:
    """Speak SHORT in a new session; return the time to its first fragment. The rest is spoken, too."""
    began_s, first_s = time.perf_counter(), 0.0
    body = {"text": SHORT, "session_id": session_id, "stream": True}
    async with client.stream("POST", "/speak", json=body) as answer:
        answer.raise_for_status()
        async for part in answer.aiter_raw():
            if not first_s and b"mdat" in part:
                first_s = time.perf_counter() - began_s
    return first_s


async def job(client: httpx.AsyncClient, session_id: str) -> float:
    """Speak LONG; return how many seconds one second of its video took."""
    body = {"text": LONG, "session_id": session_id, "enhance": True}
    answer = await client.post("/speak", json=body)
    return float(answer.raise_for_status().json()["rtf"])


async def measure(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=900) as client:
        await first_fragment_s(client, "warm-up")
        idle_s = [await first_fragment_s(client, f"idle-{k}") for k in range(3)]
        print("idle        ", *(f"{seconds:6.2f}" for seconds in idle_s), flush=True)
        jobs: list[asyncio.Task[float]] = []
        for count in (1, 3):
            jobs += [asyncio.create_task(job(client, f"job-{k}")) for k in range(len(jobs), count)]
            seconds = []
            for k in range(ASKED):
                await asyncio.sleep(EVERY_S)
                seconds.append(await first_fragment_s(client, f"beside-{count}-{k}"))
            print(f"{count} jobs      ", *(f"{value:6.2f}" for value in seconds), flush=True)
        for task in jobs:
            task.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
    print("seconds from the request of a new session to its first fragment")


def main() -> None:
    argument_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as home, LocalGraph("demo", free_port(), Path(home)) as graph:
        asyncio.run(measure(graph.url))


if __name__ == "__main__":
    main()
