"""Calls that hang, replicas that fail, queues that are long: what is tried again, what waits, and what is an error."""

import asyncio
import time
from dataclasses import replace

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments.common.errors import ReplicaFailedError
from deployments.stitch.attempts import Answers, Attempts, OvertakenError
from models.errors import BusyError, StageError, TextError
from tests.support.virtual_time import event_loop_policy, virtual_time
from tests.unit.deployments.stitch.test_pipeline import Method, Stages, Stream, collect, pipeline, request

__all__ = ["event_loop_policy", "virtual_time"]

FULL = BackPressureError(num_queued_requests=9, max_queued_requests=9)


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("generate", "traceback", cause)


def total_frames(chunks) -> int:
    return sum(len(chunk.crops) for chunk in chunks)


class HangingVoice(Stages):
    """TTS that hangs before the sentence of each number in `hang_at`, once per entry."""

    def __init__(self, sentences, hang_at) -> None:
        super().__init__(sentences)
        self.hang_at = list(hang_at)
        self.speak = Method(self._hanging, Stream)

    async def _hanging(self, text, voice, speed):
        number = 0
        async for stamped in self._speak(text, voice, speed):
            if number in self.hang_at:
                self.hang_at.remove(number)
                await asyncio.sleep(1e6)
            yield stamped
            number += 1


# --- replicas that fail


@pytest.mark.parametrize(
    "failure",
    [
        task_error(ReplicaFailedError.of("the device is lost")),
        task_error(
            task_error(ReplicaFailedError.of("the device is lost"))
        ),  # in AudioFeatures, whose result LipSync awaits
        task_error(task_error(RayActorError())),
    ],
)
async def test_a_chunk_of_a_replica_that_fails_is_made_by_another_one(failure):
    driven = pipeline(Stages([1.0], fail=[None, failure]))
    assert total_frames(await collect(driven, request())) == 25
    assert driven.retries == 1


async def test_a_replica_that_fails_in_every_attempt_is_an_error_that_says_why():
    stages = Stages([0.16], fail=[task_error(ReplicaFailedError.of("the device is lost"))] * 3)
    with pytest.raises(StageError, match="failed in 3 attempts: .* being replaced: the device is lost"):
        await collect(pipeline(stages, tries=3), request())


async def test_a_bug_of_a_stage_is_not_tried_again():
    stages = Stages([0.16], fail=[task_error(ValueError("shape"))])
    with pytest.raises(StageError, match="Enhance failed: ValueError"):
        await collect(pipeline(stages), request())
    assert len(stages.generate.made) == 1


async def test_a_refusal_of_a_stage_is_raised_as_it_is():
    with pytest.raises(TextError, match="Nothing to say"):
        await Attempts("TTS", 4, 1.0).pause_after(task_error(TextError("Nothing to say.")))


# --- waiting is not failing


async def answer(answers: Answers, times: int, every_s: float) -> None:
    """Other utterances get answers."""
    for _ in range(times):
        await asyncio.sleep(every_s)
        answers.answered("chunks", 0.1)


async def test_a_call_waits_for_its_turn_as_long_as_the_stages_answer_others():
    answers, start_s = Answers(), time.monotonic()
    busy = asyncio.create_task(answer(answers, times=4, every_s=3.0))
    with pytest.raises(TimeoutError):
        async with answers.waiting("chunks", 10.0):
            await asyncio.sleep(1e6)
    assert busy.done()
    assert time.monotonic() - start_s == pytest.approx(4 * 3 + 10)


@pytest.mark.parametrize(("others_wait_s", "limit_s"), [(1.0, 30), (5.0, 30), (20.0, 80)])
async def test_a_call_whose_answer_is_lost_is_given_up_although_others_are_answered(others_wait_s, limit_s):
    answers = Answers()
    for _ in range(3):
        async with answers.waiting("chunks", 10.0):
            await asyncio.sleep(min(others_wait_s, 9.0))
            answers.answered("chunks", 0.1)
            await asyncio.sleep(others_wait_s - min(others_wait_s, 9.0) - 2 * (others_wait_s > 9))
            answers.answered("chunks", 0.1)
            await asyncio.sleep(2 * (others_wait_s > 9))
    start_s = time.monotonic()
    busy = asyncio.create_task(answer(answers, times=1000, every_s=1.0))
    with pytest.raises(OvertakenError):
        async with answers.waiting("chunks", 10.0):
            await asyncio.sleep(1e6)
    busy.cancel()
    assert time.monotonic() - start_s == pytest.approx(limit_s)


async def test_calls_that_are_overtaken_are_no_failures_and_at_last_an_overload():
    attempts, start_s = Attempts("LipSync", 2, 10.0, busy_limit_s=100.0), time.monotonic()
    for _ in range(3):
        await attempts.pause_after(OvertakenError())
    assert attempts.failed == 0
    await asyncio.sleep(100)
    await attempts.pause_after(OvertakenError())
    with pytest.raises(BusyError, match="overloaded: LipSync answer others first"):
        await attempts.pause_after(OvertakenError())
    assert time.monotonic() - start_s > 100


