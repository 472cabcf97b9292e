"""models.avatar.fuse: landmarks and tracked motion, weighted by their noise."""

import itertools

import numpy as np
import pytest

from models.avatar.flow import Motion
from models.avatar.fuse import chain, fused, landmark_noise

N = 120
ALL = np.ones(N, bool)
ONE_SCENE = [slice(0, N)]


def path(n: int = N) -> np.ndarray:
    """Angle, log scale, x, y of a swaying head."""
    t = np.arange(n) / 25 * 2 * np.pi
    return np.stack([0.05 * np.sin(0.4 * t), 0.02 * np.sin(0.3 * t), 200 + 9 * np.sin(0.6 * t), 150 + 5 * np.cos(t)], 1)


def motions(true: np.ndarray, noise_px: float = 0.02, seed: int = 0) -> list[Motion | None]:
    """The motions of such a path, with features 20 px above the crop's centre."""
    random, found = np.random.default_rng(seed), [None]
    for before, after in itertools.pairwise(true):
        factor = np.exp(complex(after[1] - before[1], after[0] - before[0]))
        start, end = complex(*before[2:]), complex(*after[2:])
        slip = complex(*random.normal(scale=noise_px, size=2))
        middle = start - 20j
        found.append(Motion(complex(factor), end - factor * start + slip, 1.0, noise_px * 5, 25.0, middle, 30.0))
    return found


def landmark_rows(true: np.ndarray, noise_px: float, link: float = 0.0, seed: int = 1) -> np.ndarray:
    """The path with that noise in x and y, correlated from frame to frame by `link`."""
    random, error = np.random.default_rng(seed), np.zeros_like(true)
    fresh = random.normal(size=true.shape) * [noise_px / 100, noise_px / 100, noise_px, noise_px]
    for k in range(len(true)):
        error[k] = link * error[k - 1] * (k > 0) + np.sqrt(1 - link**2) * fresh[k]
    return true + error


def rms(error: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean()))


def test_the_chain_is_the_least_squares_solution() -> None:
    """The two passes against one dense system, with different noise per row and a missing step."""
    random = np.random.default_rng(0)
    seen, steps = random.normal(size=(20, 2)), random.normal(size=(19, 2))
    noise, variances = random.uniform(0.5, 2, (20, 2)), random.uniform(0.01, 0.5, (19, 2))
    variances[7] = np.inf
    rows = chain(seen, noise, steps, variances)
    for column in range(2):
        system, wanted = [np.eye(20) / np.sqrt(noise[:, column, None])], [seen[:, column] / np.sqrt(noise[:, column])]
        for k in range(19):
            if np.isfinite(variances[k, column]):
                row = np.zeros((1, 20))
                row[0, k : k + 2] = -1, 1
                system.append(row / np.sqrt(variances[k, column]))
                wanted.append(np.array([steps[k, column] / np.sqrt(variances[k, column])]))
        solution, *_ = np.linalg.lstsq(np.concatenate(system), np.concatenate(wanted), rcond=None)
        assert np.abs(rows[:, column] - solution).max() < 1e-9


def test_the_causal_chain_uses_only_the_past() -> None:
    random = np.random.default_rng(0)
    seen, steps, variances = random.normal(size=(20, 2)), random.normal(size=(19, 2)), np.full((19, 2), 0.1)
    rows = chain(seen, np.ones(2), steps, variances, causal=True)
    for k in (5, 12, 19):
        part = chain(seen[: k + 1], np.ones(2), steps[:k], variances[:k])
        assert np.abs(rows[k] - part[-1]).max() < 1e-9


@pytest.mark.parametrize("link", [0.0, 0.8])
def test_the_fused_path_is_much_better_than_landmarks(link: float) -> None:
    """Landmark noise 0.7 px, tracking noise 0.02 px per frame; fused less than 0.2 px, with a tenth of the jitter."""
    true = path()
    seen = landmark_rows(true, 0.7, link)
    found = fused(seen, motions(true), ALL, ONE_SCENE)
    assert rms((seen - true)[:, 2:]) > 0.6
    assert rms((found - true)[:, 2:] - (found - true)[:, 2:].mean(0)) < 0.2
    assert rms(np.diff(found - true, 2, axis=0)[:, 2:]) < 0.1 * rms(np.diff(seen - true, 2, axis=0)[:, 2:])


def test_landmarks_limit_the_drift() -> None:
    """Each motion is wrong by 0.05 px in the same direction: 30 px in 600 frames. The fused path stays within 3 px."""
    true = path(600)
    drifting = [
        None if m is None else Motion(m.factor, m.shift + 0.05, 1.0, 0.1, 25.0, m.middle, 30.0) for m in motions(true)
    ]
    found = fused(landmark_rows(true, 0.7), drifting, np.ones(600, bool), [slice(0, 600)])
    assert np.abs((found - true)[:, 2]).max() < 3


def test_poor_tracking_is_ignored() -> None:
    true, share = path(), 0.3
    seen = landmark_rows(true, 0.7)
    poor = [
        None if m is None else Motion(m.factor, m.shift + 3, share, m.noise_px, 25.0, m.middle, 30.0)
        for m in motions(true)
    ]
    assert np.allclose(fused(seen, poor, ALL, ONE_SCENE), seen, atol=1e-9)
    assert np.allclose(fused(seen, [None] * N, ALL, ONE_SCENE), seen, atol=1e-9)


def test_an_outlier_of_the_landmarks_is_bridged() -> None:
    true = path()
    seen = landmark_rows(true, 0.3)
    seen[60, 2:] += 25
    found = fused(seen, motions(true), ALL, ONE_SCENE)
    assert np.abs((found - true)[55:66, 2:]).max() < 1


def test_motions_across_a_cut_or_a_gap_are_not_used() -> None:
    """Motions that are wrong by 40 px, at a cut and beside a frame without a face, change nothing."""
    true = path()
    true[60:, 2] += 100
    seen, given = landmark_rows(true, 0.3), motions(true)
    wrong = list(given)
    wrong[60] = Motion(1 + 0j, 40 + 0j, 1.0, 0.1, 25.0, 0j, 30.0)
    wrong[31] = wrong[60]
    has_face = ALL.copy()
    has_face[30] = False
    scenes = [slice(0, 60), slice(60, N)]
    one, other = (fused(seen, m, has_face, scenes)[has_face] for m in (given, wrong))
    assert np.array_equal(one, other)
    assert np.abs((one - true[has_face])[:, 2]).max() < 1


@pytest.mark.parametrize("link", [0.0, 0.7])
def test_correlated_noise_weighs_less(link: float) -> None:
    """The landmarks' variance is estimated from their errors, and multiplied by (1 + r) / (1 - r); mean of 8 paths."""
    true = path(2000)
    steps, variances = np.diff(true, axis=0), np.full((1999, 4), 1e-4)
    found = [landmark_noise(landmark_rows(true, 0.5, link, seed), steps, variances)[2] for seed in range(8)]
    assert np.mean(found) == pytest.approx(0.25 * (1 + link) / (1 - link), rel=0.25)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_shortest_scenes(n: int) -> None:
    true = path(n)
    assert np.isfinite(fused(true, motions(true), np.ones(n, bool), [slice(0, n)])).all()
