"""Measures live sessions on the whole graph, over HTTP and WebRTC.

    python -m benchmarks.live
    python -m benchmarks.live --repeats 1

Starts configs/demo.yaml, watches /sessions/{id}/live.mp4 as a viewer does, speaks and interrupts, and checks which
frames arrived and when. Exit status 1 if a bar is broken.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import psutil

from benchmarks.common import argument_parser, decode_audio, finish, machine
from benchmarks.live_overload import TEXT as OVERLOAD_TEXT
from benchmarks.live_overload import media_of, overload
from benchmarks.viewers import Recording, Viewer, behind_s, upper
from benchmarks.webrtc import Player, late_and_apart
from models.avatar.playback import period, ping_pong
from models.avatar.store import AvatarStore
from models.media.encode import AAC_FRAME, VIDEO_TIMESCALE, MediaSpec, UtteranceEncoder, silent_packet
from models.stitch.session import SessionFile
from models.tts.streaming import LEAD_S
from warmtalk.cli.local_graph import LocalGraph

TEXT = "Good morning, and welcome to the programme."
LONG = "This is a rather long sentence, which somebody is going to interrupt in its middle, long before it has ended."
TOGETHER = {"alice": "Alice says a short sentence here.", "bob": "Bob talks about something else, and for longer."}
BARS = {"ttff_s": 1.0, "written_ttff_s": 1.0, "off_line_frames": 0, "interrupt_s": 0.3, "mixed": 0, "viewer_cores": 1.0}
BARS |= {"append_growth": 2.0, "tracks_apart_s": 0.04, "behind_s": 0.5, "torn_words": 0}
BARS |= {"webrtc_late_s": 0.3, "webrtc_apart_s": 0.04}
WINDOW = 20  # frames that are compared to find a timeline position


def off_line(recording: Recording, joins_s: list[float]) -> int:
    """Frames repeated or dropped at the joins of idle motion and speech: changes of the timeline position."""
    avatar = AvatarStore(Path("/nonexistent"), Path(__file__).parents[1] / "models" / "embedded" / "avatars")
    frames = avatar.load("presenter", latents=False).frames
    assert frames is not None
    grey = np.array([0.299, 0.587, 0.114])
    source = np.stack([upper((frames[k] @ grey).astype(np.int16)) for k in range(len(frames))])
    line = ping_pong(0, 3 * period(len(source)), len(source))
    seen = recording.frames()
    shifts = 0
    for join_s in joins_s:
        join = round(join_s * 25)
        before, after = seen[max(0, join - WINDOW) : join], seen[join : join + WINDOW]
        start = best(misfits(before, source, line, range(period(len(source)))))
        expected = start + len(before)
        errors = misfits(after, source, line, range(max(0, expected - 12), expected + 13))
        if errors[expected] > 1.1 * min(errors.values()):  # positions look alike where the head hardly moves
            shifts += abs(best(errors) - expected)
    return shifts


def misfits(frames: Any, source: Any, line: Any, places: Any) -> dict[int, float]:
    """Mean difference in grey levels between the frames and the avatar's, per possible start position."""
    return {p: float(np.mean([np.abs(f - source[line[p + k]]).mean() for k, f in enumerate(frames)])) for p in places}


def best(errors: dict[int, float]) -> int:
    return min(errors, key=lambda place: errors[place])