async def test_calls_that_are_less_urgent_may_wait_as_long_as_their_like():
    answers = Answers()
    busy = asyncio.create_task(answer(answers, times=1000, every_s=1.0))
    async with answers.waiting("chunks", 20.0, urgent=False):
        await asyncio.sleep(50.0)
    start_s = time.monotonic()
    with pytest.raises(TimeoutError):
        async with answers.waiting("chunks", 10.0, urgent=False):
            await asyncio.sleep(1e6)
    assert time.monotonic() - start_s == pytest.approx(4 * 50)
    busy.cancel()


async def test_answers_of_another_kind_do_not_extend_the_wait():
    answers, start_s = Answers(), time.monotonic()
    with pytest.raises(TimeoutError):
        async with answers.waiting("chunks", 5.0):
            await asyncio.sleep(4.0)
            answers.answered("speech", 0.1)
            await asyncio.sleep(1e6)
    assert time.monotonic() - start_s == pytest.approx(5)


async def test_a_stage_that_computes_for_long_gets_longer():
    answers, start_s = Answers(), time.monotonic()
    answers.answered("chunks", 10.0)
    with pytest.raises(TimeoutError):
        async with answers.waiting("chunks", 5.0):
            await asyncio.sleep(1e6)
    assert time.monotonic() - start_s == pytest.approx(40)  # 4 · 10 s


async def test_utterances_of_one_replica_share_what_they_know_of_the_stages():
    """One chunk waits 14 s in the queue of a stage that makes those of another utterance meanwhile."""
    slow, quick, answers = Stages([0.16]), Stages([20.0]), Answers()
    slow.call_s, quick.call_s = 14.0, 1.0
    waiting, making = pipeline(slow, chunk_timeout_s=5.0), pipeline(quick, chunk_timeout_s=5.0, window_chunks=1)
    waiting.answers = making.answers = answers
    chunks, others = await asyncio.gather(collect(waiting, request()), collect(making, request()))
    assert (total_frames(chunks), total_frames(others), waiting.retries) == (4, 500, 0)


async def test_full_queues_delay_an_utterance_that_has_begun():
    driven, start_s = pipeline(Stages([1.0], fail=[None, *[FULL] * 30]), tries=4), time.monotonic()
    assert total_frames(await collect(driven, request())) == 25
    assert time.monotonic() - start_s < 4 * 20


async def test_full_queues_that_stay_full_are_an_error_that_says_overloaded():
    start_s = time.monotonic()
    with pytest.raises(BusyError, match="overloaded"):
        await collect(pipeline(Stages([1.0], fail=[None, *[FULL] * 10_000]), tries=4), request())
    assert time.monotonic() - start_s == pytest.approx(4 * 20, abs=8)


# --- speech


@pytest.mark.parametrize("hang_at", [[0], [1], [2], [0, 2]])
async def test_a_voice_that_hangs_is_called_again_and_no_sentence_is_lost_or_doubled(hang_at):
    stages, start_s = HangingVoice([0.4, 0.8, 0.4], hang_at), time.monotonic()
    driven = pipeline(stages, speech_timeout_s=2.0)
    chunks = await collect(driven, request())
    assert [chunk.speech.duration_s for chunk in chunks if chunk.speech] == [0.4, 0.8, 0.4]
    assert driven.retries == len(hang_at) == len(stages.speak.made) - 1
    assert all(stream.cancelled for stream in stages.speak.made)
    assert time.monotonic() - start_s == pytest.approx(2.1 * len(hang_at), abs=0.5)


async def test_a_voice_that_always_hangs_is_a_clear_error_in_bounded_time():
    stages, start_s = HangingVoice([0.4], [0] * 9), time.monotonic()
    with pytest.raises(StageError, match="TTS did not answer for 1 s, 4 times"):
        await collect(pipeline(stages, speech_timeout_s=1.0), request())
    assert time.monotonic() - start_s == pytest.approx(4 + 0.7, abs=0.2)
    assert len(stages.speak.made) == 4


@pytest.mark.parametrize("begun", [False, True])
async def test_a_busy_voice_delays_only_an_utterance_that_has_begun(begun):
    """Of a text that is still being written, the second part finds the queue of TTS full for 5 s."""
    stages, full = Stages([0.4]), [FULL] * 6
    speak = stages.speak.function

    async def busy(text, voice, speed):
        if text == "Two." and full:
            raise full.pop()
        async for stamped in speak(text, voice, speed):
            yield stamped

    async def parts():
        if begun:
            yield "One."
        yield "Two."

    stages.speak = Method(busy, Stream)
    written = replace(request(""), parts=parts())
    if begun:
        assert total_frames(await collect(pipeline(stages), written)) == 20
    else:
        with pytest.raises(BusyError, match="overloaded"):
            await collect(pipeline(stages), written)


async def test_a_reader_that_takes_its_time_is_not_a_voice_that_hangs():
    driven = pipeline(Stages([2.0, 0.4, 0.4]), speech_timeout_s=1.0, window_chunks=1)
    count = 0
    async for _ in driven.run(request()):
        await asyncio.sleep(5.0)
        count += 1
    assert (count, driven.retries) == (7 + 2 + 2, 0)
