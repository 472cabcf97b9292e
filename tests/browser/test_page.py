"""The chat page in Chromium on a fake server: video, chat, errors, settings, accessibility."""

from __future__ import annotations

import io
import re
import time
import wave
from typing import Any

import pytest

from tests.browser.chromium import ROOT, Tab
from tests.browser.fake_state import STAGES, WORD_S, State

pytestmark = pytest.mark.browser

MOUTH_BOTTOM = 352  # px of 512
LIVE_AGAIN = "document.querySelector('#screen').dataset.state === 'live'"
BUSY = {"code": "busy", "message": "All replicas are busy.", "remedy": "Try again in a few seconds."}


# --- video


def test_the_presenter_idles_silently_without_console_errors(chat: Tab) -> None:
    seen = chat.watch(2.0)
    assert seen["played"] == pytest.approx(seen["passed"], abs=0.4) and seen["loudness"] < 1e-4
    assert chat.page.inner_text("#pill-text") == "Live"
    chat.shot("idle")
    assert chat.page_errors == []


def test_playback_stays_near_the_live_edge_unlike_a_plain_video(chat: Tab) -> None:
    """Compare the delay behind the live edge three seconds after the request."""
    plain = chat.page.evaluate("""async () => {
      const video = Object.assign(document.createElement('video'), { muted: true, autoplay: true });
      document.body.append(video);
      const began = performance.now();
      video.src = '/sessions/plain/live.mp4';
      await new Promise((resolve) => setTimeout(resolve, 3000));
      const behind = (performance.now() - began) / 1000 - video.currentTime;
      video.remove();
      return behind;
    }""")
    chat.page.add_init_script("""const real = fetch;
      fetch = (...all) => (String(all[0]).endsWith('live.mp4') && (window.asked = performance.now()), real(...all))""")
    chat.page.reload()
    chat.until("window.asked && performance.now() - window.asked > 3000")
    ours = chat.page.evaluate("(performance.now() - asked) / 1000 - document.querySelector('video').currentTime")
    assert ours < 0.8 and ours < plain - 1, (ours, plain)


def test_the_page_starts_muted_and_one_click_unmutes(chat: Tab) -> None:
    assert chat.page.evaluate("document.querySelector('video').muted")
    chat.page.click("#unmute")
    assert not chat.page.evaluate("document.querySelector('video').muted")
    assert not chat.page.is_visible("#unmute")
    assert chat.page.get_attribute("#mute", "aria-label") == "Turn sound off"


# --- chat


def test_a_message_is_answered_with_video_sound_and_captions(chat: Tab, state: State) -> None:
    idle = chat.watch(1.0)
    chat.send("Hello, who are you?")
    chat.state("speaking")
    spoken = chat.watch(2.0)
    assert spoken["motion"] > 2 * idle["motion"] + 0.5, (spoken, idle)
    assert spoken["loudness"] > 0.05 > 100 * idle["loudness"]
    assert chat.page.inner_text("#caption") in state.reply
    chat.shot("speaking")
    chat.state("live")
    assert chat.texts(".bubble") == ["Hello, who are you?", state.reply]
    assert chat.page.inner_text("#figure-first") == "571 ms"
    values = chat.texts("#bars .value")
    assert values == ["92 ms", "140 ms", "1.32 s", "640 ms", "410 ms"]
    shares = chat.page.evaluate(
        "[...document.querySelectorAll('.fill')].map((bar) => +bar.style.getPropertyValue('--share'))"
    )
    spoken_ms = 1000 * WORD_S * len(state.reply.split(". ")[1].split())  # duration of the last sentence
    assert shares == pytest.approx([ms / spoken_ms for ms in STAGES.values()], abs=1e-3)
    assert chat.page.get_attribute("#bars", "aria-label").startswith("Milliseconds per stage for 4.8 seconds")
    assert chat.page_errors == []


