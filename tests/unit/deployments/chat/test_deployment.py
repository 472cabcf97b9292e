"""The Chat stage without Ray: a job's way from message to spoken answer, and what it survives."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deployments.chat.reply import CHARS_A_S
from deployments.common.messages import ChatRequest
from models.errors import BusyError, IdError, InterruptedSpeech, NotFoundError, TextError
from models.llm.base import MODEL_ENV, URL_ENV
from tests.support import chat as chat_material
from tests.support.chat import Stitch, answered, finished, known, stage, until
from tests.support.llm_server import LLMServer, broken_off, refused, streamed

home, llm = chat_material.home, chat_material.llm  # fixtures

# --- the way of a message


async def test_an_answer_is_spoken_sentence_by_sentence_into_its_session(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("I am fine. ", "And ", "you?", pause_s=0.03)]
    stitch = Stitch()
    job = await answered(await stage(llm, stitch), session_id="alice", enhance=True, voice="nova", speed=1.5)
    assert (job["status"], job["progress"], job["reply"]) == ("done", 1.0, "I am fine. And you?")
    assert stitch.spoken == [("alice", "I am fine."), ("alice", "And you?")]
    assert job["video_url"] == "/sessions/alice/video.mp4" and job["error"] is None
    asked = stitch.calls[0].request
    assert (asked.enhance, asked.voice, asked.speed) == (True, "nova", 1.5)
    assert job["frames"] == round(25 * len(" ".join(stitch.texts())) / CHARS_A_S)


async def test_speech_begins_while_the_model_still_talks(llm: LLMServer) -> None:
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


async def test_the_model_goes_on_while_a_piece_is_spoken(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One is here. ", "Two is. ", "Three ", "is.", pause_s=0.02)]
    stitch = Stitch()
    stitch.may_speak.clear()
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    await known(chat, job_id, lambda job: job["reply"] == "One is here. Two is. Three is.")
    await until(lambda: stitch.began)
    assert stitch.texts() == []  # the first piece is still being spoken
    await chat.interrupt("default")


async def test_an_answer_is_one_utterance_and_another_is_the_next(llm: LLMServer) -> None:
    """Within an utterance there is no pause but the voice's own."""
    llm.answers[:] = [streamed("One is here. ", "Two is. ", "Three ", "is.", pause_s=0.02)]
    stitch = Stitch()
    chat = await stage(llm, stitch)
    for number in (1, 2):
        await answered(chat)
        assert len(stitch.calls) == number
    assert stitch.texts() == 2 * ["One is here.", "Two is.", "Three is."]
    assert len({call.request.text_stream_key for call in stitch.calls}) == 2


