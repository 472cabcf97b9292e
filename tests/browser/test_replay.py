"""The replay dialog: offered if the session has video, seekable, with captions and a list of utterances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.live.cues import Cue
from models.media.encode import MediaSpec, UtteranceEncoder
from models.stitch.session import SessionFile
from tests.browser.chromium import Tab
from tests.browser.fake_media import Film
from tests.browser.recorded import recorded_server

pytestmark = pytest.mark.browser

SAID = (
    ("Hello, nice to meet you. I am the presenter of this page.", 55, False),
    ("Five small models make my voice, my lips and this picture, each in a process of its own.", 70, False),
    ("", 30, False),  # a recording
    ("And this sentence was cut before its end, since somebody had heard enough of it", 40, True),
)
SECONDS = sum(frames for _, frames, _ in SAID) / 25
HEARD = "And this sentence was cut"
CAPTION = "[...document.querySelector('#replay-video').textTracks[0].activeCues].map((cue) => cue.text).join(' ')"
CURRENT = "document.querySelector('.line[aria-current=true] .line-text')?.textContent"


def speak(session: SessionFile, text: str, count: int, cut: bool, pictures: Any) -> None:
    session.start_utterance(text)
    if text:
        session.add_sentence(Cue(1, HEARD if cut else text, session.duration_s, session.duration_s + count / 25))
    rate, first = session.spec.sample_rate_hz, session.frames % 60
    samples = 0.2 * np.sin(np.arange(count * rate // 25) * 2 * np.pi * 220 / rate, dtype=np.float32)
    for fragment in UtteranceEncoder(session.spec, session.clock).push(
        np.stack([pictures[(first + k) % len(pictures)] for k in range(count)]), samples, last=True
    ):
        session.append(fragment)
    session.end_utterance(interrupted=cut)


@pytest.fixture(scope="module")
def pictures(film: Film) -> Any:
    return film.idle[:60]


@pytest.fixture(scope="module")
def server(pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with recorded_server(tmp_path_factory.mktemp("home")) as (url, root):
        spec = MediaSpec(256, 256, 25, crf=26, preset="ultrafast")
        SessionFile(root / "empty", spec).finish()
        session = SessionFile(root / "said", spec, sync="never")
        for said in SAID:
            speak(session, *said, pictures)
        session.finish()
        yield url, root


@pytest.fixture
def over(server: tuple[str, Path], tab: Callable[..., Tab]) -> Callable[..., Tab]:
    """The page of a closed session."""

    def opened(session: str = "said", **options: Any) -> Tab:
        page: Tab = tab(f"{server[0]}/?session={session}", **options).open(live=False)
        page.until("document.querySelector('#screen').dataset.state === 'lost'")
        return page

    return opened


@pytest.fixture
def replay(over: Callable[..., Tab]) -> Tab:
    page = over()
    page.page.click("#open-replay")
    page.until("document.querySelector('#replay-video').currentTime > 0.1")
    return page


def test_a_closed_session_is_played_from_its_start_to_its_end(replay: Tab) -> None:
    video = "document.querySelector('#replay-video')"
    assert replay.page.evaluate(f"{video}.duration") == pytest.approx(SECONDS, abs=0.05)
    assert not replay.page.is_visible("#replay-status") and replay.page.inner_text("#replay-facts") == "0:07"
    replay.page.evaluate(f"{video}.playbackRate = 4")
    replay.until(f"{video}.ended", 15)
    assert replay.page.evaluate(f"{video}.getVideoPlaybackQuality().totalVideoFrames") > 50
    assert replay.page.evaluate(f"{video}.error") is None


def test_captions_and_lines_follow_playback(replay: Tab) -> None:
    texts = [f"{HEARD} —" if cut else text or "A recording" for text, _, cut in SAID]  # interrupted text is not listed
    assert replay.texts(".line-text") == texts
    assert replay.texts(".line-time") == ["0:00", "0:02", "0:05", "0:06"]
    replay.until(f"{CURRENT} === {texts[0]!r}")
    replay.until(f"{CAPTION}.startsWith('Hello, nice')")
    replay.page.click(".line >> nth=1")
    replay.until(f"{CURRENT} === {texts[1]!r}")
    assert 2.2 <= replay.page.evaluate("document.querySelector('#replay-video').currentTime") < 4
    replay.until(f"{CAPTION}.startsWith('Five small models')")
    replay.shot("replay")
    replay.page.evaluate("document.querySelector('#replay-video').currentTime = 6.9")
    replay.until(f"{CURRENT} === {texts[3]!r} && {CAPTION}.includes('was cut')")


def test_the_last_line_can_be_selected_with_the_keyboard(replay: Tab) -> None:
    replay.page.focus(".line >> nth=3")
    replay.page.keyboard.press("Enter")
    replay.until("document.querySelector('#replay-video').currentTime >= 6.2")
    replay.page.keyboard.press("Escape")
    assert not replay.page.is_visible("#replay")
    assert replay.page.evaluate("document.activeElement.id") == "open-replay"


def test_live_video_is_muted_while_the_replay_is_open(over: Callable[..., Tab]) -> None:
    page = over()
    page.page.evaluate("document.querySelector('#video').muted = false")
    page.page.click("#open-replay")
    assert page.page.evaluate("document.querySelector('#video').muted") is True
    page.until("document.querySelector('#replay-video').currentTime > 0.1")
    assert page.page.evaluate("document.querySelector('#replay-video').muted") is False
    page.page.click("[aria-label='Close the replay']")
    page.until("document.querySelector('#video').muted === false")
    assert page.page.evaluate("document.querySelector('#replay-video').hasAttribute('src')") is False


def test_the_replay_is_offered_for_closed_sessions_with_video_only(over: Callable[..., Tab]) -> None:
    page = over()
    page.page.click(".status-card [data-replay]")
    page.until("document.querySelector('#replay-video').currentTime > 0.1")
    empty = over("empty")
    empty.page.wait_for_timeout(500)
    assert not empty.page.is_visible("#open-replay") and not empty.page.is_visible(".status-card [data-replay]")


def test_a_deleted_session_shows_an_error_and_can_be_retried(over: Callable[..., Tab], server: Any) -> None:
    page, folder = over(), server[1] / "said"
    page.page.route("**/sessions/said", lambda route: route.fulfill(status=404, json={"error": GONE}))
    page.page.click("#open-replay")
    page.until("document.querySelector('#replay-title').textContent === 'There is no session.'")
    page.page.unroute("**/sessions/said")
    assert folder.is_dir()
    page.page.click("#replay-again")
    page.until("document.querySelector('#replay-video').currentTime > 0.1")


GONE = {"code": "session_not_found", "message": "There is no session.", "remedy": "Speak in it first."}


def test_the_replay_fits_on_a_phone(over: Callable[..., Tab]) -> None:
    page = over(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark")
    page.page.tap("#open-replay")
    page.until("document.querySelector('#replay-video').currentTime > 0.6")
    page.shot("replay-phone")
    boxes = [page.page.locator(place).bounding_box() for place in (".replay-screen", "#replay-lines")]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] and boxes[0]["width"] > 340
    assert page.page.evaluate("document.scrollingElement.scrollWidth") <= 390
