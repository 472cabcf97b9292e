"""The line driver, on stages that are plain objects: order, bounded window, retries, cancellation, accounting."""

import asyncio
import time

import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from deployments.common.stage import StageTiming, Stamped
from deployments.stitch.chunks import PendingChunk, PipelineRequest, PipelineSettings, SpeechSegment
from deployments.stitch.metrics import total_calls
from deployments.stitch.pipeline import Pipeline, _next_chunk
from models.errors import BusyError, StageError, TextError
from models.speech.activity import ActivityDetector
from models.types import FaceCrops, FeatureWindows, Phoneme, Speech
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

RATE = 24_000


def speech(seconds: float, last: bool = False) -> Speech:
    return Speech(np.full(round(seconds * RATE), 0.1, np.float32), RATE, "words", last)


class Response:
    """An awaitable with `cancel`, as a DeploymentResponse is."""

    def __init__(self, work) -> None:
        self.task = asyncio.ensure_future(work)
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.cancelled = False

    def __await__(self):
        return asyncio.shield(self.task).__await__()

    def cancel(self) -> None:
        self.cancelled = True
        self.task.cancel()


class Stream:
    def __init__(self, generator) -> None:
        self.generator = generator
        self.cancelled = False

    def __aiter__(self):
        return self.generator

    def cancel(self) -> None:
        self.cancelled = True


class Method:
    def __init__(self, function, wrap=Response) -> None:
        self.function, self.wrap, self.made = function, wrap, []

    def remote(self, *args):
        self.made.append(self.wrap(self.function(*args)))
        return self.made[-1]


def stamp(stage: str, frames: int, received_s: float) -> StageTiming:
    now = time.time()
    return StageTiming(stage, frames, received_s, now, 0.0, now - received_s, now - received_s)


class Stages:
    """Fake TTS, AudioFeatures, LipSync and Enhance. A crop's pixels hold the session position of its frame."""

    def __init__(self, sentences, fail=()) -> None:
        self.sentences, self.fail = sentences, list(fail)
        self.running = self.most = 0
        self.speak = Method(self._speak, Stream)
        self.windows, self.generate, self.restore = Method(self._windows), Method(self._generate), Method(self._restore)

    async def _speak(self, text, voice, speed):
        for index, item in enumerate(self.sentences):
            if isinstance(item, BaseException):
                error, self.sentences = item, [s for s in self.sentences if s is not item]
                raise error
            yield Stamped(speech(item, index == len(self.sentences) - 1), (stamp("TTS", 0, time.time()),))

    async def _windows(self, said, fps, active):
        received_s = time.time()
        await asyncio.sleep(0.005)
        count = round(said.duration_s * fps)
        values = np.zeros((count, 50, 384), np.float16)
        return Stamped(FeatureWindows(values, fps), (stamp("AudioFeatures", count, received_s),))

    async def _generate(self, features, start, count, avatar_id, position, first_frame, due_s, session_id, version):
        windows = (await features).value
        assert start + count <= len(windows)
        received_s = time.time()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.01)
            if self.fail:
                error = self.fail.pop(0)
                if error is not None:
                    raise error
        finally:
            self.running -= 1
        images = np.zeros((count, 4, 4, 3), np.uint8) + np.arange(position, position + count)[:, None, None, None]
        crops = FaceCrops(images.astype(np.uint8), first_frame, avatar_id)
        return Stamped(crops, (stamp("LipSync", count, received_s),))

    async def _restore(self, crops, strength):
        before = await crops
        received_s = time.time()
        await asyncio.sleep(0.005)
        return Stamped(before.value, (*before.timings, stamp("Enhance", len(before.value), received_s)))


def line(stages: Stages, **settings) -> Pipeline:
    return Pipeline(stages, stages, stages, stages, PipelineSettings(**settings))


async def collect(line: Pipeline, job: PipelineRequest):
    return [chunk async for chunk in line.run(job)]