async def test_a_job_outlives_the_request_that_began_it(llm: LLMServer) -> None:
    """Serve cancels what was called in a request's context together with the request."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    llm.answers[:] = [streamed("Yes.")]
    stitch, called_in = Stitch(), []
    plain = stitch.speak.remote
    stitch.speak.remote = lambda asked: called_in.append(request.get()) or plain(asked)
    request.set("the viewer's")
    await answered(await stage(llm, stitch))
    assert called_in == ["none"]


async def test_status_tells_how_far_it_is_and_where_the_time_went(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One is here. ", "Two ", "is here. ", pause_s=0.05)]
    stitch = Stitch()
    stitch.pause_s = 0.15
    chat = await stage(llm, stitch)
    begin = time.monotonic()
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    seen: list[dict[str, Any]] = []
    status = await known(chat, job_id, lambda job: seen.append(job) or job["status"] == "done")
    passed_ms = (time.monotonic() - begin) * 1e3
    assert list(dict.fromkeys(job["status"] for job in seen)) in (
        ["queued", "thinking", "speaking", "done"],
        ["thinking", "speaking", "done"],
    )
    progress = [job["progress"] for job in seen]
    assert progress == sorted(progress) and progress[-1] == 1.0
    assert progress[0] == 0.0  # then "One is here.": half of what is written by then, or all of it
    assert 0.4 < max(part for part in progress if part < 1.0) <= 0.99
    assert any(job["latency"].get("stages") == {"TTS": {"busy_ms": 12.0}} for job in seen)  # while it is made
    latency = status["latency"]
    assert latency["first_token_ms"] + 150 <= latency["first_frame_ms"] <= passed_ms - 150
    assert (latency["rtf"], latency["stages"]) == (0.5, {"TTS": {"wall_ms": 9.0}})


async def test_messages_of_one_session_wait_for_each_other_and_others_do_not(llm: LLMServer) -> None:
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


async def test_the_answer_knows_where_it_begins_in_the_video() -> None:
    stitch = Stitch()
    stitch.facts["default"] = {"duration_s": 12.5, "avatar_id": "ann"}
    assert (await answered(await stage(stitch=stitch)))["start_s"] == 12.5
    stitch.summary = {"start_s": 14.0}  # a pause is kept before it
    assert (await answered(await stage(stitch=stitch)))["start_s"] == 14.0


@pytest.mark.parametrize("reply", ["🙂🙂", "…"])
async def test_what_cannot_be_spoken_is_shown_and_not_sent_to_the_voice(llm: LLMServer, reply: str) -> None:
    llm.answers[:] = [streamed(reply)]
    stitch = Stitch()
    job = await answered(await stage(llm, stitch))
    assert (job["status"], job["reply"], job["video_url"], stitch.calls) == ("done", reply, None, [])


# --- the conversation


async def test_the_model_is_given_the_prompt_and_what_was_said_before(llm: LLMServer) -> None:
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


async def test_an_avatar_may_have_a_prompt_of_its_own(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Aye.")]
    stitch = Stitch()
    stitch.facts["sea"] = {"duration_s": 1.0, "avatar_id": "pirate"}
    chat = await stage(llm, stitch, system_prompt="Plain.", system_prompts={"pirate": "Talk like one."})
    for options in ({}, {"avatar_id": "pirate"}, {"session_id": "sea"}):
        await answered(chat, "Hi", **options)
    assert [r[2]["messages"][0]["content"] for r in llm.requests] == ["Plain.", "Talk like one.", "Talk like one."]


async def test_a_session_that_is_not_there_yet_has_the_default_avatars_prompt(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Good evening.")]
    chat = await stage(llm, system_prompts={"presenter": "You read the news."})
    await answered(chat, "Hi")
    assert llm.requests[0][2]["messages"][0] == {"role": "system", "content": "You read the news."}


async def test_without_a_prompt_none_is_sent(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Yes.")]
    await answered(await stage(llm, system_prompt=""), "Hi")
    assert llm.requests[0][2]["messages"] == [{"role": "user", "content": "Hi"}]


async def test_a_bounded_conversation_still_begins_with_the_user(llm: LLMServer) -> None:
    """Templates of many models refuse one that begins with the assistant, or has two of a role in a row."""
    llm.answers[:] = [streamed("Yes.")]
    chat = await stage(llm, system_prompt="", max_history_chars=100)
    await answered(chat, "m" * 98)
    await answered(chat, "Hi")
    assert llm.requests[1][2]["messages"] == [{"role": "user", "content": "Hi"}]


async def test_after_an_answer_that_was_cut_before_its_first_word_the_roles_still_alternate(llm: LLMServer) -> None:
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
async def test_an_answer_can_be_written_to_a_file_and_a_screen_whatever_is_in_it(
    llm: LLMServer, tokens: tuple[str, ...]
) -> None:
    """JSON may hold half a character by itself: such a reply could be neither told nor asked about again."""
    llm.answers[:] = [streamed(*tokens), streamed("Yes.")]
    stitch = Stitch()
    chat = await stage(llm, stitch)
    job = await answered(chat, "Smile!")
    assert (job["reply"], job["reply"].encode()) == ("Hi 😀 you.", "Hi 😀 you.".encode())
    assert (await answered(chat, "Again"))["reply"] == "Yes."


async def test_half_a_character_that_stays_alone_is_left_out(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Hi \ud83d", "you.\ud83d")]
    assert (await answered(await stage(llm)))["reply"] == "Hi you."


async def test_a_model_that_thinks_too_long_to_say_anything_fails_the_job_in_words(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("<think>", *["Hm. "] * 100, finish="length")]
    job = await answered(await stage(llm))
    assert (job["status"], job["reply"]) == ("failed", "")
    assert job["error"]["message"] == "The language model used up its tokens before it said a word."
    assert "max_tokens" in job["error"]["remedy"]


async def test_a_long_conversation_forgets_its_beginning(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Yes.")]
    chat = await stage(llm, max_history_messages=4)
    for number in range(5):
        await answered(chat, f"Message {number}")
    assert [m["content"] for m in await chat.messages("default")] == ["Message 3", "Yes.", "Message 4", "Yes."]
    chat = await stage(llm, max_history_chars=100)
    await answered(chat, "m" * 98)
    assert [len(m["content"]) for m in await chat.messages("default")] == [4]


async def test_forgetting_a_session_forgets_its_words(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Yes.")]
    chat = await stage(llm)
    await answered(chat, "Secret", session_id="alice")
    await chat.forget("alice")
    assert await chat.messages("alice") == []


# --- interruption


async def test_an_interruption_ends_speech_and_model_and_remembers_what_was_heard(llm: LLMServer) -> None:
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
    assert len(heard) <= (passed_s + 1) * CHARS_A_S + 18  # of a long text only what there was time for
    assert llm.hung_up == 1  # the model is not left talking
    assert (await chat.status(other["job_id"]))["status"] == "speaking"
    await chat.interrupt("bob")


async def test_what_is_remembered_of_a_cut_answer_is_what_was_heard_where_somebody_watches(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One is said. ", "Two is being said. ", *["More. "] * 100, pause_s=0.02)]
    stitch = Stitch()
    stitch.watched, stitch.pause_s = True, 0.2
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Talk", session_id="alice")))["job_id"]
    await known(chat, job_id, lambda job: job["frames"] >= 25 * len("One is said.") // 15)
    await chat.interrupt("alice")
    assert [m["content"] for m in await chat.messages("alice")] == ["Talk", " ".join(stitch.texts())]


async def test_progress_is_the_share_that_was_heard_and_waits_for_what_is_not_written_yet(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One is said. ", *["One is said. "] * 3, pause_s=0.3)]
    stitch = Stitch()
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Talk")))["job_id"]
    writing = await known(chat, job_id, lambda job: job["frames"])
    assert (writing["status"], writing["written"]) == ("speaking", False) and 0.4 < writing["progress"] <= 0.5
    stitch.may_speak.clear()
    whole = await known(chat, job_id, lambda job: job["written"])
    assert len(whole["reply"]) > 4 * 12 and whole["progress"] <= 0.5
    stitch.may_speak.set()
    assert (await finished(chat, job_id))["progress"] == 1.0


@pytest.mark.parametrize("begun", [True, False])
async def test_a_job_whose_speech_is_cut_elsewhere_says_so(llm: LLMServer, begun: bool) -> None:
    """By the session's deletion, or whoever has a handle of Stitch: before its first frame, or behind it."""
    llm.answers[:] = [streamed("One is said. ", "Two.")]
    stitch = Stitch()
    stitch.summary = {"interrupted": True}
    if not begun:
        stitch.errors["One is said."] = InterruptedSpeech("The speech was interrupted.", "Send it again.")
    job = await answered(await stage(llm, stitch))
    assert (job["status"], job["interrupted"], job["error"]) == ("done", True, None)
    assert (job["progress"] > 0) == begun and job["progress"] < 1


