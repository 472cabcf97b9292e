"""Both outputs of an utterance: `FileOutput` and `LiveOutput`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deployments.common.clocks import stable_time_s
from deployments.common.messages import SpeakRequest
from deployments.common.stage import StageMeter
from deployments.common.worker import Worker
from deployments.stitch.chunks import Chunk, SpeechSegment
from deployments.stitch.interrupts import Interrupt
from deployments.stitch.live.broadcast import Broadcast
from deployments.stitch.live.pacing import RELEASE_LEAD_S
from deployments.stitch.live.registry import LiveRegistry, Picture, _new_broadcast
from deployments.stitch.open_sessions import OpenSessions
from deployments.stitch.output import FileOutput, Output, deliver
from deployments.stitch.rendering import Renderer
from deployments.stitch.utterance import UtteranceWriter
from models.errors import FencedError, InterruptedSpeech
from models.live.timeline import LIVE_FRAMES, encode_idle
from models.media.encode import MediaSpec
from models.speech.activity import ActivityDetector
from models.stitch.mouth import Mouth
from models.types import FaceCrops, Fragment, Speech
from tests.support.stitch import SIDE, grey_avatar, read_video
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

SPEC = MediaSpec(SIDE, SIDE, 25, fragment_frames=8, first_fragment_frames=4, crf=8)
FRAMES = 28  # of the utterance, in chunks of 4, 8, 8, 8


def segment(first_frame: int, frames: int, samples: np.ndarray | None = None) -> SpeechSegment:
    samples = np.zeros(frames * SPEC.sample_rate_hz // 25, np.float32) if samples is None else samples
    speech = Speech(samples, SPEC.sample_rate_hz, "Hi.")
    return SpeechSegment(speech, first_frame, frames, speech, ActivityDetector()(speech))


class Utterance:
    """An utterance in the session `alice` of a folder, with one of the two outputs."""

    def __init__(self, root: Path, live: bool) -> None:
        self.sessions, self.interrupt = OpenSessions(root, 8), Interrupt()
        self.registry = LiveRegistry()
        avatar = grey_avatar()
        self.writer = UtteranceWriter(SpeakRequest("alice", "Hi."), self.sessions, avatar, SPEC, 0, Mouth(25))
        self.renderer = Renderer(self.writer, Worker("test"), StageMeter("Stitch"))
        self.broadcast: Broadcast | None = None
        self.output: Output = FileOutput(self.renderer)
        if live:
            idle = root / "idle.mp4"
            idle.write_bytes(encode_idle(avatar.prepared.frames, SPEC))
            self.broadcast = _new_broadcast("alice", Picture(avatar, SPEC, 0), idle, None)
            self.output = self.registry.open_output(self.renderer, self.broadcast, self.interrupt, 4.0, 0.0)

    def chunks(self) -> list[Chunk]:
        samples = (0.3 * np.sin(np.arange(FRAMES * SPEC.sample_rate_hz // 25) / 10)).astype(np.float32)
        position = self.output.place(segment(0, FRAMES, samples))
        made = []
        for first, count in ((0, 4), (4, 8), (12, 8), (20, 8)):
            crops = FaceCrops(np.full((count, 256, 256, 3), 250, np.uint8), first, "ann")
            speech = Speech(samples, SPEC.sample_rate_hz, "Hi.") if not first else None
            last = first + count == FRAMES
            made.append(Chunk(crops, speech, last, position + first, ends_segment=last))
        return made

    async def run(self, chunks: AsyncGenerator[Chunk, None] | None = None) -> list[Fragment]:
        chunks = stream(self.chunks()) if chunks is None else chunks
        return [fragment async for fragment in deliver(chunks, self.output, self.interrupt)]

    async def written(self, frames: int) -> None:
        """Wait until the file has this many frames."""
        while not ((session := self.sessions.find("alice")) and session.frames >= frames):
            await asyncio.sleep(0.02)

    @property
    def file(self) -> bytes:
        return self.sessions.find("alice").path.read_bytes()

    @property
    def line(self) -> dict:
        """The utterance in the transcript."""
        (line,) = self.sessions.describe("alice")["utterances"]
        return line


async def stream(chunks: list[Chunk]) -> AsyncGenerator[Chunk, None]:
    for chunk in chunks:
        yield chunk


@pytest.fixture(params=["file", "live"])
def utterance(request, tmp_path) -> SimpleNamespace:
    """make() → an utterance with the file output or the live output: what holds for both."""
    return SimpleNamespace(make=lambda: Utterance(tmp_path, request.param == "live"), live=request.param == "live")


# --- both outputs


async def test_all_frames_are_delivered_and_written_once(utterance):
    made = utterance.make()
    fragments = await made.run()
    assert sum(fragment.frames for fragment in fragments) == FRAMES == made.output.shown_frames
    assert fragments[0].init + b"".join(fragment.data for fragment in fragments) == made.file
    _, _, mouths = read_video(made.file)
    assert len(mouths) == FRAMES and (mouths > 240).all()
    assert made.line["end_s"] == pytest.approx(FRAMES / 25) and not made.line["interrupted"]
    assert made.output.watched == utterance.live
    assert [call.frames for call in made.renderer.calls] == [4, 8, 8, 8]


async def test_the_session_is_claimed_when_speech_arrives_and_not_with_the_first_frame(utterance):
    made = utterance.make()
    made.output.place(segment(0, FRAMES))
    await asyncio.sleep(0)  # the claim begins
    await made.renderer.run(lambda: None)  # it ends: the thread works in order
    session = made.sessions.find("alice")
    assert session.epoch == 1 and session.frames == 0 and session.transcript() == []


async def test_an_utterance_without_a_chunk_writes_nothing(utterance, tmp_path):
    made = utterance.make()
    assert await made.run(stream([])) == [] and not (tmp_path / "alice").exists()


async def test_an_interrupt_marks_the_utterance_where_it_stopped(utterance):
    made = utterance.make()

    async def until_interrupted() -> AsyncGenerator[Chunk, None]:
        for chunk in made.chunks()[:3]:
            yield chunk
        await asyncio.sleep(60)

    running = asyncio.create_task(made.run(until_interrupted()))
    await made.written(12)
    made.interrupt.set()
    with pytest.raises(InterruptedSpeech):
        await running
    await made.output.abort("interrupted")
    frames = made.sessions.find("alice").frames
    assert 12 <= frames <= 20 and frames == made.writer.kept_frames
    assert made.line["interrupted"] and made.line["end_s"] == pytest.approx(frames / 25)
    assert len(read_video(made.file)[0]) == frames


async def test_a_failed_utterance_keeps_its_frames_and_gets_no_end(utterance):
    made = utterance.make()

    async def broken() -> AsyncGenerator[Chunk, None]:
        for chunk in made.chunks()[:3]:
            yield chunk
        await made.written(4)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await made.run(broken())
    await made.output.abort("failed")
    assert made.line["end_s"] is None and 4 <= made.sessions.find("alice").frames <= 20


async def test_an_output_whose_session_was_taken_over_stops_and_writes_nothing(utterance, tmp_path):
    made, other = utterance.make(), OpenSessions(tmp_path, 8)

    async def overtaken() -> AsyncGenerator[Chunk, None]:
        chunks = made.chunks()
        for chunk in chunks[:3]:
            yield chunk
        await made.written(4)
        other.claim("alice", SPEC, grey_avatar().prepared).start_utterance("Rival.")
        yield chunks[3]

    with pytest.raises(FencedError):
        await made.run(overtaken())
    facts = other.describe("alice")
    assert [line["text"] for line in facts["utterances"]] == ["Hi.", "Rival."] and 4 <= facts["frames"] <= 20
    assert [line["end_s"] for line in facts["utterances"]] == [None, None]


async def test_aborting_after_the_end_changes_nothing(utterance):
    made = utterance.make()
    await made.run()
    before = made.file
    await made.output.abort("interrupted")
    assert made.file == before and not made.line["interrupted"] and not made.writer.interrupted


# --- the file output


async def test_the_file_output_writes_at_once_and_places_segments_without_a_gap(tmp_path):
    made = Utterance(tmp_path, live=False)
    made.writer.position = 100
    assert [made.output.place(segment(0, 20)), made.output.place(segment(20, 8))] == [100, 120]
    written = []
    for chunk in made.chunks():
        fragments = await made.output.push(chunk)
        written.append(sum(fragment.frames for fragment in fragments))
        assert made.sessions.find("alice").frames == sum(written)
    assert sum(written) == FRAMES and made.output.facts() == {}


async def test_an_utterance_whose_caller_left_is_interrupted_if_viewers_saw_it_stop_and_else_has_no_end(utterance):
    made = utterance.make()
    for chunk in made.chunks()[:3]:
        await made.output.push(chunk)
    await made.written(4)
    await made.output.abort("cancelled")
    assert made.line["interrupted"] == utterance.live and (made.line["end_s"] is None) != utterance.live


# --- the live output


async def test_the_live_output_writes_what_has_been_shown_and_no_more(tmp_path):
    made = Utterance(tmp_path, live=True)
    chunks = made.chunks()
    for chunk in chunks:
        await made.output.push(chunk)
    assert made.writer.frames == FRAMES and made.output.shown_frames == 0  # made ahead of the playout
    assert made.sessions.find("alice").frames == 0
    await made.output.push(None)
    await made.output.finish()
    last_part_s = made.broadcast.clock.time_of(chunks[0].position + FRAMES - LIVE_FRAMES)
    assert stable_time_s() == pytest.approx(last_part_s - RELEASE_LEAD_S, abs=0.02)
    assert made.sessions.find("alice").frames == FRAMES
    assert made.output.facts() == {"live": {"shown_frames": FRAMES, "holds": 0, "held_s": 0.0}}


async def test_the_live_output_waits_while_it_is_full(tmp_path):
    made = Utterance(tmp_path, live=True)
    made.output.playout.max_ahead_s = 8 / 25
    chunks = made.chunks()
    for chunk in chunks:
        await made.output.push(chunk)
        assert (made.writer.frames - made.output.shown_frames) <= 8 + 8  # the limit, and what the encoder holds back
    assert stable_time_s() > made.broadcast.clock.time_of(chunks[0].position)
    await made.output.abort("failed")


async def test_the_registry_counts_live_outputs_until_they_end(tmp_path):
    made = Utterance(tmp_path, live=True)
    assert made.registry.pace.speakers == 1
    await made.run()
    assert made.registry.pace.speakers == 0


async def test_frames_that_viewers_have_seen_are_written_also_if_the_caller_leaves_before_they_are(
    tmp_path, monkeypatch
):
    made, run = Utterance(tmp_path, live=True), Renderer.run
    left = asyncio.Event()

    async def slow(renderer, function, *args, **kwargs):
        if function == made.writer.write:
            await left.wait()
        return await run(renderer, function, *args, **kwargs)

    monkeypatch.setattr(Renderer, "run", slow)
    caller = asyncio.create_task(made.run())
    while not (made.output.shown_frames == FRAMES and made.output._playing.done()):
        await asyncio.sleep(0.02)
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller})
    assert caller.cancelled()
    left.set()
    await made.output.abort("cancelled")
    assert made.sessions.find("alice").frames == FRAMES and made.line["interrupted"]