async def test_frames_come_in_order_and_match_the_speech():
    stages = Stages([1.0, 0.61])
    chunks = await collect(line(stages), PipelineRequest("a", position=7, text="Two sentences."))
    frames = np.concatenate([chunk.crops.images[:, 0, 0, 0] for chunk in chunks])
    assert frames.tolist() == list(range(7, 7 + 25 + 16))  # 0.61 s is padded to 16 frames of 40 ms
    assert [chunk.crops.first_frame for chunk in chunks] == [0, 4, 12, 20, 25, 33]
    assert [chunk.speech is not None for chunk in chunks] == [True, False, False, False, True, False]
    assert [len(chunk.speech.samples) for chunk in chunks if chunk.speech] == [RATE, 16 * RATE // 25]
    assert [chunk.last for chunk in chunks] == [False] * 5 + [True]


async def test_the_first_chunk_of_a_segment_knows_its_phonemes_and_all_its_sound():
    heard = (Phoneme("_", 0.0, 0.1), Phoneme("m", 0.1, 0.61))
    said = Speech(np.full(round(0.61 * RATE), 0.1, np.float32), RATE, "Mm.", phonemes=heard)
    chunks = await collect(line(Stages([])), PipelineRequest("a", 0, speech=(said, speech(0.4, last=True))))
    first, second = (chunk for chunk in chunks if chunk.speech)
    assert (first.crops.first_frame, second.crops.first_frame) == (0, 16)
    ends = [chunk for chunk in chunks if chunk.crops.first_frame + len(chunk.crops) == 16]
    assert ends[0].following == (second.speech, 16) and chunks[-1].following is None
    assert first.speech.phonemes == heard and len(first.speech.samples) == 16 * RATE // 25


async def test_lips_hear_the_speech_as_much_later_as_they_are_to_be_shown():
    stages = Stages([0.4, 0.8])
    heard: list[Speech] = []
    windows, stages.windows = stages._windows, Method(lambda said, *rest: heard.append(said) or windows(said, *rest))
    chunks = await collect(line(stages, av_offset_s=0.08), PipelineRequest("a", 0, text="Two."))
    assert [len(said.samples) for said in heard] == [round(0.4 * RATE), round(0.8 * RATE)]
    assert heard[0].samples[: round(0.08 * RATE)].max() == 0 and heard[1].samples.min() > 0
    assert chunks[0].speech.samples.min() > 0  # what is heard is left alone


async def test_one_ear_hears_the_whole_utterance_so_that_a_later_segments_noise_is_known_for_it():
    """Speech 17 dB above a noise, which then goes on alone: by itself, and so short, it would count as speech."""
    noise = np.random.default_rng(0).normal(size=round(2.8 * RATE)).astype(np.float32) * 0.02
    pauses = np.sin(np.pi * np.arange(2 * RATE) / RATE) > 0
    voice = 0.14 * np.sin(2 * np.pi * 150 * np.arange(2 * RATE) / RATE) * pauses
    said = Speech((voice + noise[: 2 * RATE]).astype(np.float32), RATE), Speech(noise[2 * RATE :], RATE, last=True)
    stages, active = Stages([]), []
    windows = stages._windows
    stages.windows = Method(lambda *given: active.append(given[2]) or windows(*given))
    await collect(line(stages), PipelineRequest("a", 0, speech=said))
    assert active[0] == pytest.approx(np.array([[0.0, 1.0]]), abs=0.06)
    assert len(active[1]) == 0 and len(ActivityDetector()(said[1])) == 1


async def test_the_first_chunk_is_small_and_the_window_bounded():
    stages = Stages([4.0])
    chunks = await collect(line(stages, window_chunks=2), PipelineRequest("a", 0, text="Long."))
    assert [len(chunk.crops) for chunk in chunks[:3]] == [4, 8, 8]
    assert 1 < stages.most <= 2 + 2  # the window, one being taken and one being put


async def test_features_are_asked_for_once_a_sentence():
    stages = Stages([1.0, 1.0])
    await collect(line(stages), PipelineRequest("a", 0, text="Two."))
    assert len(stages.windows.made) == 2


async def test_without_enhancement_nothing_waits_for_it():
    stages = Stages([1.0])
    await collect(line(stages), PipelineRequest("a", 0, text="One.", enhance=False))
    assert stages.restore.made == []
    await collect(line(stages), PipelineRequest("a", 0, text="One.", enhance=True))
    assert len(stages.restore.made) == 4


async def test_a_dead_replica_costs_a_retry_and_no_frame():
    stages = Stages([1.0], fail=[None, RayActorError(), None])
    driven = line(stages)
    chunks = await collect(driven, PipelineRequest("a", 0, text="One."))
    frames = np.concatenate([chunk.crops.images[:, 0, 0, 0] for chunk in chunks])
    assert frames.tolist() == list(range(25))
    assert driven.retries == 1


async def test_a_replica_that_dies_every_time_is_an_error():
    stages = Stages([1.0], fail=[RayActorError()] * 20)
    with pytest.raises(StageError, match="LipSync or Enhance failed: RayActorError"):
        await collect(line(stages, tries=2), PipelineRequest("a", 0, text="One."))


async def test_chunks_that_fail_together_ask_for_their_features_once_more():
    stages = Stages([1.0], fail=[RayActorError()] * 3)
    driven = line(stages)
    assert len(await collect(driven, PipelineRequest("a", 0, text="One."))) == 4
    assert driven.retries == 3
    assert len(stages.windows.made) == 2


async def test_full_queues_are_busy():
    stages = Stages([1.0], fail=[BackPressureError(num_queued_requests=9, max_queued_requests=9)] * 20)
    with pytest.raises(BusyError, match="queues are full"):
        await collect(line(stages, tries=2), PipelineRequest("a", 0, text="One."))


async def test_the_callers_mistake_is_not_retried():
    stages = Stages([TextError("Nothing to say.", "Send words.")])
    driven = line(stages)
    with pytest.raises(TextError, match="Nothing to say"):
        await collect(driven, PipelineRequest("a", 0, text="…"))
    assert len(stages.speak.made) == 1


async def test_a_voice_that_dies_goes_on_after_the_sentences_that_were_received():
    stages = Stages([0.4, RayActorError(), 0.8])
    chunks = await collect(line(stages), PipelineRequest("a", 0, text="Two sentences."))
    assert sum(len(chunk.crops) for chunk in chunks) == 30
    assert len(stages.speak.made) == 2


async def test_a_voice_whose_replica_goes_away_is_asked_again():
    """Ray then cancels what waits for it: an error like another, and nobody may wait for ever."""
    stages = Stages([0.4, asyncio.CancelledError(), 0.8])
    chunks = await asyncio.wait_for(collect(line(stages), PipelineRequest("a", 0, text="Two sentences.")), 5)
    assert sum(len(chunk.crops) for chunk in chunks) == 30
    assert len(stages.speak.made) == 2


async def test_a_chunk_whose_replica_goes_away_is_made_again():
    stages = Stages([1.0], fail=[None, asyncio.CancelledError()])
    chunks = await asyncio.wait_for(collect(line(stages), PipelineRequest("a", 0, text="A sentence.")), 5)
    assert sum(len(chunk.crops) for chunk in chunks) == 25


async def test_closing_cancels_what_is_under_way():
    stages = Stages([10.0])
    chunks = line(stages, window_chunks=3).run(PipelineRequest("a", 0, text="Long."))
    await anext(chunks)
    await chunks.aclose()
    await asyncio.sleep(0.05)
    asked = len(stages.generate.made)
    assert stages.running == 0
    await asyncio.sleep(0.05)
    assert len(stages.generate.made) == asked < 10
    assert stages.speak.made[0].cancelled


def other_tasks() -> set[asyncio.Task]:
    return {task for task in asyncio.all_tasks() if "Pipeline._" in task.get_coro().__qualname__}


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.006, 0.02, 0.05])
async def test_a_caller_that_is_cancelled_at_any_moment_leaves_nothing_running(after_s):
    stages = Stages([20.0, 20.0])
    caller = asyncio.create_task(collect(line(stages, window_chunks=2), PipelineRequest("a", 0, text="Two.")))
    await asyncio.sleep(after_s)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0.005)  # half of what one call takes
    assert other_tasks() == set() and stages.running == 0
    assert all(stream.cancelled for stream in stages.speak.made)
    assert all(response.cancelled or response.task.done() for response in stages.windows.made)


