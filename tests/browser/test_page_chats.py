"""Consecutive chats: what ends with a chat, and what must not leak into the next."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chromium import Tab
from tests.browser.fake_state import State

pytestmark = pytest.mark.browser

CLOSED = {"code": "session_closed", "message": "The session 'x' is closed.", "remedy": "GET /reset?session_id=x."}
LONG = "This is a long answer that goes on, and on, and on, and on, and on, for as long as nobody ends it."


def session_of(chat: Tab) -> str:
    return str(chat.page.evaluate("sessionStorage.getItem('warmtalk-session')"))


def test_a_closed_chat_stops_reconnecting_and_offers_a_new_one(chat: Tab, state: State) -> None:
    asked: list[str] = []
    chat.page.on("request", lambda request: request.url.endswith("live.mp4") and asked.append(request.url))
    before = session_of(chat)
    chat.page.focus("#message")
    state.fail["live"] = (409, CLOSED)
    state.down = True  # the stream ends
    chat.until("document.querySelector('#screen').dataset.state === 'lost'")
    state.down = False
    chat.until("document.querySelector('#status-title').textContent === 'This chat has ended'")
    assert chat.page.inner_text("#pill-text") == "Ended"
    assert chat.page.is_disabled("#suggestions button")
    assert not chat.page.is_visible("#retry") and chat.page.is_disabled("#message") and chat.page.is_disabled("#mic")
    assert chat.page.evaluate("document.activeElement.id") == "fresh-here"
    chat.shot("ended")
    count = len(asked)
    chat.page.wait_for_timeout(3000)  # longer than two reconnect pauses
    assert len(asked) == count
    del state.fail["live"]
    chat.page.click("#fresh-here")
    chat.until("document.querySelector('#screen').dataset.state === 'live'")
    assert (
        session_of(chat) != before and chat.page.is_enabled("#message") and not chat.page.is_visible("#status-overlay")
    )
    assert chat.page.evaluate("document.activeElement.id") == "message"


def test_a_message_to_a_closed_chat_offers_a_new_one(chat: Tab, state: State) -> None:
    state.fail["chat"] = (409, CLOSED)
    chat.send("Hello?")
    chat.page.wait_for_selector(".bubble.failed")
    del state.fail["chat"]
    before = session_of(chat)
    chat.page.click(".bubble.failed button")
    chat.until("document.querySelector('#empty').checkVisibility()")
    assert session_of(chat) != before and chat.texts(".bubble") == []


def test_a_new_chat_interrupts_and_hides_the_previous_answer(chat: Tab, state: State) -> None:
    state.reply = LONG
    chat.send("Talk!")
    chat.state("speaking")
    before = session_of(chat)
    chat.page.click("#fresh")
    chat.until_served(lambda: state.sessions[before].interrupts == 1, 5)  # the rest has no viewer
    chat.state("live", 5)
    asked: list[str] = []
    chat.page.on("request", lambda request: "/status/" in request.url and asked.append(request.url))
    chat.page.wait_for_timeout(1500)
    assert len(asked) <= 1  # one request may have been in flight
    assert chat.texts(".bubble") == [] and not chat.page.is_visible("#interrupt") and chat.page_errors == []


@pytest.mark.parametrize(("why", "left"), [("removed", 0), ("stopped", 2)])
def test_a_session_removed_elsewhere_is_emptied_here(chat: Tab, state: State, why: str, left: int) -> None:
    state.reply = "Yes."
    chat.send("Still there?")
    chat.state("speaking")
    chat.state("live")
    (session,) = state.sessions.values()
    chat.until_served(lambda: session.messages)
    session.messages.clear()  # after a plain server stop the page does not reload them
    state.why, state.down = why, True
    chat.until("document.querySelector('#screen').dataset.state === 'lost'")
    state.down = False
    chat.until("document.querySelector('#screen').dataset.state === 'live'")
    assert len(chat.texts(".bubble")) == left


def test_a_late_transcription_is_not_sent_to_the_next_chat(chat: Tab, state: State) -> None:
    state.recognition, state.think_s = True, 1.5
    chat.page.reload()
    chat.until("document.querySelector('#mode-hint').textContent === 'Type or speak; the presenter answers.'")
    chat.page.click("#mic")
    chat.until("document.querySelector('#level').value > 0.3")
    chat.page.wait_for_timeout(500)
    chat.page.click("#send")
    chat.page.wait_for_selector(".bubble.user .typing")
    chat.page.click("#fresh")
    chat.until_served(lambda: state.uploads)
    chat.page.wait_for_timeout(2500)
    assert state.jobs == {} and chat.texts(".bubble") == [] and not chat.page.is_visible("#notice")


def test_a_new_chat_after_a_named_session_does_not_show_its_name(served: tuple[str, State], tab: Any) -> None:
    named = tab(served[0]).open("?session=alice&via=mp4")
    assert named.page.inner_text("#conversation-name") == "Session alice"
    named.page.click("#fresh")
    named.until("sessionStorage.getItem('warmtalk-session') !== 'alice'")
    assert not named.page.is_visible("#conversation-name")
    session = session_of(named)
    named.page.reload()
    named.state("live")
    assert session_of(named) == session and named.page.url.endswith("?via=mp4")


def test_an_empty_chat_offers_no_download(chat: Tab) -> None:
    chat.page.click("#open-settings")
    assert not chat.page.is_visible("#download") and not chat.page.is_visible("#download-captions")
    assert chat.page.is_visible("#remove")


def test_two_clicks_request_the_microphone_once(served: tuple[str, State], tab: Any) -> None:
    chat = tab(served[0])
    chat.page.add_init_script("""window.asked = 0;
      const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (...all) => {
        window.asked += 1;
        await new Promise((resolve) => setTimeout(resolve, 300)); // while the viewer is asked
        return real(...all);
      };""")
    chat.open()
    chat.page.evaluate("document.querySelector('#mic').click(), document.querySelector('#mic').click()")
    chat.until("document.querySelector('#level').value > 0.3")
    assert chat.page.evaluate("asked") == 1


def test_the_microphone_is_released_if_the_worklet_fails(served: tuple[str, State], tab: Any) -> None:
    chat = tab(served[0])
    chat.page.add_init_script("""const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (...all) => (window.given = await real(...all));
      AudioWorklet.prototype.addModule = async () => { throw new Error("it does not load"); };""")
    chat.open()
    chat.page.click("#mic")
    chat.page.wait_for_selector("#notice:not([hidden])")
    assert chat.page.evaluate("given.getTracks().map((track) => track.readyState)") == ["ended"]
