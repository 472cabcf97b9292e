"""The pipeline on fake stages: order, bounded window, deadlines, retries, cancellation, and the cost of calls."""

import asyncio
import time

import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from deployments.common.errors import ReplicaFailedError
from deployments.common.stage import StageTiming, Stamped
from deployments.common.urgency import Urgency
from deployments.stitch.chunks import PendingChunk, PipelineRequest, PipelineSettings, SpeechSegment
from deployments.stitch.metrics import total_calls
from deployments.stitch.pipeline import Pipeline, _next_chunk
from deployments.stitch.schedule import Schedule
from models.errors import BusyError, StageError, TextError
from models.speech.activity import ActivityDetector
from models.types import FaceCrops, FeatureWindows, Phoneme, Speech
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

RATE = 24_000
CALL_S = 0.01  # of one LipSync call
HANG_S = 1e6  # a call that hangs; the loop's clock cannot resolve much larger times, and would spin


def speech(seconds: float, last: bool = False) -> Speech:
    return Speech(np.full(round(seconds * RATE), 0.1, np.float32), RATE, "words", last)


# --- fake handles and stages


class Response:
    """An awaitable with `cancel`, as a DeploymentResponse is. `cancel` raises the error of a call that failed."""

    def __init__(self, work) -> None:
        self.task = asyncio.ensure_future(work)
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.cancelled = False

    def __await__(self):
        return asyncio.shield(self.task).__await__()

    def cancel(self) -> None:
        self.cancelled = True
        if self.task.done() and not self.task.cancelled() and self.task.exception() is not None:
            raise self.task.exception()
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
    """Fake TTS, AudioFeatures, LipSync and Enhance. A crop's pixels hold the position of its frame.

    sentences: seconds of speech, or errors. fail: per LipSync call an error, None for success, or HANG.
    """

    HANG = "hang"

    def __init__(self, sentences, fail=()) -> None:
        self.sentences, self.fail = sentences, list(fail)
        self.running = self.most = 0
        self.call_s = CALL_S
        self.asked: list[tuple[int | None, str]] = []  # of AudioFeatures: how many windows, and the key of the others
        self.urgencies: list[tuple[int, float, Urgency]] = []  # first frame of the utterance, time of the call
        self.speak = Method(self._speak, Stream)
        self.windows, self.generate, self.restore = Method(self._windows), Method(self._generate), Method(self._restore)

    async def _speak(self, text, voice, speed):
        for index, item in enumerate(self.sentences):
            if isinstance(item, BaseException):
                error, self.sentences = item, [s for s in self.sentences if s is not item]
                raise error
            yield Stamped(speech(item, index == len(self.sentences) - 1), (stamp("TTS", 0, time.time()),))

    async def _windows(self, said, fps, active, first=None, key=""):
        received_s = time.time()
        self.asked.append((first, key))
        await asyncio.sleep(0.005)
        count = first or round(said.duration_s * fps)
        values = np.zeros((count, 50, 384), np.float16)
        return Stamped(FeatureWindows(values, fps), (stamp("AudioFeatures", count, received_s),))

    async def _generate(self, features, start, count, avatar_id, position, first_frame, urgency, session_id, version):
        self.urgencies.append((first_frame, time.monotonic(), urgency))
        windows = (features if isinstance(features, Stamped) else await features).value
        assert start + count <= len(windows)
        received_s = time.time()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            outcome = self.fail.pop(0) if self.fail else None
            await asyncio.sleep(HANG_S if outcome == self.HANG else self.call_s)
            if isinstance(outcome, BaseException):
                raise outcome
        finally:
            self.running -= 1
        images = np.zeros((count, 4, 4, 3), np.uint8) + np.arange(position, position + count)[:, None, None, None]
        crops = FaceCrops(images.astype(np.uint8), first_frame, avatar_id)
        return Stamped(crops, (stamp("LipSync", count, received_s),))

    async def _restore(self, crops, strength, urgency, session_id, shares):
        before = await crops
        received_s = time.time()
        await asyncio.sleep(0.005)
        return Stamped(before.value, (*before.timings, stamp("Enhance", len(before.value), received_s)))