async def test_a_chunk_that_arrives_while_its_taker_is_cancelled_is_cancelled_too():
    queue: asyncio.Queue = asyncio.Queue()
    pump = asyncio.create_task(asyncio.sleep(60))
    taker = asyncio.create_task(_next_chunk(queue, pump))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task = asyncio.create_task(asyncio.sleep(60))
    queue.put_nowait(PendingChunk(SpeechSegment(speech(1.0), 0, 25, speech(1.0), np.zeros((0, 2))), 0, task))
    await asyncio.sleep(0)  # the entry is out of the queue, and the taker does not have it yet
    taker.cancel()
    await asyncio.wait({taker, task}, timeout=1.0)
    assert queue.empty() and taker.cancelled() and task.cancelled()
    pump.cancel()


async def test_queue_transfer_and_compute_account_for_the_wall_time():
    stages = Stages([2.0])
    driven = line(stages, window_chunks=1)
    await collect(driven, PipelineRequest("a", 0, text="One.", enhance=True))
    rows = total_calls(driven.calls)
    assert rows["LipSync"]["frames"] == rows["Enhance"]["frames"] == 50
    assert rows["AudioFeatures"]["calls"] == 1
    for row in rows.values():
        parts = row["queue_ms"] + row["transfer_ms"] + row["compute_ms"]
        assert parts == pytest.approx(row["wall_ms"], rel=0.1, abs=1.0)


async def test_given_speech_needs_no_voice():
    stages = Stages([])
    job = PipelineRequest("a", 0, speech=(speech(0.8), speech(0.4, last=True)))
    chunks = await collect(line(stages), job)
    assert sum(len(chunk.crops) for chunk in chunks) == 30
    assert stages.speak.made == [] and chunks[-1].last


async def test_a_sentence_that_waits_for_its_turn_was_not_in_transfer():
    stages = Stages([2.0, 0.4])
    driven = line(stages, window_chunks=1)
    async for _ in driven.run(PipelineRequest("a", 0, text="Two sentences.")):
        await asyncio.sleep(0.05)  # a slow viewer
    assert total_calls(driven.calls)["TTS"]["transfer_ms"] < 40