def test_say_mode_speaks_the_text_unchanged(chat: Tab, state: State) -> None:
    chat.page.check("[name=mode][value=say]", force=True)
    chat.send("Exactly these words.")
    chat.state("speaking")
    (session,) = state.sessions.values()
    chat.until_served(lambda: session.caption)
    assert session.caption == "Exactly these words." and state.jobs == {}
    chat.state("live")


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_an_interruption_stops_speech_at_once(chat: Tab, state: State, how: str) -> None:
    state.reply = "This is a long sentence that goes on and on, and on, and on, for the sake of an interruption."
    chat.send("Talk!")
    chat.state("speaking")
    assert chat.watch(1.0)["loudness"] > 0.05
    if how == "button":
        chat.page.click("#interrupt")
    else:
        chat.page.press("#message", "Escape")
    assert chat.state("live") < 1.5
    chat.silent(within_s=1.5, seconds=0.8, below=1e-3)  # buffered media is still played
    assert "interrupted" in chat.texts(".bubble.presenter")[0]
    assert not chat.page.is_visible("#caption")


def test_a_recording_is_played_through_the_face(chat: Tab, state: State) -> None:
    began_s = time.monotonic()
    chat.page.click("#mic")
    chat.until("document.querySelector('#level').value > 0.3")  # the fake microphone beeps
    chat.shot("recording")
    chat.page.wait_for_timeout(1000)
    chat.page.click("#send")
    took_s = time.monotonic() - began_s
    chat.state("speaking")
    chat.until_served(lambda: state.uploads)
    session, data = state.uploads[0]
    assert session in state.sessions
    with wave.open(io.BytesIO(data)) as recording:
        seconds = recording.getnframes() / recording.getframerate()
        assert (recording.getnchannels(), recording.getsampwidth()) == (1, 2) and 0.9 < seconds < took_s + 1
        frames = recording.readframes(recording.getnframes())
    assert max(frames[1::2]) > 0  # not silent
    assert re.match(r"Recording, \d+\.\d s", chat.texts(".bubble.user")[0])


def test_right_to_left_text_and_markup_are_shown_literally(chat: Tab) -> None:
    for text in ("שלום עולם 👋", "<b>bold</b> & <script>alert(1)</script>"):
        chat.send(text)
    assert chat.texts(".bubble.user") == ["שלום עולם 👋", "<b>bold</b> & <script>alert(1)</script>"]
    assert chat.page.evaluate("getComputedStyle(document.querySelector('.bubble.user')).direction") == "rtl"


def test_a_session_parameter_cannot_change_the_requested_path(served: tuple[str, State], tab: Any) -> None:
    """`?session=../reset?session_id=alice` must not become a request that resets alice's session."""
    asked: list[str] = []
    other = tab(served[0])
    other.page.on("request", lambda request: asked.append(request.url))
    other.open("?session=../reset%3Fsession_id%3Dalice%26x%3D")
    assert len(asked) > 5 and not [url for url in asked[1:] if "reset" in url]


# --- two tabs


def test_two_tabs_have_separate_sessions(chat: Tab, state: State, tab: Any) -> None:
    other = tab(chat.url, context=chat.page.context).open()
    chat.send("Only here.")
    chat.state("speaking")
    assert other.watch(1.0)["loudness"] < 1e-3 and other.texts(".bubble") == []
    assert len(state.sessions) == 2


def test_a_duplicated_tab_gets_a_session_of_its_own(chat: Tab, state: State, tab: Any) -> None:
    session = chat.page.evaluate("sessionStorage.getItem('warmtalk-session')")
    other = tab(chat.url, context=chat.page.context)
    other.page.add_init_script(f"sessionStorage.setItem('warmtalk-session', '{session}')")
    other.open()
    assert other.page.evaluate("sessionStorage.getItem('warmtalk-session')") != session
    assert set(state.sessions) > {session}


