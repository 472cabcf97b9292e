"""Measures what viewers see and hear when more sessions speak at once than the machine can render.

    python -m benchmarks.live_overload
    python -m benchmarks.live_overload --sessions 2 4 --out out/overload

Starts configs/demo.yaml. Several sessions speak at the same time, each with a viewer of live.mp4. The received data
shows where speech stopped: between sentences, at a pause within a sentence, or within a word.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.common import argument_parser, decode_audio, fragments_end
from benchmarks.viewers import Recording, Viewer
from models.media import mp4 as boxes
from models.media.encode import AAC_FRAME, MediaSpec, silent_packet
from warmtalk.cli.local_graph import LocalGraph

TEXT = "The first sentence is a rather long one, with a comma or two, and it goes on for a while. Here is the second."
QUIET = 0.03  # rms, of full scale: below it, the sound is between two words
SENTENCE_S = 0.15  # a stop this close to the start of a sentence lies between sentences
LOST = 4  # maximum number of consecutive lost packets to search for


@dataclass(frozen=True, slots=True)
class Stop:
    """Speech stopped for `seconds` at `at_s` of the session's file. loud: rms of the file's sound there."""

    at_s: float
    seconds: float
    loud: float


@dataclass(frozen=True, slots=True)
class Heard:
    """How one viewer received a session's speech. begins_s: stream time of its first packet."""

    begins_s: float
    stops: list[Stop]
    lost: int  # packets of the file that the viewer did not get
    mixed: int  # packets that are neither silence nor the next ones of the file

    def inside(self, sentences_s: list[float]) -> list[Stop]:
        """The stops that are not between sentences."""
        return [s for s in self.stops if min(abs(s.at_s - at) for at in sentences_s) > SENTENCE_S]


def media_of(data: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
    """The complete fragments of an MP4 that may end anywhere, and their H.264 and AAC packets, in order."""
    end = fragments_end(data)
    starts = [start - 8 for kind, start, _ in boxes.children(data, 0, end) if kind == b"moof"]
    runs = [boxes.read_fragment(data[a:b])[0] for a, b in itertools.pairwise([*starts, end])]
    pictures, packets = (
        [sample for run in runs if track in run for sample in run[track].samples]
        for track in (boxes.VIDEO_TRACK, boxes.AUDIO_TRACK)
    )
    return data[:end], pictures, packets


def heard(seen: bytes, file: bytes, spec: MediaSpec) -> Heard:
    """Find a session's packets in the data of a viewer. seen, file: fragmented MP4s."""
    silence, (_, _, wanted) = silent_packet(spec), media_of(file)
    tick_s = AAC_FRAME / spec.sample_rate_hz
    sound, _ = decode_audio(file)
    stops, begins_s, waited, at, lost, mixed = [], -1.0, 0, 0, 0, 0
    for k, packet in enumerate(media_of(seen)[2]):
        near = wanted[at : at + (1 if packet == silence else LOST)]  # all silent packets are equal
        skipped = next((n for n, w in enumerate(near) if w == packet), None)
        if skipped is None:
            waited += 1
            mixed += packet != silence
            continue
        if at and waited:
            here = sound[max(0, round((at * tick_s - 0.03) * spec.sample_rate_hz)) :][: spec.sample_rate_hz * 6 // 100]
            stops.append(Stop(at * tick_s, waited * tick_s, float(np.sqrt((here**2).mean())) if len(here) else 0.0))
        begins_s = k * tick_s if begins_s < 0 else begins_s
        at, lost, waited = at + skipped + 1, lost + skipped, 0
    return Heard(begins_s, stops, lost + len(wanted) - at, mixed)


def longest_still_s(recording: Recording, fps: int = 25) -> float:
    """The longest time without any motion of head and background."""
    moved = np.abs(np.diff(recording.frames(), axis=0)).mean(axis=(1, 2)) > 0.05
    still = np.diff(np.flatnonzero(np.concatenate([[True], moved, [True]]))) - 1
    return float(still.max() / fps)


async def overload(url: str, sessions: int, text: str, out: Path | None = None) -> list[dict[str, float]]:
    """Speak in several sessions at the same time; the figures of each."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await client.post("/speak", json={"text": "Warm up, please.", "session_id": "warm"})
        names = [f"crowd-{uuid.uuid4().hex[:8]}" for _ in range(sessions)]
        viewers = {}
        for name in names:
            (await client.post("/sessions", json={"session_id": name})).raise_for_status()
            viewers[name] = Viewer(client, name)
            await viewers[name].started.wait()
        await asyncio.sleep(0.5)
        asked_s = {name: viewers[name].stream_s for name in names}
        posts = [client.post("/speak", json={"text": text, "session_id": name}) for name in names]
        answers = [answer.raise_for_status().json() for answer in await asyncio.gather(*posts)]
        await asyncio.sleep(1.0)
        rows = []
        for name, answer in zip(names, answers, strict=True):
            recording = await viewers[name].stop()
            file = (await client.get(f"/sessions/{name}/video.mp4")).content
            facts = (await client.get(f"/sessions/{name}")).json()
            rows.append(await asyncio.to_thread(figures, recording, file, facts, answer, asked_s[name]))
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                (out / f"{name}.mp4").write_bytes(recording.data)
        return rows


def figures(
    recording: Recording, file: bytes, facts: dict[str, Any], answer: dict[str, Any], asked_s: float
) -> dict[str, float]:
    """The figures of one session. facts: its description by the server. answer: the response of /speak."""
    spec = MediaSpec(512, 512, 25)
    found = heard(recording.data, file, spec)
    sentences_s = [s["start_s"] for line in facts["utterances"] for s in line["sentences"]]
    inside = found.inside(sentences_s)
    steps = np.diff(recording.times())
    return {
        "begins_s": found.begins_s - asked_s,
        "stops": len(found.stops),
        "stopped_s": sum(s.seconds for s in found.stops),
        "inside": len(inside),
        "inside_s": sum(s.seconds for s in inside),
        "in_words": sum(s.loud > QUIET for s in inside),
        "lost": found.lost,
        "mixed": found.mixed,
        "still_s": longest_still_s(recording),
        "broken_steps": int((np.abs(steps - 0.04) > 1e-3).sum()),
        "rtf": answer["rtf"],
        "said_s": answer["duration_s"],
        "holds": answer["live"]["holds"],
    }


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=[2, 8], help="numbers of sessions to measure")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--port", type=int, default=8019)
    parser.add_argument("--out", type=Path, help="write the received streams to this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, LocalGraph("demo", arguments.port, home=Path(home)) as graph:
        for sessions in arguments.sessions:
            rows = asyncio.run(overload(graph.url, sessions, arguments.text, arguments.out))
            for row in rows:
                print(sessions, json.dumps({key: round(value, 2) for key, value in row.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
