"""Combines a face's position (landmarks: noisy, no drift) with its motion (optical flow: precise, but it drifts).

Both are weighted by their measured noise. The least-squares problem of a scene is a chain, so a Kalman filter and the
smoother of Rauch, Tung and Striebel (1965) solve it exactly, in one forward and one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.avatar.flow import Motion

Float64 = npt.NDArray[np.float64]

MIN_SHARE = 0.5  # of the features must agree on a motion, otherwise only the landmarks count
MIN_VARIANCE = 1e-4**2  # px² or rad²
DRIFT_PX = 0.01  # error of a motion that its features' noise does not include
LAG = 12  # frames between which landmark errors are compared: half a second
MAX_CORRELATION = 0.9  # upper limit of the estimated correlation of landmark errors from frame to frame
OUTLIER = 3.5  # standard deviations beyond which landmarks weigh less
ROUNDS = 3  # of reweighting outliers, and of placing motions at the fused centres


def fused(
    seen: Float64,
    motions: Sequence[Motion | None],
    has_face: npt.NDArray[np.bool_],
    scenes: Sequence[slice],
    causal: bool = False,
) -> Float64:
    """Return the series `seen` (n, 4) of landmarks, fused with `motions` (n; entry k is from frame k - 1 to k).

    Columns: angle (rad, unwrapped), log of the scale, x and y of the crop's centre in frame px. Rows without a face are
    ignored and returned unchanged. causal: use only the past.
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
    """Return the share of frames with a face, without the first, whose motion is known."""
    good = sum(motion is not None and motion.share >= MIN_SHARE for motion in motions)
    return good / max(1, int(has_face.sum()) - 1)


def _scene(seen: Float64, links: list[Motion | None], causal: bool) -> Float64:
    """Fuse one scene: rows `(m, 4)`, and the motions between them (m - 1)."""
    found, weights = seen, np.ones_like(seen)
    for _ in range(ROUNDS):
        steps, loose = _steps(found, links)
        noise = landmark_noise(seen, steps, loose)
        found = chain(seen, noise / weights, steps, loose, causal)
        deviation = np.abs(seen - found) / np.sqrt(np.maximum(_robust_variance(seen - found), MIN_VARIANCE))
        weights = np.minimum(1.0, OUTLIER / np.maximum(deviation, 1e-9))
    return found


def _steps(rows: Float64, links: list[Motion | None]) -> tuple[Float64, Float64]:
    """The change that the motions predict between rows, and its variance, `(m - 1, 4)`; inf where it is not known."""
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
    """Estimate the effective variance `(4,)` of a frame's landmarks, from their difference to the motions.

    Landmark errors are correlated from frame to frame, because the detector tracks, so m frames carry less information
    than m independent ones: the variance is multiplied by (1 + r) / (1 - r), as for the mean of an autoregressive
    series. r and the variance are estimated from differences over one frame and over half a second.
    """
    known = np.isfinite(variances[:, 0])
    if known.sum() < 3:
        return np.full(4, 1.0)  # there are no motions to compare with
    path = np.concatenate([np.zeros((1, 4)), np.cumsum(np.where(known[:, None], steps, np.diff(seen, axis=0)), 0)])
    error = seen - path
    lag = min(LAG, len(seen) - 1)
    near, far = (np.mean((error[gap:] - error[:-gap]) ** 2, axis=0) / 2 for gap in (1, lag))
    far = np.maximum(np.maximum(far, near), MIN_VARIANCE)
    r = np.clip(1 - near / far, 0, MAX_CORRELATION)
    return np.asarray(far * (1 + r) / (1 - r))


def chain(seen: Float64, noise: Float64, steps: Float64, variances: Float64, causal: bool = False) -> Float64:
    """Return the rows x `(m, c)` that minimise Σ (x_k - seen_k)² / noise + Σ (x_k+1 - x_k - steps_k)² / variances_k.

    noise: `(c,)` or `(m, c)`. variances: `(m - 1, c)`, inf where there is no step. causal: each row depends only on the
    rows before it (the forward pass of the Kalman filter).
    """
    count = len(seen)
    noise = np.maximum(np.broadcast_to(noise, seen.shape), MIN_VARIANCE)
    filtered, variance = seen.copy(), noise.copy()
    predicted, predicted_variance = np.zeros_like(seen), np.full(seen.shape, np.inf)
    for k in range(1, count):
        predicted[k] = filtered[k - 1] + steps[k - 1]
        predicted_variance[k] = variance[k - 1] + np.maximum(variances[k - 1], MIN_VARIANCE)
        gain = 1 / (1 + noise[k] / predicted_variance[k])  # 1 where the step is not known
        filtered[k] = predicted[k] + gain * (seen[k] - predicted[k])
        variance[k] = gain * noise[k]
    if causal:
        return filtered
    rows = filtered.copy()
    for k in range(count - 2, -1, -1):
        rows[k] += variance[k] / predicted_variance[k + 1] * (rows[k + 1] - predicted[k + 1])
    return rows


def _robust_variance(error: Float64) -> Float64:
    """Variance `(c,)` from the median absolute deviation."""
    return np.asarray((1.4826 * np.median(np.abs(error - np.median(error, axis=0)), axis=0)) ** 2)