def test_a_reload_keeps_the_conversation(chat: Tab, state: State) -> None:
    state.reply = "Yes."
    chat.send("Still there?")
    chat.state("speaking")
    chat.state("live")
    chat.page.reload()
    chat.until("document.querySelectorAll('.bubble').length === 2")
    assert chat.texts(".bubble") == ["Still there?", "Yes."] and len(state.sessions) == 1


# --- errors


def test_the_page_reconnects_after_a_server_restart(chat: Tab, state: State) -> None:
    chat.send("Hello?")
    state.down = True
    chat.until("document.querySelector('#screen').dataset.state === 'lost'")
    assert chat.page.inner_text("#pill-text") == "Reconnecting"
    chat.until("document.querySelector('#status-title').textContent === 'The server restarts.'")
    chat.until("document.querySelector('#status-text').textContent.includes('Next attempt in')")
    chat.shot("reconnecting")
    before = chat.page.evaluate("document.querySelector('video').currentTime")
    state.down = False
    chat.page.click("#retry")
    assert chat.until(LIVE_AGAIN) < 5
    again = chat.watch(1.0)
    assert again["played"] > 0.7 * again["passed"]
    assert chat.page.evaluate("document.querySelector('video').currentTime") > before


def test_server_errors_are_shown_and_can_be_retried(chat: Tab, state: State) -> None:
    state.fail["chat"] = (429, BUSY)
    chat.send("Hello?")
    chat.page.wait_for_selector(".bubble.failed")
    assert "All replicas are busy." in chat.texts(".bubble.failed")[0]
    assert "Try again in a few seconds." in chat.texts(".bubble.failed")[0]
    chat.shot("error")
    del state.fail["chat"]
    chat.page.click(".bubble.failed button")
    chat.state("speaking")
    assert chat.texts(".bubble.failed") == []


def test_a_job_that_fails_shows_its_error(chat: Tab, state: State) -> None:
    error = {"code": "stage_failed", "message": "The language model did not answer in time.", "remedy": "Raise it."}
    state.fail["answer"] = (502, error)
    chat.send("Hello?")
    chat.page.wait_for_selector(".bubble.failed")
    assert "did not answer in time." in chat.texts(".bubble.failed")[0]
    assert chat.state("live") < 2


# --- settings


def test_an_avatar_upload_shows_progress_and_errors(chat: Tab, state: State) -> None:
    chat.page.click("#open-settings")
    chat.page.wait_for_selector(".avatar img")
    chat.shot("settings")
    chat.page.click("#upload summary")
    clip = {"name": "My Face.mp4", "mimeType": "video/mp4", "buffer": b"v" * 100_000}
    chat.page.set_input_files("#upload-file", clip)
    assert chat.page.input_value("#upload-name") == "my-face"
    chat.page.evaluate("""() => {
      const step = document.querySelector('#upload-step');
      window.steps = [];
      const changed = new MutationObserver(() => steps.push(step.textContent));
      changed.observe(step, { childList: true, characterData: true, subtree: true });
    }""")
    chat.page.click("#upload-go")
    chat.until("document.querySelector('#upload-step').textContent === 'my-face is ready.'")
    assert chat.page.evaluate("steps.some((text) => text.startsWith('Finding faces, '))")
    assert state.uploads == [("my-face", b"v" * 100_000)]
    error = {"code": "no_face", "message": "No face was found.", "remedy": "Use another video."}
    state.fail["avatars"] = (422, error)
    chat.page.set_input_files("#upload-file", clip)
    chat.page.click("#upload-go")
    chat.page.wait_for_selector("#upload-error:not([hidden])")
    assert chat.page.inner_text("#upload-error") == "No face was found. Use another video."