def pipeline(stages: Stages, **settings) -> Pipeline:
    return Pipeline(stages, stages, stages, stages, PipelineSettings(**settings))


def request(text: str = "Words.", position: int = 0, **options) -> PipelineRequest:
    """A request whose segments follow one another from a position of the timeline on."""
    return PipelineRequest("a", lambda segment: position + segment.first_frame, text=text, **options)


async def collect(pipeline: Pipeline, request: PipelineRequest):
    return [chunk async for chunk in pipeline.run(request)]


# --- chunks


async def test_frames_come_in_order_and_match_the_speech():
    chunks = await collect(pipeline(Stages([1.0, 0.61])), request(position=7))
    frames = np.concatenate([chunk.crops.images[:, 0, 0, 0] for chunk in chunks])
    assert frames.tolist() == list(range(7, 7 + 25 + 16))  # 0.61 s is padded to 16 frames of 40 ms
    assert [chunk.crops.first_frame for chunk in chunks] == [0, 4, 12, 20, 25, 33]
    assert [chunk.position for chunk in chunks] == [7, 11, 19, 27, 32, 40]
    assert [chunk.speech is not None for chunk in chunks] == [True, False, False, False, True, False]
    assert [len(chunk.speech.samples) for chunk in chunks if chunk.speech] == [RATE, 16 * RATE // 25]
    assert [chunk.last for chunk in chunks] == [False] * 5 + [True]
    assert [chunk.ends_segment for chunk in chunks] == [False, False, False, True, False, True]


async def test_the_first_chunk_travels_by_value_and_the_rest_of_its_features_is_made_once():
    stages, by_value = Stages([1.0]), Stages([])
    piped = pipeline(stages)
    piped.by_value = by_value, by_value
    chunks = await collect(piped, request())
    assert [len(chunk.crops) for chunk in chunks] == [4, 8, 8, 5]
    assert [first for first, *_ in by_value.urgencies] == [0] and [first for first, *_ in stages.urgencies] == [
        4,
        12,
        20,
    ]
    (first,), (rest,) = by_value.asked, stages.asked
    assert first[0] == 4 and first[1] and rest == (None, first[1])
    assert sorted({call.stage for call in piped.calls}) == ["AudioFeatures", "LipSync", "TTS"]


async def test_a_first_chunk_by_value_that_fails_is_made_again():
    stages, by_value = Stages([0.4]), Stages([], fail=[RayActorError()])
    piped = pipeline(stages)
    piped.by_value = by_value, by_value
    assert [len(chunk.crops) for chunk in await collect(piped, request())] == [4, 6] and piped.retries == 1
    assert len({key for _, key in by_value.asked}) == 2


async def test_a_segment_behind_a_gap_starts_with_a_short_chunk():
    positions = {0: 0, 25: 40}
    gap = PipelineRequest("a", lambda segment: positions[segment.first_frame], text="Words.")
    chunks = await collect(pipeline(Stages([1.0, 1.0])), gap)
    assert [len(chunk.crops) for chunk in chunks] == [4, 8, 8, 5] * 2
    assert [chunk.position for chunk in chunks] == [0, 4, 12, 20, 40, 44, 52, 60]


async def test_the_first_chunk_of_a_segment_has_its_phonemes_and_all_its_sound():
    heard = (Phoneme("_", 0.0, 0.1), Phoneme("m", 0.1, 0.61))
    said = Speech(np.full(round(0.61 * RATE), 0.1, np.float32), RATE, "Mm.", phonemes=heard)
    chunks = await collect(pipeline(Stages([])), request("", speech=(said, speech(0.4, last=True))))
    first, second = (chunk for chunk in chunks if chunk.speech)
    assert (first.crops.first_frame, second.crops.first_frame) == (0, 16)
    ends = [chunk for chunk in chunks if chunk.crops.first_frame + len(chunk.crops) == 16]
    after = ends[0].following
    assert (after.speech, after.first_frame) == (second.speech, 16) and chunks[-1].following is None
    assert first.speech.phonemes == heard and len(first.speech.samples) == 16 * RATE // 25


async def test_features_are_made_from_speech_shifted_by_the_av_offset():
    stages = Stages([0.4, 0.8])
    heard: list[Speech] = []
    windows, stages.windows = stages._windows, Method(lambda said, *rest: heard.append(said) or windows(said, *rest))
    chunks = await collect(pipeline(stages, av_offset_s=0.08), request())
    assert [len(said.samples) for said in heard] == [round(0.4 * RATE), round(0.8 * RATE)]
    assert heard[0].samples[: round(0.08 * RATE)].max() == 0 and heard[1].samples.min() > 0
    assert chunks[0].speech.samples.min() > 0  # the sound itself is not shifted


async def test_one_activity_detector_hears_the_whole_utterance():
    """Speech 17 dB above a noise, then the noise alone: a detector that hears only the latter takes it for speech."""
    noise = np.random.default_rng(0).normal(size=round(2.8 * RATE)).astype(np.float32) * 0.02
    pauses = np.sin(np.pi * np.arange(2 * RATE) / RATE) > 0
    voice = 0.14 * np.sin(2 * np.pi * 150 * np.arange(2 * RATE) / RATE) * pauses
    said = Speech((voice + noise[: 2 * RATE]).astype(np.float32), RATE), Speech(noise[2 * RATE :], RATE, last=True)
    stages, active = Stages([]), []
    windows = stages._windows
    stages.windows = Method(lambda *given: active.append(given[2]) or windows(*given))
    await collect(pipeline(stages), request("", speech=said))
    assert active[0] == pytest.approx(np.array([[0.0, 1.0]]), abs=0.06)
    assert len(active[1]) == 0 and len(ActivityDetector()(said[1])) == 1


async def test_recorded_speech_needs_no_tts():
    stages = Stages([])
    chunks = await collect(pipeline(stages), request("", speech=(speech(0.8), speech(0.4, last=True))))
    assert sum(len(chunk.crops) for chunk in chunks) == 30
    assert stages.speak.made == [] and chunks[-1].last


async def test_the_number_of_chunks_in_flight_is_bounded():
    stages = Stages([4.0])
    chunks = await collect(pipeline(stages, window_chunks=2), request())
    assert [len(chunk.crops) for chunk in chunks[:3]] == [4, 8, 8]
    assert 1 < stages.most <= 2 + 2  # the window, one that is taken and one that is put


async def test_each_chunk_is_due_when_its_first_frame_is_played():
    stages, start_s = Stages([1.0, 0.4]), time.monotonic()
    await collect(pipeline(stages, window_chunks=1), request())
    first, *others = stages.urgencies
    assert first[0] == 0 and first[2].slack_s <= 4 / 25 and not first[2].background
    assert [frame for frame, _, _ in others] == [4, 12, 20, 25, 33]
    assert all(urgency.background for _, _, urgency in others)
    due_s = [sent_s + urgency.slack_s - start_s for _, sent_s, urgency in others]
    assert due_s == pytest.approx([frame / 25 for frame, _, _ in others], abs=0.02)  # played from the first chunk on
    assert [urgency.renew_s for _, _, urgency in others] == [8 / 25, 8 / 25, 5 / 25, 8 / 25, 2 / 25]


async def test_an_utterance_that_is_late_starts_its_schedule_over():
    """Each chunk of 8 frames, 0.32 s, takes 2 s, so its time is missed each time, but not by ever more."""
    stages = Stages([8.0])
    stages.call_s = 2.0
    await collect(pipeline(stages, window_chunks=1), request())
    slacks_s = [urgency.slack_s for _, _, urgency in stages.urgencies[1:]]
    assert stages.urgencies[-1][1] - stages.urgencies[0][1] > 8.0  # slower than real time
    assert -4.0 < min(slacks_s) < 0


async def test_the_chunks_of_a_watched_utterance_are_due_when_viewers_need_them():
    stages = Stages([1.0])
    await collect(pipeline(stages), request(position=50, slack_s=lambda position: position / 25))
    slacks_s = [urgency.slack_s for _, _, urgency in stages.urgencies]
    assert slacks_s == pytest.approx([4 / 25, 54 / 25, 62 / 25, 70 / 25])
    assert not any(urgency.background for _, _, urgency in stages.urgencies)


async def test_features_are_requested_once_per_segment():
    stages = Stages([1.0, 1.0])
    await collect(pipeline(stages), request())
    assert len(stages.windows.made) == 2


async def test_enhance_is_called_only_on_request():
    stages = Stages([1.0])
    await collect(pipeline(stages), request(enhance=False))
    assert stages.restore.made == []
    await collect(pipeline(stages), request(enhance=True))
    assert len(stages.restore.made) == 4


# --- errors and retries


async def test_a_lost_replica_costs_a_retry_and_no_frame():
    stages = Stages([1.0], fail=[None, RayActorError(), None])
    driven = pipeline(stages)
    chunks = await collect(driven, request())
    frames = np.concatenate([chunk.crops.images[:, 0, 0, 0] for chunk in chunks])
    assert frames.tolist() == list(range(25))
    assert driven.retries == 1


async def test_a_replica_that_is_lost_in_every_attempt_is_an_error_after_growing_pauses():
    stages, start_s = Stages([0.16], fail=[RayActorError()] * 4), time.monotonic()  # one chunk
    with pytest.raises(StageError, match="LipSync or Enhance failed in 4 attempts: RayActorError"):
        await collect(pipeline(stages, tries=4), request())
    assert time.monotonic() - start_s == pytest.approx(0.1 + 0.2 + 0.4, abs=0.1)  # the calls take 4 · 15 ms


async def test_a_call_that_does_not_return_is_cancelled_and_repeated():
    stages = Stages([1.0], fail=[None, Stages.HANG])
    driven, start_s = pipeline(stages, chunk_timeout_s=5.0), time.monotonic()
    chunks = await collect(driven, request())
    assert sum(len(chunk.crops) for chunk in chunks) == 25 and driven.retries == 1
    assert time.monotonic() - start_s == pytest.approx(5.0 + 0.1, abs=0.1)  # the timeout and the pause before a retry
    assert [response.cancelled for response in stages.generate.made].count(True) == 1


async def test_a_call_that_never_returns_is_an_error():
    stages = Stages([1.0], fail=[Stages.HANG] * 20)
    with pytest.raises(StageError, match="LipSync or Enhance did not answer for 5 s, 2 times"):
        await collect(pipeline(stages, tries=2, chunk_timeout_s=5.0), request())


async def test_chunks_that_fail_together_request_new_features_once():
    stages = Stages([1.0], fail=[RayActorError()] * 3)
    driven = pipeline(stages)
    assert len(await collect(driven, request())) == 4
    assert driven.retries == 3
    assert len(stages.windows.made) == 2


async def test_full_queues_are_reported_as_busy():
    stages = Stages([1.0], fail=[BackPressureError(num_queued_requests=9, max_queued_requests=9)] * 20)
    with pytest.raises(BusyError, match="overloaded: the queues"):
        await collect(pipeline(stages, tries=2), request())


async def test_an_invalid_request_is_not_retried():
    stages = Stages([TextError("Nothing to say.", "Send words.")])
    with pytest.raises(TextError, match="Nothing to say"):
        await collect(pipeline(stages), request("…"))
    assert len(stages.speak.made) == 1


# Ray cancels what waits for a replica that is lost: an error like others, not the caller's own cancellation
@pytest.mark.parametrize("loss", [RayActorError(), asyncio.CancelledError(), ReplicaFailedError.of("no device")])
async def test_after_the_loss_of_tts_received_sentences_are_skipped(loss):
    stages = Stages([0.4, loss, 0.8])
    chunks = await collect(pipeline(stages), request())
    assert sum(len(chunk.crops) for chunk in chunks) == 30
    assert len(stages.speak.made) == 2


async def test_a_chunk_whose_call_ray_cancels_is_made_again():
    stages = Stages([1.0], fail=[None, asyncio.CancelledError()])
    chunks = await collect(pipeline(stages), request())
    assert sum(len(chunk.crops) for chunk in chunks) == 25


# --- cancellation


async def test_closing_the_pipeline_cancels_all_calls():
    stages = Stages([10.0])
    chunks = pipeline(stages, window_chunks=3).run(request())
    await anext(chunks)
    await chunks.aclose()
    await asyncio.sleep(0)
    asked = len(stages.generate.made)
    await asyncio.sleep(1)
    assert stages.running == 0 and len(stages.generate.made) == asked < 10
    assert stages.speak.made[0].cancelled


def pipeline_tasks() -> set[asyncio.Task]:
    return {task for task in asyncio.all_tasks() if "Pipeline._" in task.get_coro().__qualname__}


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.006, 0.02, 0.05])
async def test_a_cancelled_caller_leaves_no_call_running(after_s):
    stages = Stages([20.0, 20.0])
    caller = asyncio.create_task(collect(pipeline(stages, window_chunks=2), request()))
    await asyncio.sleep(after_s)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(CALL_S / 2)
    assert pipeline_tasks() == set() and stages.running == 0
    assert all(stream.cancelled for stream in stages.speak.made)


