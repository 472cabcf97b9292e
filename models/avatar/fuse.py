"""Joins where a face is (landmarks: noisy, without drift) with how it moved (tracking: precise, drifts). No pictures.

Both are weighed by their own measured noise: the least squares over a scene is a chain, so a Kalman filter and the
smoother of Rauch, Tung and Striebel (1965) solve it exactly, in one pass forth and one back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.avatar.flow import Motion

Float64 = npt.NDArray[np.float64]

MIN_SHARE = 0.5  # of the features must agree on a motion, else the landmarks alone count
FLOOR = 1e-4**2  # variance below which nothing is believed, px² or rad²
DRIFT_PX = 0.01  # that a motion is wrong by, whatever its features say
LAG = 12  # frames over which landmark errors are compared: half a second
MAX_LINK = 0.9  # correlation of landmark errors from frame to frame that is believed at most
OUTLIER = 3.5  # standard deviations from where landmarks count less
ROUNDS = 3  # of weighing outliers, and of placing motions at the fused centres


def fused(
    seen: Float64,
    motions: Sequence[Motion | None],
    has_face: npt.NDArray[np.bool_],
    scenes: Sequence[slice],
    causal: bool = False,
) -> Float64:
    """Series `(n, 4)` of landmarks joined with `motions` (n; entry k from frame k - 1 to k), same columns.

    Columns: angle (rad, unwrapped), log of the scale, x and y of the crop's middle in frame px. Rows without a face are
    ignored, and come back as they were. causal: use the past alone.
    """
    out = seen.copy()
    for scene in scenes:
        frames = np.arange(scene.start, scene.stop)[has_face[scene]]
        if len(frames) < 2:
            continue
        linked = np.diff(frames) == 1
        links = [motions[k] if joined else None for k, joined in zip(frames[1:], linked, strict=True)]
        links = [link if link is not None and link.share >= MIN_SHARE else None for link in links]
        out[frames] = _scene(seen[frames], links, causal)
    return out


def tracked_share(motions: Sequence[Motion | None], has_face: npt.NDArray[np.bool_]) -> float:
    """The share of frames with a face, but the first, whose motion is known."""
    good = sum(motion is not None and motion.share >= MIN_SHARE for motion in motions)
    return good / max(1, int(has_face.sum()) - 1)


def _scene(seen: Float64, links: list[Motion | None], causal: bool) -> Float64:
    """One scene's rows `(m, 4)`, and what leads from each to the next (m - 1)."""
    found, weights = seen, np.ones_like(seen)
    for _ in range(ROUNDS):
        steps, loose = _steps(found, links)
        noise = landmark_noise(seen, steps, loose)
        found = chain(seen, noise / weights, steps, loose, causal)
        away = np.abs(seen - found) / np.sqrt(np.maximum(_spread(seen - found), FLOOR))
        weights = np.minimum(1.0, OUTLIER / np.maximum(away, 1e-9))
    return found


def _steps(rows: Float64, links: list[Motion | None]) -> tuple[Float64, Float64]:
    """What the motions add to each row but the last, and its variance, both `(m - 1, 4)`; inf where none is known."""
    steps, variances = np.zeros((len(links), 4)), np.full((len(links), 4), np.inf)
    for k, link in enumerate(links):
        if link is None:
            continue
        place = complex(rows[k, 2], rows[k, 3])
        moved = link.factor * place + link.shift - place
        steps[k] = np.angle(link.factor), np.log(abs(link.factor)), moved.real, moved.imag
        lever = DRIFT_PX / link.spread_px
        variances[k, :2] = link.turn_variance + lever**2
        variances[k, 2:] = link.variance_at(place) + DRIFT_PX**2
    return steps, variances


def landmark_noise(seen: Float64, steps: Float64, variances: Float64) -> Float64:
    """Variance `(4,)` with which a frame's landmarks count, from what they say beyond the motions.

    Landmark errors are alike from frame to frame (a detector follows itself), so that m frames are worth fewer: their
    variance is raised by (1 + r) / (1 - r), as the mean of an autoregressive series has it. r and the variance come
    from differences over one frame and over half a second.
    """
    known = np.isfinite(variances[:, 0])
    if known.sum() < 3:
        return np.full(4, 1.0)  # nothing to weigh them against
    path = np.concatenate([np.zeros((1, 4)), np.cumsum(np.where(known[:, None], steps, np.diff(seen, axis=0)), 0)])
    beyond = seen - path
    lag = min(LAG, len(seen) - 1)
    near, far = (np.mean((beyond[gap:] - beyond[:-gap]) ** 2, axis=0) / 2 for gap in (1, lag))
    far = np.maximum(np.maximum(far, near), FLOOR)
    link = np.clip(1 - near / far, 0, MAX_LINK)
    return np.asarray(far * (1 + link) / (1 - link))


def chain(seen: Float64, noise: Float64, steps: Float64, variances: Float64, causal: bool = False) -> Float64:
    """The rows x `(m, c)` that minimise Σ (x_k - seen_k)² / noise + Σ (x_k+1 - x_k - steps_k)² / variances_k.

    noise: `(c,)` or `(m, c)`. variances: `(m - 1, c)`, inf where there is no step. causal: each row knows the rows
    before it alone.
    """
    count = len(seen)
    noise = np.maximum(np.broadcast_to(noise, seen.shape), FLOOR)
    ahead, known = seen.copy(), noise.copy()  # filtered rows and their variances
    expected, doubt = np.zeros_like(seen), np.full(seen.shape, np.inf)
    for k in range(1, count):
        expected[k] = ahead[k - 1] + steps[k - 1]
        doubt[k] = known[k - 1] + np.maximum(variances[k - 1], FLOOR)
        gain = 1 / (1 + noise[k] / doubt[k])  # 1 where nothing is known of the step
        ahead[k] = expected[k] + gain * (seen[k] - expected[k])
        known[k] = gain * noise[k]
    if causal:
        return ahead
    rows = ahead.copy()
    for k in range(count - 2, -1, -1):
        rows[k] += known[k] / doubt[k + 1] * (rows[k + 1] - expected[k + 1])
    return rows


def _spread(error: Float64) -> Float64:
    """Robust variance `(c,)`."""
    return np.asarray((1.4826 * np.median(np.abs(error - np.median(error, axis=0)), axis=0)) ** 2)