async def measure(url: str, repeats: int) -> dict[str, float]:
    """All figures that need the server."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await client.post("/speak", json={"text": TEXT, "session_id": "warm"})
        result = await speaking(client, repeats)
        result |= await together(client)
        rows = await overload(url, 2, OVERLOAD_TEXT)
        result |= {"torn_words": sum(row["in_words"] for row in rows), "stops": sum(row["inside"] for row in rows)}
        result |= await idle_viewers(client)
        result |= await over_webrtc(client)
    return result


async def speaking(client: httpx.AsyncClient, repeats: int) -> dict[str, float]:
    """One viewer: time to the first frame of speech, the joins, an interruption."""
    (await client.post("/sessions", json={"session_id": "one"})).raise_for_status()
    begin_s = time.perf_counter()
    viewer = Viewer(client, "one")
    await viewer.started.wait()
    first_picture_s = time.perf_counter() - begin_s
    await asyncio.sleep(1.5)
    asked_s, holds = [], []
    for k in range(2 * repeats):
        asked_s.append(time.time())
        if k % 2:
            answer = await client.post("/sessions/one/say", content=written(TEXT))
        else:
            answer = await client.post("/speak", json={"text": TEXT, "session_id": "one"})
        holds.append(answer.raise_for_status().json()["live"]["holds"])
        await asyncio.sleep(1.5)
    task = asyncio.create_task(client.post("/speak", json={"text": LONG, "session_id": "one"}))
    began_s = time.perf_counter()
    while (await client.get("/sessions/one")).json()["utterances"][-1]["text"] != LONG:
        assert time.perf_counter() - began_s < 20 and not task.done()
        await asyncio.sleep(0.05)
    shown_after_s = time.perf_counter() - began_s
    await asyncio.sleep(1.5)
    edge = len(viewer.recording.came_s)
    await client.post("/sessions/one/interrupt")
    cut = (await task).json()
    await asyncio.sleep(1.5)
    recording = await viewer.stop()
    stretches = recording.loud_s()
    said, shown = stretches[: 2 * repeats], len(recording.came_s)
    waits = [recording.first_frame_s(start) - asked for (start, _), asked in zip(said, asked_s, strict=True)]
    smooth = [stretch for stretch, held in zip(said, holds, strict=True) if not held]  # without delays of the timeline
    joins_s = [start - LEAD_S for start, _ in smooth] + [end + 0.4 for _, end in smooth]
    facts = (await client.get("/sessions/one")).json()
    assert facts["utterances"][-1]["interrupted"] and cut["interrupted"], facts["utterances"][-1]
    steps = np.diff(recording.times())
    np.testing.assert_allclose(steps, 0.04, atol=1e-3)
    return {
        "first_picture_s": first_picture_s,
        "ttff_s": float(np.median(waits[::2])),
        "written_ttff_s": float(np.median(waits[1::2])),
        "off_line_frames": float(off_line(recording, joins_s)),
        "interrupt_s": max(0.0, said_until_s(recording.data, MediaSpec(512, 512, 25)) - edge / 25),
        "behind_s": float(np.percentile(behind_s(recording.came_s), 95)),
        "long_ttff_s": shown_after_s,
        "holds": float(sum(holds)),
        "joins": float(len(joins_s)),
        "frames": float(shown),
    }


def said_until_s(data: bytes, spec: MediaSpec) -> float:
    """The end of the last packet in a viewer's audio that is not silence, s of stream time."""
    silence = silent_packet(spec)
    spoken = [k for k, packet in enumerate(media_of(data)[2]) if packet != silence]
    return (spoken[-1] + 1) * AAC_FRAME / spec.sample_rate_hz if spoken else 0.0


async def written(text: str) -> Any:
    """A text as a language model writes it: one word at a time, forty per second."""
    for word in text.split(" "):
        yield (word + " ").encode()
        await asyncio.sleep(0.025)


async def together(client: httpx.AsyncClient) -> dict[str, float]:
    """Two watched sessions speak at the same time: each must sound as it does alone."""
    viewers = {}
    for name in TOGETHER:
        (await client.post("/sessions", json={"session_id": name})).raise_for_status()
        alone = {"text": TOGETHER[name], "session_id": f"{name}-alone"}
        (await client.post("/speak", json=alone)).raise_for_status()
        viewers[name] = Viewer(client, name, keep=False)
        await viewers[name].started.wait()
    posts = [client.post("/speak", json={"text": text, "session_id": name}) for name, text in TOGETHER.items()]
    holds = sum(answer.json()["live"]["holds"] for answer in await asyncio.gather(*posts))
    mixed = 0
    for name, viewer in viewers.items():
        await viewer.stop()
        both, alone_video = [(await client.get(f"/sessions/{s}/video.mp4")).content for s in (name, f"{name}-alone")]
        one, two = decode_audio(both)[0], decode_audio(alone_video)[0]
        mixed += len(one) != len(two) or float(np.abs(one - two).max()) > 1e-3
    return {"mixed": float(mixed), "holds_together": float(holds)}


async def idle_viewers(client: httpx.AsyncClient, count: int = 30, seconds: float = 10.0) -> dict[str, float]:
    """Cores used by the graph with many idle viewers of one avatar, and without viewers."""
    for k in range(count):
        (await client.post("/sessions", json={"session_id": f"idle-{k}"})).raise_for_status()
    await asyncio.sleep(12)  # until the hubs of earlier viewers are closed
    resting = await cores(seconds)
    viewers = [Viewer(client, f"idle-{k}", keep=False) for k in range(count)]
    await asyncio.gather(*(viewer.started.wait() for viewer in viewers))
    await asyncio.sleep(2)
    watched = await cores(seconds)
    for viewer in viewers:
        await viewer.stop()
    return {"viewer_cores": watched, "resting_cores": resting}


