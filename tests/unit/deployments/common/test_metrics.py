"""Metrics by name: gauges that nobody sets again go on being exported."""

from deployments.common import metrics


def test_each_gauge_is_repeated_with_its_tags_and_latest_value(monkeypatch):
    class Instrument:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            exported.append((self.name, value, tags))

    exported: list[tuple[str, float, dict[str, str]]] = []
    monkeypatch.setattr(metrics, "_instrument", Instrument)
    monkeypatch.setattr(metrics, "_GAUGES", {})
    metrics.set_gauge("warmtalk_start_s", 1.0, stage="TTS")
    metrics.set_gauge("warmtalk_start_s", 2.0, stage="Stitch")
    metrics.set_gauge("warmtalk_start_s", 3.0, stage="TTS")
    exported.clear()
    metrics.repeat_gauges()
    assert exported == [("warmtalk_start_s", 3.0, {"stage": "TTS"}), ("warmtalk_start_s", 2.0, {"stage": "Stitch"})]
