"""Settings: voices that are installed or must be downloaded, and avatars that can be removed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chromium import LIVE, Tab
from tests.browser.fake_state import State

pytestmark = pytest.mark.browser
NAMES = "[...document.querySelectorAll('#avatars input')].map((input) => input.value).join()"


@pytest.fixture
def settings(served: tuple[str, State], tab: Any) -> Tab:
    """The page with its settings open, over a server with two uploaded avatars."""
    served[1].avatars += ["ann", "bob"]
    page: Tab = tab(served[0]).open("?via=mp4")
    page.page.click("#open-settings")
    page.until(f"{NAMES} === 'ann,bob,presenter'")
    return page


def test_a_voice_that_must_be_downloaded_says_so(settings: Tab) -> None:
    words = settings.page.locator("#voice option").all_inner_texts()
    assert words == ["Heart (default)", "Emma", "Fenrir", "Fable", "Kore: downloads 8 MB at first use"]
    settings.page.select_option("#voice", "kore")
    assert settings.page.evaluate("JSON.parse(localStorage.getItem('warmtalk-settings')).voice") == "kore"


def test_an_uploaded_avatar_is_removed_by_keyboard_after_confirmation(settings: Tab, state: State) -> None:
    page = settings.page
    assert page.locator(".remove-avatar").count() == 2  # the embedded avatar has none
    page.focus("[aria-label='Remove bob']")
    page.keyboard.press("Enter")
    assert page.inner_text("#confirm-removal-title") == "Remove “bob”?"
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.press("Enter")
    settings.until("!document.querySelector('#confirm-removal').open")
    assert state.avatars == ["ann", "bob"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove bob"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    settings.until(f"{NAMES} === 'ann,presenter'")
    assert state.avatars == ["ann"]
    settings.until("document.activeElement.value === 'presenter'")
    assert len(state.sessions) == 1  # the chat shows another avatar and continues


def test_removing_the_current_avatar_starts_a_chat_with_another(settings: Tab, state: State) -> None:
    opened: list[dict[str, Any]] = []
    settings.page.on("request", lambda asked: asked.url.endswith("/sessions") and opened.append(asked.post_data_json))
    settings.page.check(".avatar input[value=ann]", force=True)
    settings.until_served(lambda: len(opened) == 1)
    settings.until(LIVE)
    settings.page.click("[aria-label='Remove ann']")
    settings.page.click("#confirm-removal .danger")
    settings.until_served(lambda: len(opened) == 2)
    assert [body.get("avatar_id") for body in opened] == ["ann", None]
    settings.until(LIVE)
    assert settings.page.evaluate(NAMES) == "bob,presenter" and state.avatars == ["bob"]


def test_the_reason_for_a_refused_removal_is_shown(settings: Tab, state: State) -> None:
    error = {
        "code": "bad_input",
        "message": "The avatar 'ann' is shown wherever none is named.",
        "remedy": "Set another.",
    }
    state.fail["remove"] = (422, error)
    settings.page.click("[aria-label='Remove ann']")
    settings.page.click("#confirm-removal .danger")
    settings.page.wait_for_selector("#avatars-error:not([hidden])")
    message = settings.page.inner_text("#avatars-error")
    assert message == "Not removed. The avatar 'ann' is shown wherever none is named. Set another."
    assert settings.page.evaluate(NAMES) == "ann,bob,presenter"
