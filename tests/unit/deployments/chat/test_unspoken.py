"""Replies that stall, and replies with parts that cannot be spoken; in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

import pytest

from deployments.common.messages import ChatRequest
from models.llm.base import Message
from tests.support import chat as chat_material
from tests.support.chat import Stitch, answered, finished, known, stage
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]
home = chat_material.home  # a fixture

STALL_S = 12.0


class Model:
    """Writes `tokens`; a number among them is a pause."""

    tokens: ClassVar[Sequence[str | float]] = ()

    @classmethod
    def load(cls) -> Model:
        return cls()

    async def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        for token in self.tokens:
            if isinstance(token, str):
                yield token
            else:
                await asyncio.sleep(token)


async def chat_with(stitch: Stitch, *tokens: str | float) -> Any:
    Model.tokens = tokens
    chat = await stage(stitch=stitch, reply_timeout_s=STALL_S)
    await chat.reconfigure({"engine": f"{__name__}:Model", "options": {}, "reply_timeout_s": STALL_S})
    return chat


async def test_what_a_stalled_model_wrote_is_spoken_and_its_error_comes_at_once() -> None:
    stitch = Stitch()
    stitch.pause_s = 8.0
    chat = await chat_with(stitch, 14.0, "One is said. And two is", 1000.0)
    began_s = time.monotonic()
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    job = await known(chat, job_id, lambda job: job["error"])
    assert time.monotonic() - began_s == pytest.approx(14.0 + STALL_S, abs=0.1)
    assert job["status"] == "speaking" and job["error"]["message"] == "The language model wrote nothing for 12 s."
    job = await finished(chat, job_id)
    assert (job["status"], job["reply"]) == ("failed", "One is said. And two is")
    assert stitch.texts() == ["One is said.", "And two is"]
    assert (await chat.messages("default"))[-1]["content"] == "One is said. And two is"


async def test_a_sentence_is_spoken_while_the_model_pauses() -> None:
    stitch = Stitch()
    job = await answered(await chat_with(stitch, "One is said.", 10.0, " Two."))
    assert job["status"] == "done" and job["error"] is None
    (_, _, first_s), (_, _, second_s) = stitch.began
    assert second_s - first_s == pytest.approx(10.0 - 0.5, abs=0.05)


async def test_an_interrupted_job_whose_model_had_stalled_is_done_without_an_error() -> None:
    stitch = Stitch()
    stitch.may_speak.clear()
    chat = await chat_with(stitch, "One is said.", 1000.0)
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    await known(chat, job_id, lambda job: job["error"])
    await chat.interrupt("default")
    job = await finished(chat, job_id)
    assert (job["status"], job["interrupted"], job["error"]) == ("done", True, None)


async def test_unreadable_parts_are_warnings_of_the_job() -> None:
    stitch = Stitch()
    stitch.summary = {"warnings": ["Skipped a part."]}
    chat = await chat_with(stitch, "Look:\n```\nx = 1\n```\n😀\nThat is all.")
    job = await answered(chat)
    assert (job["status"], job["warnings"]) == ("done", ["Skipped a part."])
    assert stitch.texts() == ["Look:", "```\nx = 1\n```", "😀", "That is all."]  # Stitch skips what it cannot speak
    assert (await chat.status(job["job_id"]))["reply"].count("```") == 2
    assert job["saying"] is None


async def test_what_cannot_be_spoken_is_not_reported_as_being_said() -> None:
    stitch = Stitch()
    stitch.pause_s = 5.0
    chat = await chat_with(stitch, "Look:\n```\nx = 1\n```\nThat is all.")
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    job = await known(chat, job_id, lambda job: "all" in (job["saying"] or ""))
    assert job["saying"] == "Look: That is all."
    await finished(chat, job_id)


@pytest.mark.parametrize(
    ("reply", "warning"),
    [
        ("😀 🎉", 'Skipped "😀 🎉": it has no letter or digit, so there is nothing to speak.'),
        ("```\nx = 1\n```", 'Skipped "``` x = 1 ```": it is a block of code, which is not spoken.'),
    ],
)
async def test_a_reply_without_words_is_shown_with_a_warning(reply: str, warning: str) -> None:
    stitch = Stitch()
    job = await answered(await chat_with(stitch, reply))
    assert (job["status"], job["reply"], job["warnings"]) == ("done", reply, [warning]) and not stitch.calls
