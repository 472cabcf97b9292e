"""The page over WebRTC: used if offered and reachable; everything works as over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chromium import Tab
from tests.browser.fake_state import State

pytest.importorskip("aiortc")
pytestmark = pytest.mark.browser
OVER_WEBRTC = "document.querySelector('#figure-way').textContent === 'WebRTC'"
OVER_HTTP = "document.querySelector('#figure-way').textContent === 'HTTP'"


@pytest.fixture
def served(served: tuple[str, State]) -> tuple[str, State]:
    served[1].webrtc = True
    return served


def test_video_arrives_over_webrtc_with_little_delay(chat: Tab) -> None:
    chat.until(OVER_WEBRTC)
    idle = chat.watch(2.0)
    assert idle["played"] == pytest.approx(idle["passed"], abs=0.3) and idle["loudness"] < 2e-3
    behind_s = float(chat.page.inner_text("#figure-behind").removesuffix(" s"))
    assert 0.05 < behind_s < 0.4
    assert chat.page.evaluate("document.querySelector('video').srcObject.getTracks().length") == 2
    chat.shot("webrtc-idle")
    assert chat.page_errors == []


def test_a_message_is_answered_with_video_sound_and_captions(chat: Tab, state: State) -> None:
    idle = chat.watch(1.0)
    chat.send("Hello!")
    chat.heard(within_s=10, above=0.01)
    chat.until("document.querySelector('#caption').checkVisibility()")
    assert chat.page.inner_text("#caption-text") in state.reply
    spoken = chat.watch(1.0)
    assert spoken["motion"] > 1.5 * idle["motion"] and spoken["loudness"] > 0.01
    chat.shot("webrtc-speaking")
    assert chat.page.evaluate("document.querySelector('#pill').dataset.state") == "speaking"
    chat.page.click("#interrupt")
    chat.silent(within_s=1.5, seconds=0.5, below=2e-3)
    chat.state("live")
    assert chat.page_errors == []


def test_the_page_starts_muted_and_one_click_unmutes(chat: Tab) -> None:
    assert chat.page.evaluate("document.querySelector('video').muted")
    chat.page.click("#unmute")
    assert not chat.page.evaluate("document.querySelector('video').muted")
    assert chat.watch(0.5)["played"] > 0.3


@pytest.mark.parametrize(("query", "webrtc"), [("?via=mp4", True), ("", False), ("", "lost")])
def test_without_webrtc_the_page_falls_back_to_http_silently(
    served: tuple[str, State], state: State, tab: Any, query: str, webrtc: Any
) -> None:
    state.webrtc = webrtc
    opened = tab(served[0]).open(query)
    opened.until(OVER_HTTP)
    assert opened.watch(1.0)["played"] > 0.7
    assert opened.page.evaluate("document.querySelector('video').srcObject") is None
    assert not opened.page.is_visible("#notice") and opened.page_errors == []
    assert len(state.ended) == (webrtc == "lost")  # a failed connection is closed on the server


def test_a_forced_webrtc_that_fails_is_reported(served: tuple[str, State], state: State, tab: Any) -> None:
    state.webrtc = False
    opened = tab(served[0]).open("?via=webrtc", live=False)
    opened.until("document.querySelector('#screen').dataset.state === 'lost'")
    opened.until("document.querySelector('#status-title').textContent === 'This server has no WebRTC.'", timeout_s=5)


def test_the_page_reconnects_after_a_server_restart(chat: Tab, state: State) -> None:
    chat.until(OVER_WEBRTC)
    state.down = True
    chat.until("document.querySelector('#screen').dataset.state === 'lost'", 10)
    state.down = False
    chat.until("document.querySelector('#screen').dataset.state === 'live'", 20)
    assert chat.watch(1.0)["played"] > 0.7


def test_leaving_the_page_closes_the_connection(chat: Tab, state: State) -> None:
    chat.until(OVER_WEBRTC)
    assert state.viewers == 1
    chat.page.goto("about:blank")
    chat.until_served(lambda: state.viewers == 0, 5)


@pytest.mark.parametrize(
    ("header", "servers"),
    [
        ("", []),
        ('<stun:a.example>; rel="ice-server"', [{"urls": "stun:a.example"}]),
        ('<x>; rel="next", <stun:a>; rel="ice-server"', [{"urls": "stun:a"}]),
        (
            '<stun:a>; rel="ice-server", <turn:b?transport=udp>; rel="ice-server"; username="u\\"v"; credential="c"; '
            'credential-type="password"',
            [{"urls": "stun:a"}, {"urls": "turn:b?transport=udp", "username": 'u"v', "credential": "c"}],
        ),
    ],
)
def test_ice_servers_are_parsed_from_the_link_header(modules: Tab, header: str, servers: list[Any]) -> None:
    read = modules.page.evaluate("async (header) => (await import('/web/whep.js')).iceServers(header)", header)
    assert read == servers