async def test_an_answer_whose_stitch_goes_away_is_told_to_have_failed(llm: LLMServer) -> None:
    """Ray then cancels what waits for it: the job is not cancelled, and may not be left half-way for ever."""
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.errors["Well."] = asyncio.CancelledError()  # type: ignore[assignment]
    job = await answered(await stage(llm, stitch))
    assert (job["status"], job["error"]["code"]) == ("failed", "stage_failed"), job
    assert "went away" in job["error"]["message"]


async def test_one_answer_can_be_ended_and_the_next_of_its_session_is_given(llm: LLMServer) -> None:
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


async def test_waiting_messages_of_an_interrupted_session_are_dropped(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.pause_s = 5
    chat = await stage(llm, stitch)
    jobs = [await chat.start(ChatRequest("Hi")) for _ in range(3)]
    await asyncio.sleep(0.1)
    assert await chat.interrupt("default") == 3
    assert [(await chat.status(job["job_id"]))["status"] for job in jobs] == ["done"] * 3
    assert await chat.interrupt("default") == 0


async def test_an_interruption_in_the_moment_of_beginning_is_told_of_like_any_other(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch = Stitch()
    stitch.pause_s = 5
    chat = await stage(llm, stitch)
    starting, *counts = await asyncio.wait_for(
        asyncio.gather(chat.start(ChatRequest("Hi")), *(chat.interrupt("default") for _ in range(3))), 3
    )
    assert counts == [1, 1, 1]
    assert (await chat.status(starting["job_id"]))["status"] == "done"


# --- what goes wrong


@pytest.mark.parametrize(
    ("answer", "code", "reply"),
    [
        (refused(401), "stage_failed", ""),
        (refused(429, Retry_After="0"), "busy", ""),
        (broken_off("Half a sen"), "stage_failed", "Half a sen"),
    ],
)
async def test_a_model_that_fails_fails_the_job_in_words(llm: LLMServer, answer: Any, code: str, reply: str) -> None:
    llm.answers[:] = [answer]
    job = await answered(await stage(llm))
    assert (job["status"], job["error"]["code"], job["reply"]) == ("failed", code, reply)
    assert job["error"]["message"].endswith(".") and job["error"]["remedy"]


async def test_a_voice_that_cannot_read_it_fails_the_job_but_the_answer_is_shown_whole(llm: LLMServer) -> None:
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
    job = await answered(await stage(llm, stitch, job_timeout_s=0.2))
    assert (job["status"], job["error"]["message"]) == ("failed", "The answer took longer than 0.2 s.")
    assert stitch.calls[0].cancelled


@pytest.mark.parametrize("message", ["", "  \n ", "\x00\x01\x1b", "\ud800", "a" * 4001])
async def test_a_message_that_is_none_is_refused_at_once(message: str, home: Path) -> None:
    chat = await stage()
    with pytest.raises(TextError) as caught:
        await chat.start(ChatRequest(message))
    assert caught.value.remedy and list((home / "results/chat/jobs").iterdir()) == []


@pytest.mark.parametrize("message", ["a\x00b\x07c", "שלום עולם", "👩‍👩‍👧 family", "\ud800 half", "line\nbreak"])
async def test_odd_characters_are_taken_and_control_characters_left_out(llm: LLMServer, message: str) -> None:
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


async def test_unknown_and_wrong_ids_are_told() -> None:
    chat = await stage()
    with pytest.raises(NotFoundError, match="no job 'abc'"):
        await chat.status("abc")
    for call in (chat.status("../etc"), chat.messages("A"), chat.start(ChatRequest("Hi", session_id="a/b"))):
        with pytest.raises(IdError):
            await call


# --- the engine


async def test_auto_is_the_server_of_the_environment_else_the_built_in(
    llm: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.answers[:] = [streamed("From the server.")]
    assert "built-in responder" in (await answered(await stage(engine="auto", options={})))["reply"]
    monkeypatch.setenv(URL_ENV, llm.url)
    monkeypatch.setenv(MODEL_ENV, "tiny")
    assert (await answered(await stage(engine="auto", options={})))["reply"] == "From the server."
