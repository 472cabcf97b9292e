"""How many replicas of Stitch there should be: by what is being said, and little by what is only watched.

Serve's own policy counts calls, and every session that somebody watches holds one, for as long as it is watched. This
one runs in Serve's controller, named by `policy` in Stitch's autoscaling_config; what else stands there is in force.
"""

from __future__ import annotations

from typing import Any

SPEAKING, WATCHED = "speaking", "watched"  # what Stitch.record_autoscaling_stats tells, of a replica


class BySpeech:
    """As many replicas as make `target_ongoing_requests` utterances each at a time.

    idle_share: of an utterance, what a session costs Stitch that is watched while it says nothing: a sign of life
    every few seconds. Its picture is played by the ingress.
    """

    def __init__(self, idle_share: float = 0.01) -> None:
        self._idle_share = idle_share

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """context: Serve's AutoscalingContext. Replicas that have told nothing yet leave the number as it is."""
        told = context.aggregated_metrics or {}
        if not told.get(SPEAKING):
            return context.target_num_replicas, {}
        speaking, watched = (sum(told.get(name, {}).values()) for name in (SPEAKING, WATCHED))
        load = speaking + self._idle_share * max(0.0, watched - speaking)
        return load / context.config.get_target_ongoing_requests(), {}
