"""The page in Chromium, and the Python clients, on the whole graph on a real local Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import pytest

from tests.browser.chromium import Tab
from tests.graph.media import decode
from tests.graph.processes import kill, replicas
from tests.graph.requests import wait_until
from warmtalk import AsyncClient, ChatFailed, Client, NotFound, Refused
from warmtalk.cli.local_graph import LocalGraph

pytestmark = [pytest.mark.browser, pytest.mark.ray]

TEXT = "This is a test of the page with the whole graph behind it."


@pytest.fixture(scope="module")
def client(graph: LocalGraph) -> Iterator[Client]:
    with Client(graph.url) as client:
        yield client


@pytest.fixture
def chat(graph: LocalGraph, tab: Any) -> Tab:
    opened: Tab = tab(graph.url + "/")
    opened.page.goto(opened.url)
    opened.until(
        "document.querySelector('#screen').dataset.state === 'live'", 120
    )  # idle motion is encoded first, once
    return opened


def session_of(chat: Tab) -> str:
    return str(chat.page.evaluate("sessionStorage.getItem('warmtalk-session')"))


def test_an_answer_is_seen_and_heard_and_its_messages_are_kept(chat: Tab, client: Client) -> None:
    idle = chat.watch(2.0)
    assert idle["played"] > 0.5 * idle["passed"] and idle["loudness"] < 2e-3
    chat.until("document.querySelector('#figure-way').textContent === 'WebRTC'")
    chat.shot("real-idle")
    chat.send("Hello!")
    chat.until("document.querySelector('#caption').checkVisibility()", 60)
    chat.heard(within_s=30, above=0.01)
    spoken = chat.watch(3.0)
    chat.shot("real-speaking")
    assert spoken["motion"] > 1.5 * idle["motion"], (spoken, idle)
    assert spoken["loudness"] > 0.01 and spoken["loudness"] > 10 * idle["loudness"]
    chat.state("live", 60)
    question, answer = (message.content for message in client.messages(session_of(chat)))
    assert chat.texts(".bubble") == [question, answer] and "built-in responder" in answer
    assert {"TTS", "LipSync", "Stitch"} <= set(
        chat.page.evaluate("[...document.querySelectorAll('#bars li')].map((e) => e.title)")
    )
    assert chat.page.inner_text("#figure-first") != "–"
    assert chat.page_errors == []


def test_a_replay_plays_while_the_session_goes_on(chat: Tab, client: Client) -> None:
    assert not chat.page.is_visible("#open-replay")
    chat.send("Thanks!")
    chat.until("document.querySelector('#open-replay').checkVisibility()", 60)
    chat.page.click("#open-replay")
    chat.until("document.querySelector('#replay-video').currentTime > 0.4")
    facts = client.session(session_of(chat))
    assert chat.page.evaluate("document.querySelector('#replay-video').duration") == pytest.approx(
        facts.duration_s, abs=0.05
    )
    assert chat.texts(".line-text") == ["You are welcome."]
    chat.shot("real-replay")
    chat.page.keyboard.press("Escape")
    again = chat.watch(1.0)
    assert again["played"] > 0.5 * again["passed"] and chat.page_errors == []


def test_an_interruption_stops_the_voice_and_the_job(chat: Tab, client: Client) -> None:
    chat.send("How do you work?")
    chat.until("document.querySelector('#caption').checkVisibility()", 60)
    chat.heard(within_s=30, above=0.01)
    chat.page.click("#interrupt")
    chat.state("live", 30)
    chat.silent(within_s=15.0, seconds=1.0, below=2e-3)  # what had been received is still played
    assert "interrupted" in chat.texts(".bubble.presenter")[0]
    frames = client.session(session_of(chat)).frames
    time.sleep(1.0)
    assert client.session(session_of(chat)).frames == frames  # nothing more is made


@pytest.mark.full  # tests/browser tests it with a fake server
def test_two_tabs_have_sessions_of_their_own(chat: Tab, tab: Any, client: Client) -> None:
    other = tab(chat.url, context=chat.page.context).open()
    assert session_of(other) != session_of(chat)
    chat.send("Say: only the first tab may hear this.")
    chat.until("document.querySelector('#caption').checkVisibility()", 60)
    assert other.watch(2.0)["loudness"] < 2e-3 and other.texts(".bubble") == []
    chat.state("live", 60)
    assert client.messages(session_of(other)) == []


@pytest.mark.full  # tests/browser tests the page, tests/chaos the graph
def test_a_killed_ingress_interrupts_the_picture_and_not_the_job(chat: Tab, client: Client) -> None:
    session = session_of(chat)
    job = client.chat("Hello!", session_id=session)
    wait_until(lambda: client.status(job.job_id).status == "speaking", "the answer is spoken")
    killed = kill("Ingress")
    chat.until("document.querySelector('#screen').dataset.state === 'lost'", 60)
    chat.until("document.querySelector('#screen').dataset.state === 'live'", 120)
    assert killed not in replicas()["Ingress"]
    again = chat.watch(1.0)
    assert again["played"] > 0.5 * again["passed"]
    done = client.wait(job, timeout_s=90)
    assert done.reply and done.video_url == f"/sessions/{session}/video.mp4" and done.error is None


def test_a_killed_chat_reports_its_unfinished_answer_as_failed(client: Client) -> None:
    job = client.chat("Hello!", session_id="killed-chat")
    wait_until(lambda: client.status(job.job_id).status == "speaking", "the answer is spoken")
    kill("Chat")
    with pytest.raises(ChatFailed, match="The server stopped while it gave this answer"):
        client.wait(job, timeout_s=60)
    assert client.ask("Thanks!", session_id="killed-chat").reply == "You are welcome."


def test_the_client_speaks_streams_and_downloads(client: Client, tmp_path: Any) -> None:
    speech = client.speak(TEXT, session_id="client")
    assert speech.frames == pytest.approx(25 * speech.duration_s) and "LipSync" in speech.stages
    streamed = decode(b"".join(client.stream("And again.", session_id="client")))
    video = decode(client.download("client", tmp_path / "client.mp4").read_bytes())
    assert len(video.frames) == speech.frames + len(streamed.frames) == client.session("client").frames
    assert "client" in client.sessions() and "presenter" in [a.avatar_id for a in client.avatars()]
    assert client.delete_session("client") and "client" not in client.sessions()
    with pytest.raises(NotFound):
        client.session("client")
    with pytest.raises(Refused, match="nothing to say|nothing to speak"):
        client.speak("…")


def test_the_async_client_asks_several_at_once_and_watches(graph: LocalGraph) -> None:
    async def several() -> tuple[list[str], bytes]:
        async with AsyncClient(graph.url) as client:
            jobs = await asyncio.gather(*(client.ask("Thanks!", session_id=f"async-{k}") for k in range(3)))
            video = b""
            async with aclosing(client.live("async-0")) as live:
                async for part in live:
                    video += part
                    if len(video) > 60_000:
                        break
            return [job.reply for job in jobs], video

    with ThreadPoolExecutor(1) as thread:  # Playwright's loop runs in this thread
        replies, video = thread.submit(asyncio.run, several()).result(120)
    assert replies == ["You are welcome."] * 3
    assert video[4:8] == b"ftyp" and b"moof" in video
