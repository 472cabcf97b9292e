"""The page of the operator: what it shows of a state, and that texts of the state stay texts."""

import copy
from typing import Any

import pytest

from tests.browser.chromium import Tab

pytestmark = pytest.mark.browser

HTML = "<img src=x onerror=\"document.title='owned'\">"
TIMES = {"p50": 4.0, "p95": 9.0, "p99": 12.0, "sum": 100.0}
RECENT = {"calls": 120, "frames": 960, "span_s": 60.0, "queue_ms": TIMES, "compute_ms": TIMES}


def replica(name: str, **own: Any) -> dict[str, Any]:
    shared = {"queued": 3, "recent": RECENT, "gpu_reserved_mb": 1800.0, "rss_mb": 912.0, "start_s": 4.2}
    return {"replica": name, **shared, "config": {"batch_size": 8, "engine": "openvino"}, **own}


def stage(*replicas: dict[str, Any], target: int | None = None, **states: int) -> dict[str, Any]:
    found = {"RUNNING": len(replicas), **states}
    return {
        "target": target or len(replicas),
        "status": "HEALTHY",
        "message": "",
        "states": found,
        "replicas": list(replicas),
    }


STATE = {
    "time_s": 1.0,
    "stages": {
        "Ingress": stage({"replica": "ing001", "viewers": 12, "webrtc": 2, "rss_mb": 300.0}),
        "Chat": stage(replica("cha001")),
        "TTS": stage(replica("tts001")),
        "AudioFeatures": stage(replica("aud001")),
        "LipSync": stage(
            replica("lip001", batches=10, batched_frames=60), replica("lip002", batches=10, batched_frames=80)
        ),
        "Enhance": stage(replica("enh001"), target=2, STARTING=1),
        "Stitch": stage(replica("sti001")),
        "Avatars": stage(replica("ava001")),
    },
    "sessions": [
        {"session_id": "alice", "owner": "Stitch#sti001", "speaking": True, "watched": True},
        {"session_id": HTML, "owner": "Stitch#sti001", "speaking": False, "watched": True},
    ],
    "viewers": {"viewers": 12, "webrtc": 2, "late": 0, "dropped": 0},
    "errors": [
        {
            **{"time_s": 1.7e9, "stage": "LipSync", "code": "stage_failed", "message": HTML},
            **{"session_id": "alice", "request_id": "r-1", "replica": "lip001"},
        }
    ],
}


@pytest.fixture
def admin(served, tab):
    """admin(**options of the browser) → the page, whose state is `page.answer`: a status and a body."""

    def open_page(**options: Any) -> Tab:
        page = tab(served[0], **options)
        page.answer = (200, copy.deepcopy(STATE))
        page.page.route("**/admin/state", lambda route: route.fulfill(status=page.answer[0], json=page.answer[1]))
        page.open("/admin", live=False)
        page.until("document.body.dataset.state === 'live'")
        return page

    return open_page


def card(page: Tab, stage: str) -> list[str]:
    return page.page.locator(".card", has=page.page.locator(f"h3:has-text('{stage}')")).inner_text().split()


def test_a_card_per_stage_shows_its_replicas_queue_times_fill_and_memory(admin):
    page = admin()
    heads = page.texts(".card h3")
    assert [head.split()[0] for head in heads] == list(STATE["stages"])
    assert "2 of 2" in heads[4] and "1 of 2" in heads[5]
    lines = [line.split() for line in page.texts(".card:nth-child(5) tbody tr")]
    times = ["4", "/", "9"]
    assert lines == [
        ["lip001", "3", *times, *times, "2", "75", "1,800", "912", "4.2"],
        ["lip002", "3", *times, *times, "2", "100", "1,800", "912", "4.2"],
    ]
    assert page.page.locator(".card:nth-child(6) .bad").count() == 1
    page.answer[1]["stages"]["LipSync"]["replicas"][0].update(batches=12, batched_frames=62)
    page.until("document.querySelector('.card:nth-child(5) tbody td:nth-child(6)').textContent === '13'")  # 2 of 16


def test_texts_of_the_state_are_shown_as_they_are(admin):
    page = admin()
    assert [row.split("\t")[0] for row in page.texts("#sessions tr")] == ["alice", HTML]
    assert HTML in page.texts("#errors tr")[0] and "r-1" in page.texts("#errors tr")[0]
    assert page.page.title() == "WarmTalk · Admin" and page.page.locator("main img").count() == 0
    assert page.page_errors == []


def test_an_opened_config_stays_open_and_a_failure_of_the_server_is_shown(admin):
    page = admin()
    page.page.click(".card:nth-child(5) summary")
    page.answer[1]["viewers"]["viewers"] = 13
    page.until("document.querySelector('#totals').textContent.includes('13')")
    assert "batch_size: 8" in page.page.locator(".card:nth-child(5) pre").inner_text()
    page.answer = (429, {"error": {"code": "busy", "message": "The controller is silent.", "remedy": "Wait."}})
    page.until("document.body.dataset.state === 'stale'")
    assert page.texts("#freshness") == ["The controller is silent. Wait."]
    assert page.page.locator(".card").count() == 8


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_desktop_and_a_phone_in_both_themes(admin, theme):
    for name, width in (("desktop", 1440), ("phone", 390)):
        page = admin(viewport={"width": width, "height": 1100}, color_scheme=theme)
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.page.evaluate("document.documentElement.dataset.theme") == theme
        page.shot(f"admin-{name}-{theme}")