async def over_webrtc(client: httpx.AsyncClient, count: int = 4, seconds: float = 8.0) -> dict[str, float]:
    """Lateness and audio offset over WebRTC, and the CPU cost of a viewer compared with one over HTTP."""
    facts = await late_and_apart(client, TEXT)
    spent = {}
    for codec in ("H264", "VP8", "fMP4"):
        viewers: list[Any] = []
        for _ in range(count):
            viewers.append(Viewer(client, "rtc", False) if codec == "fMP4" else Player(client, "rtc", codec, False))
        await asyncio.gather(*(v.started.wait() if isinstance(v, Viewer) else v.play() for v in viewers))
        await asyncio.sleep(2)
        spent[codec] = await cores(seconds)
        for viewer in viewers:
            await viewer.stop()
        await asyncio.sleep(1)
    facts["webrtc_viewer_cores"] = (spent["H264"] - spent["fMP4"]) / count
    facts["vp8_viewer_cores"] = (spent["VP8"] - spent["fMP4"]) / count
    return facts


async def cores(seconds: float) -> float:
    """The number of cores that the child processes keep busy."""
    before, begin_s = cpu_s(), time.perf_counter()
    await asyncio.sleep(seconds)
    after, wall_s = cpu_s(), time.perf_counter() - begin_s
    return sum(after[pid] - before.get(pid, 0.0) for pid in after) / wall_s


def cpu_s() -> dict[int, float]:
    """CPU seconds per child process."""
    spent = {}
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
            spent[process.pid] = times.user + times.system
        except psutil.Error:
            continue
    return spent


def long_session(utterances: int = 200) -> dict[str, float]:
    """A session of many utterances: the cost of an append at its start and end, and the difference of its tracks."""
    spec = MediaSpec(128, 128, 25, crf=28)
    pictures = np.random.default_rng(0).integers(0, 255, (50, 8, 8, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    sound = (0.3 * np.sin(np.arange(48_000) / 20)).astype(np.float32)
    spent_ms: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        session = SessionFile(Path(folder) / "long", spec)
        for k in range(utterances):
            made = UtteranceEncoder(spec, session.clock).push(pictures, sound[: 48_000 - 37 * k], last=True)
            begin_s = time.perf_counter()
            session.start_utterance(f"Utterance {k}.")
            for fragment in made:
                session.append(fragment)
            session.end_utterance()
            spent_ms.append((time.perf_counter() - begin_s) * 1e3 / len(made))
        clock = session.clock
        apart_s = abs(clock.audio_samples / spec.sample_rate_hz - clock.video_ticks / VIDEO_TIMESCALE)
        with av.open(str(session.path)) as file:
            file.seek(399 * 1_000_000)
            assert abs(next(file.decode(video=0)).time - 399) < 0.5
    first, last = float(np.median(spent_ms[:20])), float(np.median(spent_ms[-20:]))
    return {"append_growth": last / first, "append_ms": last, "tracks_apart_s": apart_s}


def table(result: dict[str, float]) -> str:
    """Markdown: figure, measured, bar."""
    names = {
        "ttff_s": "from `POST /speak` to the first frame of speech in live.mp4, s",
        "written_ttff_s": "the same for text that arrives at one word per 25 ms, s",
        "off_line_frames": "frames repeated or dropped at the joins of idle motion and speech",
        "interrupt_s": "speech after an interruption, s of stream time",
        "behind_s": "a player that starts at the first byte: distance from the live edge, s (95 % of frames)",
        "torn_words": "words that stop in the middle when two sessions speak two long sentences at once",
        "mixed": "of two sessions that speak at once, those that do not sound as they do alone",
        "viewer_cores": "cores of all processes with 30 idle viewers of 30 sessions",
        "webrtc_late_s": "over WebRTC, from a frame being due to its pixels in an aiortc client, s",
        "webrtc_apart_s": "over WebRTC, offset of sound and picture by the sender reports, s",
        "append_growth": "cost of appending a fragment: last 20 of 200 utterances over the first 20",
        "tracks_apart_s": "difference of the track ends after 200 utterances, s",
    }
    lines = [f"`make bench-live` on {machine()}, warm:", "", "| figure | measured | bar |", "| --- | --- | --- |"]
    lines += [f"| {name} | {result[key]:.2f} | ≤ {BARS[key]:g} |" for key, name in names.items()]
    cost = (
        f"A WebRTC viewer costs {result['webrtc_viewer_cores']:.3f} cores more than one of live.mp4, "
        f"{result['vp8_viewer_cores']:.2f} if the video is re-encoded for it."
    )
    return "\n".join([*lines, "", cost])


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of utterances")
    parser.add_argument("--port", type=int, default=8018)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, LocalGraph("demo", arguments.port, home=Path(home)) as graph:
        result = asyncio.run(measure(graph.url, arguments.repeats))
    result |= long_session()
    print(table(result))
    print({key: round(value, 3) for key, value in result.items()})
    return finish(result, BARS, Path("out/bench-live.json"))


if __name__ == "__main__":
    sys.exit(main())
