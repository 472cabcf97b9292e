"""Medians with their uncertainty, and verdicts that noise does not change."""

from __future__ import annotations

import numpy as np
import pytest

from warmtalk.cli.profile.statistics import Measure, compare


def profile(compute_ms, rates, memory_mb=500.0) -> dict:
    row = {"medians": {"compute_ms": Measure.of(compute_ms).to_dict()}, "speed": {"8": Measure.of(rates).to_dict()}}
    return {"stages": {"LipSync": {**row, "memory": {"rss_mb": memory_mb, "gpu_mb": 0.0}, "start_s": 3.0}}}


def words(before: dict, now: dict) -> dict[str, str]:
    return {verdict.name: verdict.word for verdict in compare(before, now)}


def test_the_range_of_a_median_holds_it_in_95_of_100_draws() -> None:
    random = np.random.default_rng(3)
    held = [(m := Measure.of(random.normal(10, 2, 25))).low <= 10 <= m.high for _ in range(1000)]
    assert 0.93 <= np.mean(held) <= 0.99
    assert Measure.of([3.0, 1.0, 2.0]) == Measure(2.0, 1.0, 3.0, 3)


def test_noise_is_the_same_and_a_change_has_its_direction() -> None:
    random = np.random.default_rng(1)
    times, rates = random.normal(50, 5, 40), random.normal(100, 8, 12)
    again = profile(random.normal(50, 5, 40), random.normal(100, 8, 12))
    assert set(words(profile(times, rates), again).values()) == {"same"}
    slower = words(profile(times, rates), profile(times * 1.5, rates / 1.5, 700))
    assert (slower["compute"], slower["speed at 8"], slower["memory"]) == ("worse", "worse", "worse")
    faster = words(profile(times, rates), profile(times / 2, rates * 2))
    assert (faster["compute"], faster["speed at 8"], faster["start"]) == ("better", "better", "same")


def test_clear_but_small_changes_are_the_same() -> None:
    exact = profile([50.0] * 40, [100.0] * 12)
    assert words(exact, profile([52.0] * 40, [97.0] * 12))["compute"] == "same"


def test_figures_of_one_profile_alone_are_named() -> None:
    before, now = profile([1.0], [1.0]), profile([1.0], [1.0])
    now["stages"]["Enhance"] = now["stages"].pop("LipSync")
    found = {(v.stage, v.word): v.change for v in compare(before, now)}
    assert found.keys() == {("LipSync", "gone"), ("Enhance", "new")} and set(found.values()) == {None}


@pytest.mark.parametrize("count", [1, 2, 6, 100])
def test_low_and_high_are_samples(count) -> None:
    values = list(range(count))
    measure = Measure.of(values)
    assert {measure.low, measure.high} <= set(values) and measure.low <= measure.median <= measure.high
