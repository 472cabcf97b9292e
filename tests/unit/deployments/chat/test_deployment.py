"""The Chat stage without Ray: from a message to its spoken answer, interruptions, errors and limits."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.chat.reply import CHARS_PER_S
from deployments.common.messages import ChatRequest
from models.errors import BusyError, IdError, InterruptedSpeech, NotFoundError, TextError
from models.llm.base import MODEL_ENV, URL_ENV
from tests.support import chat as chat_material
from tests.support.chat import Stitch, answered, finished, known, stage, until
from tests.support.llm_server import LLMServer, broken_off, refused, streamed

home, llm = chat_material.home, chat_material.llm  # fixtures

# --- answering a message


async def test_an_answer_is_spoken_sentence_by_sentence_into_its_session(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("I am fine. ", "And ", "you?", pause_s=0.03)]
    stitch = Stitch()
    job = await answered(
        await stage(llm, stitch), session_id="alice", enhance=True, strength=0.4, voice="nova", speed=1.5
    )
    assert (job["status"], job["progress"], job["reply"]) == ("done", 1.0, "I am fine. And you?")
    assert stitch.spoken == [("alice", "I am fine."), ("alice", "And you?")]
    assert job["video_url"] == "/sessions/alice/video.mp4" and job["error"] is None
    asked = stitch.calls[0].request
    assert (asked.enhance, asked.strength, asked.voice, asked.speed) == (True, 0.4, "nova", 1.5)
    assert job["frames"] == round(25 * len(" ".join(stitch.texts())) / CHARS_PER_S)


async def test_speech_starts_before_the_model_has_finished(llm: LLMServer) -> None:
    heard = threading.Event()
    llm.answers[:] = [streamed("First one. ", "Second ", "one ", heard, "is ", "slow.")]
    stitch = Stitch()
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    await until(stitch.texts)
    assert stitch.texts() == ["First one."]
    heard.set()  # only now the model goes on
    await finished(chat, job_id)
    assert stitch.texts() == ["First one.", "Second one is slow."]


async def test_the_model_is_read_while_a_piece_is_spoken(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One is here. ", "Two is. ", "Three ", "is.", pause_s=0.02)]
    stitch = Stitch()
    stitch.may_speak.clear()
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    await known(chat, job_id, lambda job: job["reply"] == "One is here. Two is. Three is.")
    await until(lambda: stitch.began)
    assert stitch.texts() == []  # the first piece is still being spoken
    await chat.interrupt("default")


async def test_each_answer_is_one_utterance(llm: LLMServer) -> None:
    """Between utterances there would be a pause."""
    llm.answers[:] = [streamed("One is here. ", "Two is. ", "Three ", "is.", pause_s=0.02)]
    stitch = Stitch()
    chat = await stage(llm, stitch)
    for number in (1, 2):
        await answered(chat)
        assert len(stitch.calls) == number
    assert stitch.texts() == 2 * ["One is here.", "Two is.", "Three is."]
    assert len({call.request.text_stream_key for call in stitch.calls}) == 2


async def test_a_job_is_not_cancelled_with_the_request_that_started_it(llm: LLMServer) -> None:
    """Serve cancels calls made in a request's context when that request ends."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    llm.answers[:] = [streamed("Yes.")]
    stitch, called_in = Stitch(), []
    plain = stitch.speak.remote
    stitch.speak.remote = lambda asked: called_in.append(request.get()) or plain(asked)
    request.set("the viewer's")
    await answered(await stage(llm, stitch))
    assert called_in == ["none"]


