"""While disconnected, the page keeps the last frame and explains the state; it is never black."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest

from tests.browser.chromium import Tab
from tests.browser.fake_state import State

pytestmark = pytest.mark.browser
STATE = "document.querySelector('#screen').dataset.state"
TITLE = "document.querySelector('#status-title').textContent"
MESSAGES = {"webrtc": "This server has no WebRTC.", "mp4": "The server restarts."}  # of the fake server
FACE = (slice(60, 150), slice(200, 420))  # rows and columns of the screen without text, pill and tools


def grey_levels(page: Tab) -> Any:
    """Grey levels of the upper part of the presenter on screen."""
    shot = page.page.locator("#screen").screenshot()
    picture = cv2.imdecode(np.frombuffer(io.BytesIO(shot).getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE)
    return picture[FACE].astype(np.float32)


def correlation(one: Any, other: Any) -> float:
    """Correlation of two pictures, independent of brightness; 0 if one is uniform (for example black)."""
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).mean() / max(one.std() * other.std(), 1.0))


@pytest.mark.parametrize("way", ["webrtc", "mp4"])
def test_the_last_frame_stays_until_a_new_one_arrives(served: tuple[str, State], tab: Any, way: str) -> None:
    if way == "webrtc":
        pytest.importorskip("aiortc")
    url, state = served
    state.webrtc = way == "webrtc"
    page: Tab = tab(url, reduced_motion="no-preference").open(f"?via={way}")  # with the fades
    page.until("document.querySelector('#figure-behind').textContent !== '–'")
    live = grey_levels(page)
    assert live.std() > 20  # the picture has content
    state.down = True
    page.until(f"{STATE} === 'lost'", 10)
    seen = [grey_levels(page) for _ in range(4)]
    assert page.page.inner_text("#pill-text") == "Reconnecting"
    page.until(f"{TITLE} === '{MESSAGES[way]}'")
    page.until("document.querySelector('#status-text').textContent.includes('Next attempt in')")
    page.shot(f"lost-{way}")
    state.down = False
    page.page.click("#retry")
    while page.page.evaluate(STATE) == "lost":
        seen.append(grey_levels(page))
    seen += [grey_levels(page) for _ in range(6)]
    assert len(seen) > 10
    assert min(correlation(live, picture) for picture in seen) > 0.6
    page.until("!document.querySelector('#last-frame').dataset.of")
    assert page.watch(1.0)["played"] > 0.7


def test_the_message_gives_the_reason_and_counts_down(served: tuple[str, State], tab: Any) -> None:
    url, state = served
    page: Tab = tab(url).open()
    page.page.evaluate("""() => {
      window.said = [];
      const look = () => {
        const words = document.querySelector('#status-card').innerText.replace(/\\n+/g, ' | ');
        if (words && said.at(-1) !== words) said.push(words);
      };
      const all = { subtree: true, childList: true, attributes: true, characterData: true };
      new MutationObserver(look).observe(document.querySelector('#status-overlay'), all);
    }""")
    state.down = True
    page.until("said.filter((words) => words.includes('Next attempt in')).length > 6", 40)
    said = page.page.evaluate("said")
    assert not [words for words in said if words.startswith("Connecting")]  # it was connected before
    assert any(words.startswith("The server restarts. | Reconnecting …") for words in said)
    assert any("Wait. Next attempt in 3 s." in words for words in said)
    assert any("Wait. Next attempt in 2 s." in words for words in said)
    assert page.page.get_attribute("#status-title", "role") == "status"


def test_the_poster_is_shown_before_the_first_frame(served: tuple[str, State], tab: Any) -> None:
    url, state = served
    state.fail["live"] = (503, {"code": "busy", "message": "Too many watch.", "remedy": "Wait a little."})
    page: Tab = tab(url).open("?via=mp4", live=False)
    page.until(f"{STATE} === 'lost' && document.querySelector('#last-frame').dataset.of === 'poster'")
    page.shot("lost-poster")
    assert grey_levels(page).std() > 10
    page.until(
        "document.querySelector('#status-title').textContent === 'Too many watch.'", 5
    )  # shown again after each attempt
    del state.fail["live"]
    page.page.evaluate("document.querySelector('#retry').click()")  # hidden, if the page was faster
    page.until(f"{STATE} === 'live' && !document.querySelector('#last-frame').dataset.of")