async def test_a_caller_that_is_cancelled_while_its_features_are_made_cancels_that_call():
    stages = Stages([0.16])  # one chunk: no other chunk in the queue cancels the call
    stages.windows = Method(lambda *_: asyncio.sleep(HANG_S))
    caller = asyncio.create_task(collect(pipeline(stages), request()))
    await asyncio.sleep(CALL_S)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert [response.cancelled for response in stages.windows.made] == [True]


@pytest.mark.parametrize("steps", range(8))
async def test_a_cancellation_that_arrives_with_the_result_is_not_lost(steps):
    """asyncio.wait_for of Python 3.11 returns the result and forgets the cancellation."""
    stages = Stages([1.0])
    segment = SpeechSegment(speech(1.0), 0, 25, speech(1.0), np.zeros((0, 2)))
    making = asyncio.create_task(pipeline(stages)._make_chunk(request(), segment, 0, 4, Schedule(25)))
    await asyncio.sleep(0)
    await asyncio.wait({stages.generate.made[0].task})
    for _ in range(steps):
        await asyncio.sleep(0)
    requested = making.cancel()  # False if the result has been taken
    await asyncio.wait({making})
    assert making.cancelled() == requested


async def test_a_chunk_that_arrives_while_its_taker_is_cancelled_is_cancelled_too():
    queue: asyncio.Queue = asyncio.Queue()
    feeder = asyncio.create_task(asyncio.sleep(60))
    taker = asyncio.create_task(_next_chunk(queue, feeder))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task = asyncio.create_task(asyncio.sleep(60))
    queue.put_nowait(PendingChunk(SpeechSegment(speech(1.0), 0, 25, speech(1.0), np.zeros((0, 2))), 0, task))
    await asyncio.sleep(0)  # the chunk is out of the queue, and the taker does not have it yet
    taker.cancel()
    await asyncio.wait({taker, task}, timeout=1.0)
    assert queue.empty() and taker.cancelled() and task.cancelled()
    feeder.cancel()


# --- cost of calls


async def test_queue_transfer_and_compute_add_up_to_the_wall_time():
    driven = pipeline(Stages([2.0]), window_chunks=1)
    await collect(driven, request(enhance=True))
    rows = total_calls(driven.calls)
    assert rows["LipSync"]["frames"] == rows["Enhance"]["frames"] == 50
    assert rows["AudioFeatures"]["calls"] == 1
    for row in rows.values():
        assert row["queue_ms"] + row["transfer_ms"] + row["compute_ms"] == pytest.approx(row["wall_ms"], abs=0.1)
    assert rows["LipSync"]["wall_ms"] == pytest.approx(7 * CALL_S * 1e3, abs=0.1)


async def test_the_wait_of_a_sentence_for_its_turn_is_not_counted_as_transfer():
    driven = pipeline(Stages([2.0, 0.4]), window_chunks=1)
    async for _ in driven.run(request()):
        await asyncio.sleep(0.05)  # a slow viewer
    assert total_calls(driven.calls)["TTS"]["transfer_ms"] == pytest.approx(0, abs=0.1)