async def test_status_reports_progress_and_latency(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One is here. ", "Two ", "is here. ")]
    stitch, gate = Stitch(), asyncio.Semaphore(0)
    stitch.may_speak = SimpleNamespace(wait=gate.acquire)  # type: ignore[assignment]
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    written = await known(chat, job_id, lambda job: job["written"] and job["status"] == "speaking")
    assert (written["progress"], written["frames"], written["video_url"]) == (0.0, 0, None)
    gate.release()  # speak the first sentence
    speaking = await known(chat, job_id, lambda job: job["frames"])
    assert speaking["progress"] == round(len("One is here.") / len("One is here. Two is here."), 3)
    assert speaking["video_url"] and speaking["latency"]["stages"] == {"TTS": {"busy_ms": 12.0}}
    assert 0 <= speaking["latency"]["first_token_ms"] <= speaking["latency"]["first_frame_ms"]
    gate.release()
    done = await finished(chat, job_id)
    assert (done["status"], done["progress"]) == ("done", 1.0)
    assert (done["latency"]["rtf"], done["latency"]["stages"]) == (0.5, {"TTS": {"wall_ms": 9.0}})


async def test_messages_of_one_session_are_answered_in_order_and_sessions_in_parallel(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.may_speak.clear()
    chat = await stage(llm, stitch)
    jobs = [await chat.start(ChatRequest("Hi", session_id=name)) for name in ("alice", "alice", "bob")]
    assert stitch.texts() == []  # the ids come before anything is spoken
    await until(lambda: len(stitch.began) == 2)
    await asyncio.sleep(0.1)
    assert sorted(name for name, _, _ in stitch.began) == ["alice", "bob"]
    stitch.may_speak.set()
    await asyncio.gather(*(finished(chat, job["job_id"]) for job in jobs))
    assert sorted(stitch.spoken) == [("alice", "Well."), ("alice", "Well."), ("bob", "Well.")]


async def test_a_job_reports_where_its_answer_begins_in_the_video() -> None:
    stitch = Stitch()
    stitch.facts["default"] = {"duration_s": 12.5, "avatar_id": "ann"}
    assert (await answered(await stage(stitch=stitch)))["start_s"] == 12.5
    stitch.summary = {"start_s": 14.0}  # a pause is kept before it
    assert (await answered(await stage(stitch=stitch)))["start_s"] == 14.0


@pytest.mark.parametrize("reply", ["🙂🙂", "…"])
async def test_a_reply_without_words_is_shown_but_not_spoken(llm: LLMServer, reply: str) -> None:
    llm.answers[:] = [streamed(reply)]
    stitch = Stitch()
    job = await answered(await stage(llm, stitch))
    assert (job["status"], job["reply"], job["video_url"], stitch.calls) == ("done", reply, None, [])


# --- the conversation


async def test_the_model_gets_the_prompt_and_the_conversation(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Tea it is.")]
    chat = await stage(llm, system_prompt="Be nice.")
    await answered(chat, "I like tea.", session_id="alice")
    await answered(chat, "I like milk.", session_id="bob")
    await answered(chat, "What do I like?", session_id="alice")
    assert [(m["role"], m["content"]) for m in llm.requests[-1][2]["messages"]] == [
        ("system", "Be nice."),
        ("user", "I like tea."),
        ("assistant", "Tea it is."),
        ("user", "What do I like?"),
    ]
    assert [m["content"] for m in await chat.messages("bob")] == ["I like milk.", "Tea it is."]


async def test_an_avatar_can_have_its_own_prompt(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Aye.")]
    stitch = Stitch()
    stitch.facts["sea"] = {"duration_s": 1.0, "avatar_id": "pirate"}
    chat = await stage(llm, stitch, system_prompt="Plain.", system_prompts={"pirate": "Talk like one."})
    for options in ({}, {"avatar_id": "pirate"}, {"session_id": "sea"}):
        await answered(chat, "Hi", **options)
    assert [r[2]["messages"][0]["content"] for r in llm.requests] == ["Plain.", "Talk like one.", "Talk like one."]


async def test_a_new_session_gets_the_prompt_of_the_default_avatar(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Good evening.")]
    chat = await stage(llm, system_prompts={"presenter": "You read the news."})
    await answered(chat, "Hi")
    assert llm.requests[0][2]["messages"][0] == {"role": "system", "content": "You read the news."}


async def test_an_empty_prompt_is_not_sent(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Yes.")]
    await answered(await stage(llm, system_prompt=""), "Hi")
    assert llm.requests[0][2]["messages"] == [{"role": "user", "content": "Hi"}]


async def test_a_shortened_conversation_begins_with_the_user(llm: LLMServer) -> None:
    """Chat templates of many models refuse other conversations, and consecutive messages of one role."""
    llm.answers[:] = [streamed("Yes.")]
    chat = await stage(llm, system_prompt="", max_history_chars=100)
    await answered(chat, "m" * 98)
    await answered(chat, "Hi")
    assert llm.requests[1][2]["messages"] == [{"role": "user", "content": "Hi"}]


async def test_roles_alternate_after_an_answer_that_was_interrupted_before_its_first_word(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well, let me see.")]
    stitch = Stitch()
    stitch.may_speak.clear()
    chat = await stage(llm, stitch, system_prompt="")
    job_id = (await chat.start(ChatRequest("What is new?")))["job_id"]
    await known(chat, job_id, lambda job: job["written"])
    await chat.interrupt("default")
    stitch.may_speak.set()
    await answered(chat, "Say it shorter.")
    assert [m["role"] for m in await chat.messages("default")] == ["user", "user", "assistant"]
    assert llm.requests[1][2]["messages"] == [{"role": "user", "content": "What is new?\n\nSay it shorter."}]


@pytest.mark.parametrize("tokens", [("Hi \ud83d", "\ude00 you."), ("Hi \ud83d\ude00 you.",), ("Hi 😀 you\x1b\x07.",)])
async def test_a_reply_can_always_be_encoded(llm: LLMServer, tokens: tuple[str, ...]) -> None:
    """JSON may contain lone surrogates, which cannot be encoded as UTF-8."""
    llm.answers[:] = [streamed(*tokens), streamed("Yes.")]
    stitch = Stitch()
    chat = await stage(llm, stitch)
    job = await answered(chat, "Smile!")
    assert (job["reply"], job["reply"].encode()) == ("Hi 😀 you.", "Hi 😀 you.".encode())
    assert (await answered(chat, "Again"))["reply"] == "Yes."


async def test_lone_surrogates_are_removed_from_the_reply(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Hi \ud83d", "you.\ud83d")]
    assert (await answered(await stage(llm)))["reply"] == "Hi you."


async def test_a_model_that_only_thinks_fails_the_job(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("<think>", *["Hm. "] * 100, finish="length")]
    job = await answered(await stage(llm))
    assert (job["status"], job["reply"]) == ("failed", "")
    assert job["error"]["code"] == "stage_failed" and "max_tokens" in job["error"]["remedy"]


async def test_a_long_conversation_loses_its_oldest_messages(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Yes.")]
    chat = await stage(llm, max_history_messages=4)
    for number in range(5):
        await answered(chat, f"Message {number}")
    assert [m["content"] for m in await chat.messages("default")] == ["Message 3", "Yes.", "Message 4", "Yes."]
    chat = await stage(llm, max_history_chars=100)
    await answered(chat, "m" * 98)
    assert [len(m["content"]) for m in await chat.messages("default")] == [4]


async def test_forgetting_a_session_deletes_its_conversation(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Yes.")]
    chat = await stage(llm)
    await answered(chat, "Secret", session_id="alice")
    await chat.forget("alice")
    assert await chat.messages("alice") == []


# --- interruption


async def test_an_interruption_stops_speech_and_model_and_keeps_what_was_heard(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One is said. ", "Two is being said. ", *["More. "] * 100, pause_s=0.02)]
    stitch = Stitch()
    stitch.pause_s = 0.2
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Talk", session_id="alice")))["job_id"]
    other = await chat.start(ChatRequest("Talk", session_id="bob"))
    begin = time.monotonic()
    await until(lambda: len([name for name, _ in stitch.spoken if name == "alice"]) >= 2)
    passed_s = time.monotonic() - begin
    assert await chat.interrupt("alice") == 1
    job = await chat.status(job_id)
    assert (job["status"], job["interrupted"], job["error"]) == ("done", True, None)
    last = {call.request.session_id: call for call in stitch.calls}
    assert (last["alice"].cancelled, last["bob"].cancelled) == (True, False)
    said = stitch.spoken.copy()
    await asyncio.sleep(0.3)
    assert [text for text in stitch.spoken if text[0] == "alice"] == [text for text in said if text[0] == "alice"]
    asked, heard = [m["content"] for m in await chat.messages("alice")]
    assert asked == "Talk" and heard.startswith("One is said.")
    assert len(heard) <= (passed_s + 1) * CHARS_PER_S + 18  # only what there was time for
    await until(lambda: llm.hung_up == 1)  # the model is stopped
    assert (await chat.status(other["job_id"]))["status"] == "speaking"
    await chat.interrupt("bob")


async def test_with_viewers_the_conversation_keeps_what_they_heard_of_an_interrupted_answer(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One is said. ", "Two is being said. ", *["More. "] * 100, pause_s=0.02)]
    stitch = Stitch()
    stitch.watched, stitch.pause_s = True, 0.2
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Talk", session_id="alice")))["job_id"]
    await known(chat, job_id, lambda job: job["frames"] >= 25 * len("One is said.") // 15)
    await chat.interrupt("alice")
    assert [m["content"] for m in await chat.messages("alice")] == ["Talk", " ".join(stitch.texts())]


async def test_progress_is_at_most_half_until_the_reply_is_written(llm: LLMServer) -> None:
    rest = threading.Event()
    llm.answers[:] = [streamed("One is said. ", "One ", rest, "is said. ", *["One is said. "] * 2)]
    stitch = Stitch()
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Talk")))["job_id"]
    writing = await known(chat, job_id, lambda job: job["frames"])
    assert (writing["status"], writing["written"], writing["progress"]) == ("speaking", False, 0.5)
    stitch.may_speak.clear()
    rest.set()
    assert (await known(chat, job_id, lambda job: job["written"]))["progress"] == 0.5
    stitch.may_speak.set()
    assert (await finished(chat, job_id))["progress"] == 1.0


@pytest.mark.parametrize("begun", [True, False])
async def test_a_job_whose_speech_is_interrupted_elsewhere_is_marked_as_interrupted(
    llm: LLMServer, begun: bool
) -> None:
    """For example when the session is deleted: before its first frame, or after it."""
    llm.answers[:] = [streamed("One is said. ", "Two.")]
    stitch = Stitch()
    stitch.summary = {"interrupted": True}
    if not begun:
        stitch.errors["One is said."] = InterruptedSpeech("The speech was interrupted.", "Send it again.")
    job = await answered(await stage(llm, stitch))
    assert (job["status"], job["interrupted"], job["error"]) == ("done", True, None)
    assert (job["progress"] > 0) == begun and job["progress"] < 1


async def test_a_job_fails_when_the_replica_of_stitch_is_lost(llm: LLMServer) -> None:
    """Ray raises CancelledError in that case, although the job itself is not cancelled."""
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.errors["Well."] = asyncio.CancelledError()  # type: ignore[assignment]
    job = await answered(await stage(llm, stitch))
    assert (job["status"], job["error"]["code"]) == ("failed", "stage_failed"), job
    assert "lost its replica" in job["error"]["message"]


async def test_interrupting_one_job_leaves_the_next_of_its_session(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.may_speak.clear()
    chat = await stage(llm, stitch)
    one, other = [(await chat.start(ChatRequest("Hi", session_id="alice")))["job_id"] for _ in range(2)]
    await until(lambda: len(stitch.began) == 1)
    assert await chat.interrupt("alice", one) == 1 and await chat.interrupt("bob", other) == 0
    stitch.may_speak.set()
    jobs = [await finished(chat, job_id) for job_id in (one, other)]
    assert [job["interrupted"] for job in jobs] == [True, False] and stitch.spoken == [("alice", "Well.")]


async def test_interrupting_a_session_drops_its_waiting_messages(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.pause_s = 5
    chat = await stage(llm, stitch)
    jobs = [await chat.start(ChatRequest("Hi")) for _ in range(3)]
    await asyncio.sleep(0.1)
    assert await chat.interrupt("default") == 3
    assert [(await chat.status(job["job_id"]))["status"] for job in jobs] == ["done"] * 3
    assert await chat.interrupt("default") == 0


async def test_a_job_can_be_interrupted_while_it_starts(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.pause_s = 5
    chat = await stage(llm, stitch)
    starting, *counts = await asyncio.wait_for(
        asyncio.gather(chat.start(ChatRequest("Hi")), *(chat.interrupt("default") for _ in range(3))), 3
    )
    assert counts == [1, 1, 1]
    assert (await chat.status(starting["job_id"]))["status"] == "done"


# --- errors and limits


@pytest.mark.parametrize(
    ("answer", "code", "reply"),
    [
        (refused(401), "stage_failed", ""),
        (refused(429, Retry_After="0"), "busy", ""),
        (broken_off("Half a sen"), "stage_failed", "Half a sen"),
    ],
)
async def test_an_error_of_the_model_fails_the_job(llm: LLMServer, answer: Any, code: str, reply: str) -> None:
    llm.answers[:] = [answer]
    job = await answered(await stage(llm))
    assert (job["status"], job["error"]["code"], job["reply"]) == ("failed", code, reply)
    assert job["error"]["message"].endswith(".") and job["error"]["remedy"]


async def test_a_voice_that_cannot_speak_the_reply_fails_the_job_but_keeps_the_whole_reply(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("你好。 ", "再见。", pause_s=0.02)]
    stitch = Stitch()
    stitch.errors["你好。"] = TextError("The text is written in Chinese script.", "Send it in English.")
    job = await answered(await stage(llm, stitch))
    assert (job["status"], job["error"]["code"], job["reply"]) == ("failed", "bad_text", "你好。 再见。")
    assert len(stitch.calls) == 1


async def test_a_job_has_a_time_limit(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.pause_s = 5
    job = await answered(await stage(llm, stitch, job_timeout_s=0.5))
    assert (job["status"], job["error"]["message"]) == ("failed", "The answer took longer than 0.5 s.")
    assert all(call.cancelled for call in stitch.calls)  # none, on a very slow machine


@pytest.mark.parametrize("message", ["", "  \n ", "\x00\x01\x1b", "\ud800", "a" * 4001])
async def test_a_message_without_text_or_over_the_limit_is_refused(message: str, home: Path) -> None:
    chat = await stage()
    with pytest.raises(TextError) as caught:
        await chat.start(ChatRequest(message))
    assert caught.value.remedy and list((home / "results/chat/jobs").iterdir()) == []


@pytest.mark.parametrize("message", ["a\x00b\x07c", "שלום עולם", "👩‍👩‍👧 family", "\ud800 half", "line\nbreak"])
async def test_unusual_characters_are_accepted_and_control_characters_removed(llm: LLMServer, message: str) -> None:
    llm.answers[:] = [streamed("Yes.")]
    assert (await answered(await stage(llm), message))["status"] == "done"
    sent = llm.requests[0][2]["messages"][-1]["content"]
    assert sent == message.replace("\x00", "").replace("\x07", "").replace("\ud800", "").strip()


async def test_too_many_messages_are_refused(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.pause_s = 5
    chat = await stage(llm, stitch, max_waiting=2, max_jobs=3)
    for name in ("alice", "alice", "bob"):
        await chat.start(ChatRequest("Hi", session_id=name))
    with pytest.raises(BusyError, match="of this session"):
        await chat.start(ChatRequest("Hi", session_id="alice"))
    with pytest.raises(BusyError, match="of the server"):
        await chat.start(ChatRequest("Hi", session_id="carol"))
    for name in ("alice", "bob"):
        await chat.interrupt(name)


async def test_unknown_and_invalid_ids_are_refused() -> None:
    chat = await stage()
    with pytest.raises(NotFoundError, match="no job 'abc'"):
        await chat.status("abc")
    for call in (chat.status("../etc"), chat.messages("A"), chat.start(ChatRequest("Hi", session_id="a/b"))):
        with pytest.raises(IdError):
            await call


# --- the engine


async def test_auto_selects_the_server_of_the_environment_or_the_built_in_responder(
    llm: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.answers[:] = [streamed("From the server.")]
    assert "built-in responder" in (await answered(await stage(engine="auto", options={})))["reply"]
    monkeypatch.setenv(URL_ENV, llm.url)
    monkeypatch.setenv(MODEL_ENV, "tiny")
    assert (await answered(await stage(engine="auto", options={})))["reply"] == "From the server."
