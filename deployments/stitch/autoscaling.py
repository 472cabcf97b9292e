"""The autoscaling policy of Stitch: replicas follow the number of utterances, not the number of viewers.

Serve's default policy counts ongoing calls, and each watched session is an ongoing call for as long as it is watched.
This policy runs in Serve's controller. `policy` in Stitch's autoscaling_config names it; the other options there apply.
"""

from __future__ import annotations

from typing import Any

SPEAKING, WATCHED = "speaking", "watched"  # metrics of each replica, from Stitch.record_autoscaling_stats


class BySpeech:
    """Enough replicas for `target_ongoing_requests` utterances per replica.

    idle_share: cost of a watched session that does not speak, relative to an utterance. Stitch only sends it a
    heartbeat every few seconds; the ingress plays its idle motion.
    """

    def __init__(self, idle_share: float = 0.01) -> None:
        self._idle_share = idle_share

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """context: Serve's AutoscalingContext. Without metrics the number of replicas stays as it is."""
        metrics = context.aggregated_metrics or {}
        if not metrics.get(SPEAKING):
            return context.target_num_replicas, {}
        speaking, watched = (sum(metrics.get(name, {}).values()) for name in (SPEAKING, WATCHED))
        load = speaking + self._idle_share * max(0.0, watched - speaking)
        return load / context.config.get_target_ongoing_requests(), {}
