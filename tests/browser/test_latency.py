"""The latency panel: live updates while an answer is made, and the history of first frames."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chromium import Tab
from tests.browser.fake_state import STAGES, State

pytestmark = pytest.mark.browser

NOTE = """() => {
  const value = document.querySelector('#bars li:nth-child(3) .value');
  window.drawn = [];
  new MutationObserver(() => drawn.push([performance.now() / 1000, value.textContent]))
    .observe(value, { childList: true, characterData: true, subtree: true });
}"""


def test_stage_bars_update_while_an_answer_is_made(served: tuple[str, State], tab: Any) -> None:
    chat: Tab = tab(served[0]).open()
    served[1].reply = "One sentence that is long enough to be looked at while it is made and said."
    chat.page.evaluate(NOTE)
    chat.send("Hello?")
    chat.until("'making' in document.querySelector('#latency').dataset")
    chat.page.wait_for_timeout(1000)
    chat.shot("latency-making")
    chat.state("live")
    drawn = chat.page.evaluate("drawn")
    values = [float(text.removesuffix(" ms")) for _, text in drawn if text.endswith(" ms")]
    assert values == sorted(values) and len(values) >= 4
    times = [at for at, _ in drawn[:-1]]
    assert (len(times) - 1) / (times[-1] - times[0]) >= 2  # updates per second
    assert chat.texts("#bars .value")[2] == f"{STAGES['LipSync'] / 1000:.2f} s"
    chat.until("!('making' in document.querySelector('#latency').dataset)")
    assert chat.page_errors == []


def test_the_sparkline_shows_the_first_frame_times_of_recent_answers(served: tuple[str, State], tab: Any) -> None:
    chat: Tab = tab(served[0]).open()
    served[1].reply = "Yes."
    assert not chat.page.is_visible("#spark")
    assert chat.page.inner_text(".figures").startswith("Send a message to see timings")
    for k in range(3):
        chat.send(f"Message {k}")
        chat.state("speaking")
        chat.state("live")
    points = chat.page.get_attribute("#spark-line", "points").split()
    assert len(points) == 3 and chat.page.is_visible("#spark")
    assert len({point.split(",")[1] for point in points}) == 1  # all answers took equally long
    spark = chat.page.locator("#spark").bounding_box()
    assert (spark["width"], spark["height"]) == (96, 24)
    assert "to first frame" in chat.page.inner_text(".figures") and "Say" not in chat.page.inner_text(".figures")
    label = "Time to first frame: 571 ms; median of the last 3: 571 ms; slowest: 571 ms"
    assert chat.page.get_attribute("#spark", "aria-label") == label
    chat.page.check("[name=mode][value=say]", force=True)
    chat.send("As it is.")
    chat.state("speaking")
    chat.until("document.querySelector('#figure-first').textContent === '493 ms'")  # before it is over
    assert chat.page.inner_text("#pill-text") == "Speaking"
    chat.state("live")
    assert len(chat.page.get_attribute("#spark-line", "points").split()) == 4
    chat.shot("latency")


def test_the_panel_fits_on_a_phone(served: tuple[str, State], tab: Any) -> None:
    phone: Tab = tab(served[0], viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True).open()
    served[1].reply = "Yes."
    for k in range(2):
        phone.send(f"Message {k}")
        phone.state("speaking")
        phone.state("live")
    phone.page.click("#latency summary")
    phone.send("And now?")
    phone.state("speaking")
    phone.page.wait_for_timeout(500)
    phone.shot("latency-phone")
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    assert not phone.page.is_visible("#spark")  # hidden: no room
    panel, figures = (phone.page.locator(name).bounding_box() for name in ("#latency", ".figures"))
    assert figures["y"] - panel["y"] < 20  # figures are at the top of the panel
