"""What viewers see and hear when more speak at once than the machine can render: `python -m benchmarks.live_overload`.

Starts configs/demo.yaml, has several sessions speak at the same moment, each watched over live.mp4, and reads from what
the viewers received where speech stopped: between sentences, at a pause inside one, or in the midst of a word.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np

from benchmarks.viewers import Recording, Viewer
from models.media import mp4 as boxes
from models.media.encode import AAC_FRAME, MediaSpec, silent_packet
from warmtalk.cli.local_graph import LocalGraph

TEXT = "The first sentence is a rather long one, with a comma or two, and it goes on for a while. Here is the second."
QUIET = 0.03  # of full scale, rms: between two words
SENTENCE_S = 0.15  # so near to where a sentence begins, a stop stands between two sentences
LOST = 4  # packets of a file that may be missing in a row before a viewer's next is looked for elsewhere


@dataclass(frozen=True, slots=True)
class Stop:
    """Speech stopped `at_s` into the session's file, for so long; loud: what the file says right there, rms."""

    at_s: float
    seconds: float
    loud: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of a session's speech on its way to one viewer. begins_s: of stream time, at its first packet."""

    begins_s: float
    stops: list[Stop]
    lost: int  # packets of the file that the viewer never got
    mixed: int  # packets that are neither the file's next nor silence

    def inside(self, sentences_s: list[float]) -> list[Stop]:
        """The stops that do not stand between sentences."""
        return [s for s in self.stops if min(abs(s.at_s - at) for at in sentences_s) > SENTENCE_S]


def media_of(data: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
    """The whole fragments of an MP4, which may break off anywhere, and its coded pictures and AAC packets, in order."""
    at = end = 0
    while at + 8 <= len(data) and at + (size := int.from_bytes(data[at : at + 4], "big")) <= len(data):
        kind, at = data[at + 4 : at + 8], at + size
        end = end if kind == b"moof" else at  # its samples come behind it
    starts = [start - 8 for kind, start, _ in boxes.children(data, 0, end) if kind == b"moof"]
    runs = [boxes.read_fragment(data[a:b])[0] for a, b in itertools.pairwise([*starts, end])]
    pictures, packets = (
        [sample for run in runs if track in run for sample in run[track].samples]
        for track in (boxes.VIDEO_TRACK, boxes.AUDIO_TRACK)
    )
    return data[:end], pictures, packets


def heard(seen: bytes, file: bytes, spec: MediaSpec) -> Heard:
    """Find a session's packets again in what a viewer received. seen, file: MP4s of fragments."""
    silence, (_, _, wanted) = silent_packet(spec), media_of(file)
    tick_s = AAC_FRAME / spec.sample_rate_hz
    sound, _ = decoded_sound(file)
    stops, begins_s, waited, at, lost, mixed = [], -1.0, 0, 0, 0, 0
    for k, packet in enumerate(media_of(seen)[2]):
        near = wanted[at : at + (1 if packet == silence else LOST)]  # one silence is like another
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


def decoded_sound(data: bytes) -> tuple[Any, int]:
    """Mono float32 `(n,)` of an MP4, and its rate."""
    with av.open(io.BytesIO(data)) as file:
        rate = file.streams.audio[0].rate
        return np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)]), rate


def longest_still_s(recording: Recording, fps: int = 25) -> float:
    """The longest time for which head and background did not move at all."""
    moved = np.abs(np.diff(recording.frames(), axis=0)).mean(axis=(1, 2)) > 0.05
    still = np.diff(np.flatnonzero(np.concatenate([[True], moved, [True]]))) - 1
    return float(still.max() / fps)


async def crowd(url: str, sessions: int, text: str, out: Path | None = None) -> list[dict[str, float]]:
    """Have sessions speak at once; a row of figures for each."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--port", type=int, default=8019)
    parser.add_argument("--out", type=Path, help="keep what the viewers received in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, LocalGraph("demo", arguments.port, home=Path(home)) as graph:
        for sessions in arguments.sessions:
            rows = asyncio.run(crowd(graph.url, sessions, arguments.text, arguments.out))
            for row in rows:
                print(sessions, json.dumps({key: round(value, 2) for key, value in row.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
