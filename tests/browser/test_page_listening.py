"""The microphone: transcribed, repeated, and hands-free."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import pytest

from tests.browser.chromium import Tab
from tests.browser.fake_state import State

pytestmark = pytest.mark.browser

# a fake microphone that alternates one second of hum and two of silence; `window.hum` is its state
HUM = """
navigator.mediaDevices.getUserMedia = async () => {
  const context = new AudioContext(), gain = context.createGain(), tone = context.createOscillator();
  const out = context.createMediaStreamDestination();
  tone.frequency.value = 180;
  gain.gain.value = 0;
  tone.connect(gain).connect(out);
  tone.start();
  await context.resume();
  window.hum = (seconds) => {
    gain.gain.setValueAtTime(0.3, context.currentTime);
    gain.gain.setValueAtTime(0, context.currentTime + seconds);
  };
  return out.stream;
};
"""
TURNS = """
async (levels) => {
  const { Turns } = await import('/web/microphone.js');
  const turns = new Turns(), changes = [];
  levels.forEach((db, k) => { const change = turns.push(db, 0.01); if (change) changes.push([change, k / 100]); });
  return changes;
}
"""


@pytest.fixture
def served(served: tuple[str, State]) -> tuple[str, State]:
    served[1].recognition = True
    return served


@pytest.fixture
def chat(served: tuple[str, State], tab: Any) -> Tab:
    opened: Tab = tab(served[0])
    opened.page.add_init_script(HUM)
    opened.open()
    opened.until("document.querySelector('#mode-hint').textContent === 'Type or speak; the presenter answers.'")
    return opened


def length_s(data: bytes) -> float:
    """Duration of the loud part of a WAV file in seconds."""
    with wave.open(io.BytesIO(data)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        blocks = samples[: len(samples) // 480 * 480].reshape(-1, 480)
        return float((np.sqrt((blocks**2).mean(1)) > 0.05).sum() * 480 / file.getframerate())


def record(chat: Tab, seconds: float) -> None:
    chat.page.click("#mic")
    chat.page.wait_for_selector("#recording:not([hidden])")
    chat.page.evaluate("hum(60)")
    chat.until("document.querySelector('#level').value > 0.3")
    chat.page.wait_for_timeout(1000 * seconds)


def test_a_recording_is_transcribed_shown_and_answered(chat: Tab, state: State) -> None:
    state.reply, state.think_s = "It is noon.", 1.0
    record(chat, 1.0)
    chat.shot("listening")
    chat.page.click("#send")
    chat.page.wait_for_selector(".bubble.user .typing")
    assert chat.page.get_attribute("#pill", "data-state") == "thinking"
    chat.shot("understanding")
    chat.state("speaking")
    assert chat.texts(".bubble.user")[0].split() == ["What", "time", "is", "it?", "spoken"]
    chat.shot("understood")
    (kind, data), (session,) = state.uploads[0], state.sessions.values()
    assert kind == "heard" and 0.9 < length_s(data) < 5 and len(state.uploads) == 1
    chat.state("live")
    assert session.messages[0] == {"role": "user", "content": "What time is it?"}
    assert chat.texts(".bubble.presenter") == [state.reply] and chat.page_errors == []


def test_in_say_mode_a_recording_is_not_transcribed(chat: Tab, state: State) -> None:
    chat.page.check("[name=mode][value=say]", force=True)
    assert "repeats your text or recording" in chat.page.inner_text("#mode-hint")
    assert chat.page.get_attribute("#mic", "aria-label") == "Record your voice for the presenter"
    record(chat, 0.8)
    chat.page.click("#send")
    chat.state("speaking")
    chat.until_served(lambda: state.uploads)
    assert state.uploads[0][0] in state.sessions and state.jobs == {}


def test_a_recording_without_speech_is_not_answered(chat: Tab, state: State) -> None:
    state.heard = ""
    record(chat, 0.6)
    chat.page.click("#send")
    chat.page.wait_for_selector("#notice:not([hidden])")
    assert chat.page.inner_text("#notice-title") == "No speech recognized."
    assert chat.texts(".bubble") == [] and state.jobs == {} and chat.page.is_visible("#empty")


def test_a_failed_transcription_shows_the_error_and_can_be_retried(chat: Tab, state: State) -> None:
    state.fail["transcribe"] = (429, {"code": "busy", "message": "All replicas are busy.", "remedy": "Wait."})
    record(chat, 0.6)
    chat.page.click("#send")
    chat.page.wait_for_selector(".bubble.failed")
    assert "All replicas are busy." in chat.texts(".bubble.failed")[0]
    del state.fail["transcribe"]
    chat.page.click(".bubble.failed button")
    chat.state("speaking")
    assert chat.texts(".bubble.failed") == [] and len(state.uploads) == 2
    assert state.uploads[0] == state.uploads[1]


def test_without_recognition_a_recording_is_played_through_the_face(served: tuple[str, State], tab: Any) -> None:
    served[1].recognition = False
    chat = tab(served[0])
    chat.page.add_init_script(HUM)
    chat.open()
    assert chat.page.inner_text("#mode-hint").endswith("Speech recognition is off.")
    record(chat, 0.6)
    chat.page.click("#send")
    chat.state("speaking")
    chat.until_served(lambda: served[1].uploads)
    assert served[1].uploads[0][0] in served[1].sessions and "recording" in chat.texts(".bubble.user")[0]


# --- hands-free


def test_a_turn_begins_with_speech_and_ends_after_a_pause(modules: Tab) -> None:
    def found(*parts: tuple[float, float]) -> Any:
        """parts: level in dB, seconds."""
        return modules.page.evaluate(TURNS, [db for db, seconds in parts for _ in range(round(100 * seconds))])

    quiet, loud = (-70.0, 1.0), (-25.0, 1.5)
    assert found(quiet, loud, quiet) == [
        ["begin", pytest.approx(1.11, abs=0.02)],
        ["end", pytest.approx(3.2, abs=0.02)],
    ]
    assert found(quiet, (-25.0, 0.08), quiet) == []  # a click
    assert found(quiet, loud, (-70.0, 0.6), loud, quiet)[1] == ["end", pytest.approx(5.3, abs=0.02)]  # a pause
    assert found((-45.0, 3.0)) == []  # constant background noise
    assert found((-45.0, 3.0), (-25.0, 1.0), (-45.0, 1.0))[0] == ["begin", pytest.approx(3.11, abs=0.02)]
    long = found(quiet, (-25.0, 40.0))
    assert long[1] == ["end", pytest.approx(31.1, abs=0.1)] and long[2][0] == "begin"


def test_hands_free_sends_each_turn_and_keeps_listening(chat: Tab, state: State) -> None:
    state.reply, state.think_s = "Yes.", 0.1
    chat.page.click("#mic")
    chat.page.check("#hands-free")
    chat.until("document.querySelector('#recording-time').textContent === 'Listening'")
    assert chat.page.get_attribute("#send", "aria-label") == "Stop listening"
    chat.shot("hands-free")
    for turn in (1, 2):
        chat.page.evaluate("hum(1.0)")
        chat.until("document.querySelector('#recording-time').textContent !== 'Listening'")
        chat.until_served(lambda turn=turn: len(state.uploads) == turn)
        chat.until(f"document.querySelectorAll('.bubble.user').length === {turn} && !document.querySelector('.typing')")
        chat.state("live")
    assert [kind for kind, _ in state.uploads] == ["heard", "heard"]
    assert all(0.85 < length_s(data) < 1.2 for _, data in state.uploads)  # no turn contains sound of another
    assert len(state.jobs) == 2 and chat.page.is_visible("#recording")
    chat.page.click("#send")  # no speech: nothing is sent
    assert (
        chat.page.get_attribute("#send", "aria-label") == "Send"
        and not chat.page.is_visible("#recording")
        and chat.page.is_visible("#message")
    )
    chat.page.wait_for_timeout(300)
    assert len(state.uploads) == 2


def test_speaking_interrupts_the_presenter(chat: Tab, state: State) -> None:
    state.reply = "This is a long sentence that goes on and on, and on, and on, for the sake of an interruption."
    chat.page.click("#mic")
    chat.page.check("#hands-free")
    chat.page.evaluate("hum(0.8)")
    chat.state("speaking")
    (session,) = state.sessions.values()
    assert session.interrupts == 0
    chat.page.wait_for_timeout(500)
    chat.page.evaluate("hum(0.8)")
    chat.until_served(lambda: session.interrupts == 1, 3)
    chat.until("document.querySelectorAll('.bubble.user').length === 2")
    assert "interrupted" in chat.texts(".bubble.presenter")[0]


def test_the_hands_free_setting_is_stored(chat: Tab) -> None:
    chat.page.click("#mic")
    chat.page.check("#hands-free")
    chat.page.keyboard.press("Escape")
    chat.page.reload()
    chat.page.click("#mic")
    chat.until("document.querySelector('#recording-time').textContent === 'Listening'")
    assert chat.page.is_checked("#hands-free")


def test_the_recording_bar_fits_on_a_phone(served: tuple[str, State], tab: Any) -> None:
    phone = tab(served[0], viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    served[1].recognition = False
    phone.page.add_init_script(HUM)
    phone.open()
    record(phone, 0.3)
    phone.page.check("#hands-free")
    phone.shot("phone-recording")
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 360
    entry = phone.page.locator("#entry").bounding_box()
    edge = entry["x"]
    for part in ("#recording .dot", "#recording-time", ".hands-free", "#recording-cancel", "#send"):
        box = phone.page.locator(part).bounding_box()
        assert box["x"] >= edge and box["width"] >= 6, part  # in order
        edge = box["x"] + box["width"]
        assert edge <= entry["x"] + entry["width"], part
        assert box["y"] >= entry["y"] and box["y"] + box["height"] <= entry["y"] + entry["height"] + 1, part