def test_settings_are_sent_and_stored(chat: Tab, state: State) -> None:
    sent: list[dict[str, Any]] = []
    chat.page.on("request", lambda r: r.url.endswith("/chat") and r.method == "POST" and sent.append(r.post_data_json))
    chat.page.click("#open-settings")
    chat.page.select_option("#voice", "emma")
    chat.page.check("#enhance")
    chat.page.keyboard.press("Escape")
    chat.send("Hello.")
    chat.state("speaking")
    assert {key: sent[0].get(key) for key in ("voice", "enhance", "speed")} == {
        "voice": "emma",
        "enhance": True,
        "speed": None,
    }
    chat.page.reload()
    chat.page.click("#open-settings")
    chat.until("document.querySelector('#voice').value === 'emma'")
    assert chat.page.is_checked("#enhance")


# --- accessibility


def test_every_control_has_a_name(chat: Tab) -> None:
    chat.page.click("#open-settings")
    nameless = chat.page.evaluate("""() => [
      ...document.querySelectorAll('button, a, input, select, textarea, meter, progress'),
    ].filter((e) => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() ||
                       [...(e.labels ?? [])].some((label) => label.textContent.trim())))
      .map((e) => e.outerHTML)""")
    assert nameless == []


def test_the_keyboard_reaches_every_control_with_visible_focus(chat: Tab) -> None:
    reached = []
    for _ in range(24):
        chat.page.keyboard.press("Tab")
        reached.append(chat.page.evaluate("document.activeElement.id || document.activeElement.value"))
    assert {"fresh", "open-settings", "theme", "captions-toggle", "mute", "message", "mic", "send"} <= set(reached)
    chat.page.focus("#theme")
    chat.page.keyboard.press("Shift+Tab")
    style = "getComputedStyle(document.activeElement)"
    assert (
        chat.page.evaluate(f"{style}.outlineStyle") == "solid" and chat.page.evaluate(f"{style}.outlineWidth") == "3px"
    )


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        *(("ink", "paper"), ("ink", "raised"), ("ink", "sunken"), ("soft", "paper"), ("soft", "raised")),
        *(("soft", "sunken"), ("accent-ink", "accent"), ("error", "raised"), ("ink", "error-wash")),
        *(("error", "error-wash"), ("accent", "raised"), ("ink", "accent-wash")),
    ],
)
def test_text_has_enough_contrast(theme: str, ink: str, paper: str) -> None:
    """WCAG 2.2 AA: at least 4.5 to 1."""
    light, dark = (ROOT / "web" / "style.css").read_text().split(':root[data-theme="dark"]')
    tokens = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light if theme == "light" else dark.split("}")[0]))
    one, other = sorted((luminance(tokens[ink]), luminance(tokens[paper])))
    assert (other + 0.05) / (one + 0.05) >= 4.5


def test_motion_is_reduced_on_request(served: tuple[str, State], tab: Any) -> None:
    page = tab(served[0], reduced_motion="reduce").open().page
    duration = "parseFloat(getComputedStyle(element).transitionDuration)"
    longest = page.evaluate(f"Math.max(...[...document.querySelectorAll('*')].map((element) => {duration}))")
    assert longest < 0.001


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_nothing_overflows_and_targets_are_large(served: tuple[str, State], tab: Any, theme: str) -> None:
    phone = tab(served[0], viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme=theme)
    phone.open()
    served[1].reply = "Hello, nice to meet you. Here is a sentence that is long enough to need two lines of captions."
    phone.send("Hello")
    phone.until("document.querySelector('#caption').textContent.startsWith('Here')")
    phone.shot(f"phone-{theme}")
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    small = phone.page.evaluate("""() => [...document.querySelectorAll('button, textarea')]
      .filter((e) => e.checkVisibility())
      .map((e) => [e.id, e.getBoundingClientRect()])
      .filter(([, { width, height }]) => Math.min(width, height) < 34)
      .map(([id]) => id)""")
    assert small == []
    screen = phone.page.locator("#screen").bounding_box()
    caption = phone.page.locator("#caption").bounding_box()
    mouth_bottom = screen["y"] + screen["height"] * (MOUTH_BOTTOM / 512)
    assert caption["y"] > mouth_bottom  # captions never cover the lips
