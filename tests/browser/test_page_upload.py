"""Avatar upload: sign-in, cancel, refusal, broken connection; the chosen file stays selected."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chromium import LIVE, Tab
from tests.browser.fake_state import State

pytestmark = pytest.mark.browser
KEY = "0123456789abcdef-page"
CLIP = {"name": "Me.mp4", "mimeType": "video/mp4", "buffer": bytes(range(256)) * 4000}
ASKS = "document.querySelector('#key').open"
READY = "document.querySelector('#upload-step').textContent === 'me is ready.'"


def enter(page: Tab) -> None:
    page.until(ASKS)
    page.page.fill("#key-input", KEY)
    page.page.press("#key-input", "Enter")


@pytest.fixture
def chat(served: tuple[str, State], tab: Any) -> Tab:
    """The page with settings open and a file chosen."""
    page: Tab = tab(served[0]).open("?via=mp4")
    page.page.click("#open-settings")
    page.page.click("#upload summary")
    page.page.set_input_files("#upload-file", CLIP)
    return page


def test_sign_in_comes_before_the_upload_of_the_same_file(chat: Tab, state: State) -> None:
    state.require_key(KEY)
    chat.page.click("#upload-go")
    chat.until(ASKS)
    assert state.uploads == []  # nothing was sent before sign-in
    enter(chat)
    chat.until(READY)
    assert state.uploads == [("me", CLIP["buffer"])]


def test_a_key_revoked_during_upload_leads_to_sign_in_and_a_new_attempt(chat: Tab, state: State) -> None:
    chat.page.route("**/avatars", lambda route: route.fulfill(json=[]))  # the cookie was valid until then
    state.require_key(KEY)
    chat.page.route("**/avatars?*", lambda route: route.continue_())
    chat.page.click("#upload-go")
    chat.until(ASKS)
    assert not chat.page.is_visible("#upload-error")
    chat.page.unroute("**/avatars")
    enter(chat)
    chat.until(READY)
    assert state.uploads == [("me", CLIP["buffer"])]


def test_an_upload_can_be_cancelled_and_repeated(chat: Tab, state: State) -> None:
    held: list[Any] = []
    chat.page.route("**/avatars?*", lambda route: held.append(route))
    chat.page.click("#upload-go")
    chat.until("document.querySelector('#upload-cancel').checkVisibility()")
    assert chat.page.is_disabled("#upload-go") and chat.page.is_disabled("#upload-name")
    chat.page.click("#upload-cancel")
    chat.until("!document.querySelector('#upload-progress').checkVisibility()")
    assert not chat.page.is_visible("#upload-error") and state.uploads == []
    assert chat.page.evaluate("document.activeElement.id") == "upload-go"
    assert chat.page.input_value("#upload-name") == "me"
    chat.page.unroute("**/avatars?*")
    chat.page.click("#upload-go")
    chat.until(READY)
    assert state.uploads == [("me", CLIP["buffer"])]


def test_a_taken_name_is_refused_before_upload(chat: Tab, state: State) -> None:
    chat.page.fill("#upload-name", "presenter")
    chat.page.click("#upload-go")
    chat.page.wait_for_selector("#upload-error:not([hidden])")
    assert chat.page.inner_text("#upload-error") == "An avatar named “presenter” already exists. Choose another name."
    assert state.uploads == [] and not chat.page.is_visible("#upload-progress")


@pytest.mark.parametrize("where", ["first", "amid"])
def test_an_unreachable_server_is_reported(chat: Tab, where: str) -> None:
    if where == "first":
        chat.page.context.set_offline(True)
    else:
        chat.page.route("**/avatars?*", lambda route: route.abort())
    chat.page.click("#upload-go")
    chat.page.wait_for_selector("#upload-error:not([hidden])")
    message = {"first": "The server cannot be reached.", "amid": "The upload failed."}
    assert chat.page.inner_text("#upload-error").startswith(f"{message[where]} Check your connection")
    assert chat.page.is_enabled("#upload-go") and "Me.mp4 (1.0 MB)" in chat.page.inner_text("#drop-text")


# --- choosing an avatar


def test_arrow_keys_start_a_chat_only_with_the_final_avatar(served: tuple[str, State], tab: Any) -> None:
    facts = {"version": "1", "fps": 25, "width": 512, "height": 512, "frames": 250}
    names = ["ann", "bob", "presenter"]
    opened: list[dict[str, Any]] = []
    page: Tab = tab(served[0])
    page.page.route("**/avatars", lambda route: route.fulfill(json=[{**facts, "avatar_id": name} for name in names]))
    page.page.on("request", lambda asked: asked.url.endswith("/sessions") and opened.append(asked.post_data_json))
    page.open("?via=mp4")
    page.page.click("#open-settings")
    page.until("document.querySelectorAll('.avatar').length === 3")
    page.page.focus(".avatar :checked")
    for _ in range(2):
        page.page.keyboard.press("ArrowLeft")
    page.until_served(lambda: len(opened) > 1)
    page.page.wait_for_timeout(600)
    assert [body.get("avatar_id") for body in opened] == [None, "ann"]
    page.until("document.querySelector('#screen').dataset.state === 'live'")


# --- sign-in, sign-out and delete without a server


def test_sign_in_and_out_without_a_server_report_the_error(served: tuple[str, State], tab: Any) -> None:
    served[1].require_key(KEY)
    page: Tab = tab(served[0]).open("?via=mp4", live=False)
    page.until(ASKS)
    page.page.context.set_offline(True)
    enter(page)
    page.until("!document.querySelector('#key-error').hidden")
    assert page.page.inner_text("#key-error") == (
        "The server cannot be reached. Check your connection, then sign in again."
    )
    assert page.page.input_value("#key-input") == KEY
    page.page.context.set_offline(False)
    page.page.press("#key-input", "Enter")
    page.until(LIVE)
    page.page.click("#open-settings")
    page.page.context.set_offline(True)
    page.page.click("#sign-out")
    page.page.wait_for_selector("#chat-error:not([hidden])")
    assert page.page.inner_text("#chat-error") == (
        "You are still signed in. The server cannot be reached. Check your connection, then sign out again."
    )
    page.page.context.set_offline(False)
    with page.page.expect_navigation():
        page.page.click("#sign-out")
    page.until(ASKS)


def test_a_chat_is_deleted_after_confirmation_and_errors_are_shown(chat: Tab, state: State) -> None:
    (session,) = state.sessions
    chat.page.click("#remove")
    assert chat.page.evaluate("document.activeElement.textContent") == "Cancel"
    chat.page.keyboard.press("Enter")
    assert not chat.page.is_visible("#confirm-delete") and session in state.sessions
    chat.page.context.set_offline(True)
    chat.page.click("#remove")
    chat.page.click("#confirm-delete .danger")
    chat.page.wait_for_selector("#chat-error:not([hidden])")
    assert chat.page.inner_text("#chat-error").startswith("Not deleted. The server cannot be reached.")
    chat.page.context.set_offline(False)
    chat.page.click("#remove")
    chat.page.click("#confirm-delete .danger")
    chat.until_served(lambda: session not in state.sessions)
    chat.until("!document.querySelector('#settings').open")
