"""The page on a server that requires an API key: one sign-in dialog, errors, and a remembered browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chromium import LIVE, Tab
from tests.browser.fake_state import State

pytestmark = pytest.mark.browser
KEY = "0123456789abcdef-page"
ASKS = "document.querySelector('#key').open"


@pytest.fixture
def served(served: tuple[str, State]) -> tuple[str, State]:
    served[1].require_key(KEY)
    return served


def enter(page: Tab, key: str) -> None:
    page.page.fill("#key-input", key)
    page.page.press("#key-input", "Enter")


def test_sign_in_is_asked_once_reports_errors_and_resumes(served: tuple[str, State], tab: Any) -> None:
    url, state = served
    page: Tab = tab(url).open(live=False)
    page.until(ASKS)
    page.shot("key")
    assert page.page.evaluate("document.activeElement.id") == "key-input" and state.sessions == {}
    page.page.press("#key-input", "Escape")
    assert page.page.evaluate(ASKS)
    enter(page, "not-a-key-of-this-server")
    page.until("!document.querySelector('#key-error').hidden")
    assert page.page.inner_text("#key-error") == "This key is not valid." and page.page.evaluate(ASKS)
    page.shot("key-wrong")
    enter(page, KEY)
    page.until(LIVE)
    assert not page.page.evaluate(ASKS) and page.page.input_value("#key-input") == ""
    page.send("Who are you?")
    page.state("speaking")
    assert [c for c in page.page_errors if "401" not in c] == []  # Chromium logs each refused request
    page.page.click("#open-settings")
    page.until("document.querySelectorAll('#avatars .avatar').length > 0")
    page.shot("key-settings")


def test_the_browser_stays_signed_in_with_an_unreadable_cookie(served: tuple[str, State], tab: Any) -> None:
    page: Tab = tab(served[0]).open(live=False)
    page.until(ASKS)
    enter(page, KEY)
    page.until(LIVE)
    stored = page.page.evaluate("document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage)")
    (cookie,) = page.page.context.cookies()
    assert KEY not in stored and cookie["value"] not in stored and KEY not in cookie["value"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    other: Tab = tab(served[0], context=page.page.context).open()
    assert not other.page.evaluate(ASKS)


def test_signing_out_requires_a_key_again(served: tuple[str, State], tab: Any) -> None:
    page: Tab = tab(served[0]).open(live=False)
    page.until(ASKS)
    enter(page, KEY)
    page.until(LIVE)
    page.page.click("#open-settings")
    with page.page.expect_navigation():
        page.page.click("#sign-out")
    page.until(ASKS)
    assert page.page.context.cookies() == []


def test_a_revoked_key_leads_to_another_sign_in(served: tuple[str, State], tab: Any) -> None:
    url, state = served
    page: Tab = tab(url).open(live=False)
    page.until(ASKS)
    enter(page, KEY)
    page.until(LIVE)
    state.require_key(KEY + "-new")
    page.send("Are you there?")
    page.until(ASKS)
    enter(page, KEY + "-new")
    page.state("speaking")
    assert "Are you there?" in page.texts(".user")[0]
    assert len(state.jobs) == 1  # sent exactly once


def test_the_dialog_fits_on_a_phone(served: tuple[str, State], tab: Any) -> None:
    page: Tab = tab(served[0], viewport={"width": 360, "height": 640}, color_scheme="dark").open(live=False)
    page.until(ASKS)
    page.shot("key-phone")
    box = page.page.locator("#key").bounding_box()
    assert box["x"] >= 8 and box["x"] + box["width"] <= 352 and box["y"] >= 0 and box["y"] + box["height"] <= 640
    assert all(page.page.locator(name).bounding_box()["height"] >= 43 for name in ("#key-input", "#key-go"))
