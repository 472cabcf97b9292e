"""All metrics, by name. Ray exports them as `ray_warmtalk_*`; Serve adds deployment, replica and application.

docs/metrics.md is generated from this table, and a test compares the dashboard and the alert rules with it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # of a call
TTFF_MS = (50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 800, 1000, 1500, 2000, 3000, 4000, 5000, 10_000)
REAL_TIME_FACTORS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2, 4)
STAGE = ("stage",)


@dataclass(frozen=True, slots=True)
class Metric:
    """kind: the class in ray.serve.metrics. boundaries: of the buckets of a histogram."""

    kind: Literal["Counter", "Gauge", "Histogram"]
    description: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {
    # calls of a stage
    "warmtalk_stage_calls_total": Metric("Counter", "Calls per stage.", STAGE),
    "warmtalk_stage_frames_total": Metric("Counter", "Video frames processed per stage.", STAGE),
    "warmtalk_stage_queue_ms": Metric("Histogram", "Milliseconds of queue per call.", STAGE, MILLISECONDS),
    "warmtalk_stage_compute_ms": Metric("Histogram", "Milliseconds of compute per call.", STAGE, MILLISECONDS),
    "warmtalk_stage_transfer_ms": Metric(
        "Histogram", "Milliseconds of transfer per call, measured by Stitch.", STAGE, MILLISECONDS
    ),
    "warmtalk_queued_calls": Metric("Gauge", "Calls, or frames of LipSync and Enhance, that wait.", STAGE),
    "warmtalk_oldest_queued_s": Metric("Gauge", "Seconds for which the oldest of them has waited.", STAGE),
    "warmtalk_longest_job_s": Metric("Gauge", "Seconds for which the longest job on a compute thread has run.", STAGE),
    "warmtalk_batched_frames_total": Metric("Counter", "Frames in the batches of LipSync and Enhance.", STAGE),
    "warmtalk_batch_places_total": Metric(
        "Counter", "Places in these batches: `batch_size` each. Frames divided by places is the batch fill.", STAGE
    ),
    # failures
    "warmtalk_errors_total": Metric(
        "Counter",
        "Failed calls per stage and error code. `fenced`: a replica wrote to a session that another one owns. "
        "Ingress counts the errors that clients got.",
        ("stage", "code"),
    ),
    "warmtalk_retries_total": Metric("Counter", "Calls that Stitch made again because a replica failed."),
    "warmtalk_refused_total": Metric("Counter", "Utterances that were refused because of overload."),
    "warmtalk_handovers_total": Metric("Counter", "Sessions that another replica of Stitch took over."),
    "warmtalk_out_of_memory_total": Metric("Counter", "Batches that did not fit into memory.", STAGE),
    "warmtalk_batch_limit": Metric("Gauge", "Items per batch after one that did not fit.", STAGE),
    # utterances and viewers
    "warmtalk_ttff_ms": Metric("Histogram", "Milliseconds from a request to its first fragment.", boundaries=TTFF_MS),
    "warmtalk_rtf": Metric(
        "Histogram",
        "Seconds to make one second of video. About 1 in watched sessions, which are made at the speed of playback.",
        boundaries=REAL_TIME_FACTORS,
    ),
    "warmtalk_live_sessions": Metric("Gauge", "Watched sessions that speak or wait for their turn."),
    "warmtalk_watched_sessions": Metric("Gauge", "Sessions that somebody watches."),
    "warmtalk_degraded_sessions": Metric("Gauge", "Sessions that speak with less than the full enhancement."),
    "warmtalk_reduced_frames_total": Metric("Counter", "Live frames with less than the full enhancement."),
    "warmtalk_held_frames_total": Metric("Counter", "Frames for which live speech stopped because it was late."),
    "warmtalk_late_fragments_total": Metric("Counter", "Live fragments that reached an ingress after their time."),
    "warmtalk_viewers": Metric("Gauge", "Viewers of live sessions."),
    "warmtalk_webrtc_viewers": Metric("Gauge", "Viewers over WebRTC."),
    "warmtalk_capacity_frames": Metric("Gauge", "Measured capacity in frames per second; 0 until measured."),
    # replicas and storage
    "warmtalk_start_s": Metric("Gauge", "Seconds of the cold start: constructor and loading the engine.", STAGE),
    "warmtalk_gpu_memory_mb": Metric("Gauge", "MB of GPU memory that the replica's torch reserves.", STAGE),
    "warmtalk_cache_hits_total": Metric("Counter", "Avatars that were in memory.", STAGE),
    "warmtalk_cache_misses_total": Metric("Counter", "Avatars that were loaded from disk.", STAGE),
    "warmtalk_sessions": Metric("Gauge", "Sessions on disk, as each replica of Stitch counts them."),
    "warmtalk_sessions_used_ratio": Metric("Gauge", "Share of `max_sessions_gb` that they use, 0 to 1."),
    "warmtalk_disk_free_ratio": Metric("Gauge", "Free share of the disk of the sessions, 0 to 1."),
}


_GAUGES: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # by name and tags: the values set last


def increment(name: str, amount: float = 1, **tags: str) -> None:
    """Add to a counter."""
    if amount > 0:
        _instrument(name).inc(amount, tags)


def set_gauge(name: str, value: float, **tags: str) -> None:
    _GAUGES[name, tuple(tags.items())] = value
    _instrument(name).set(value, tags)


def repeat_gauges() -> None:
    """Set all gauges of this process again. Ray stops exporting one that is not set for some seconds."""
    for (name, tags), value in list(_GAUGES.items()):
        _instrument(name).set(value, dict(tags))


def observe(name: str, value: float, **tags: str) -> None:
    """Add a value to a histogram."""
    _instrument(name).observe(value, tags)


@functools.cache
def _instrument(name: str) -> Any:
    from ray.serve import metrics

    metric = METRICS[name]
    buckets = {"boundaries": list(metric.boundaries)} if metric.boundaries else {}
    return getattr(metrics, metric.kind)(name, metric.description, tag_keys=metric.tags, **buckets)
