"""Texts of the page: accessible names, hints, and limits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chromium import Tab
from tests.browser.fake_state import State

pytestmark = pytest.mark.browser


def test_on_a_phone_icon_buttons_keep_their_accessible_names(served: tuple[str, State], tab: Any) -> None:
    page = tab(served[0], viewport={"width": 390, "height": 844}).open("?via=mp4").page
    for name in ("New chat", "Settings", "Captions", "Full screen", "Send", "Record your voice for the presenter"):
        button = page.get_by_role("button", name=name, exact=True)
        assert button.count() == 1, name
        assert button.bounding_box()["width"] < 48, name
    pointed = page.evaluate(
        "[...document.querySelectorAll('button[aria-label]')].filter((b) => !b.title).map((b) => b.id)"
    )
    assert pointed == ["notice-close"]  # a close button needs no tooltip


def test_the_hint_shows_keys_and_remaining_characters(served: tuple[str, State], tab: Any) -> None:
    chat: Tab = tab(served[0]).open("?via=mp4")
    hint = "#hint"
    assert chat.page.inner_text(hint).startswith("Enter to send, Shift")
    chat.page.fill("#message", "x" * 3650)
    assert chat.page.inner_text(hint) == "About 350 characters left"
    chat.page.fill("#message", "x" * 3990)
    assert chat.page.inner_text(hint) == "10 characters left"
    chat.page.press("#message", "End")
    chat.page.keyboard.insert_text("y" * 50)
    assert chat.page.inner_text(hint) == "Maximum length of 4000 characters reached"
    assert chat.page.input_value("#message") == "x" * 3990 + "y" * 10
    chat.page.fill("#message", "")
    assert chat.page.inner_text(hint).startswith("Enter to send, Shift")
    chat.page.click("#mic")
    chat.until("document.querySelector('#hint').textContent === 'Enter to send the recording, Esc to discard it'")
    chat.page.check("#hands-free")
    chat.until("document.querySelector('#hint').textContent === 'A pause ends your turn. Esc to stop listening'")
    chat.page.keyboard.press("Escape")
    chat.until("document.querySelector('#hint').textContent.startsWith('Enter to send, Shift')")


def test_focus_moves_when_a_focused_button_disappears(served: tuple[str, State], tab: Any) -> None:
    url, state = served
    chat: Tab = tab(url).open("?via=mp4")
    stands = "document.activeElement.id"

    def press(selector: str) -> None:
        chat.page.focus(selector)
        chat.page.keyboard.press("Enter")

    chat.page.keyboard.press("Tab")  # switch to keyboard focus
    press("#unmute")
    chat.until(f"{stands} === 'mute'")
    chat.send("Hello?")
    chat.state("speaking")
    press("#interrupt")
    chat.until(f"{stands} === 'message'")
    chat.state("live")
    press("#mic")
    chat.until("document.querySelector('#recording').checkVisibility()")
    press("#recording-cancel")
    chat.until(f"{stands} === 'mic'")
    state.fail["chat"] = (429, {"code": "busy", "message": "It is full.", "remedy": "Wait."})
    chat.send("Hello?")
    chat.page.wait_for_selector(".bubble.failed")
    state.fail.clear()
    press(".bubble.failed button")
    chat.until(f"{stands} === 'message'")
    state.down = True
    chat.until("document.querySelector('#status-text').textContent.includes('Next attempt in')")
    press("#retry")
    chat.until("document.querySelector('#status-text').textContent.startsWith('Reconnecting')")
    assert chat.page.evaluate(stands) == "retry"


def test_what_was_not_spoken_is_shown(served: tuple[str, State], tab: Any) -> None:
    address, state = served
    chat: Tab = tab(address).open("?via=mp4")
    state.reply, state.warnings = "Hello.", ['Skipped "你好": it is unreadable.', "Skipped a block of code."]
    for mode in ("chat", "say"):
        chat.page.check(f"[name=mode][value={mode}]", force=True)
        chat.send("Hello. 你好")
        chat.page.wait_for_selector("#notice:not([hidden])")
        assert chat.page.inner_text("#notice-title") == "Part of the text was not spoken."
        assert chat.page.inner_text("#notice-text") == " ".join(state.warnings)
        chat.page.click("#notice-close")
    state.warnings = []
    chat.send("Hello.")
    chat.state("speaking")
    chat.state("live")
    assert not chat.page.is_visible("#notice")
