"""Has all replicas of Stitch forget an avatar that was removed. Belongs to the ingress; knows Stitch's handle."""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import logging
from typing import Any

from deployments.common.patience import within

log = logging.getLogger("ray.serve")

FORGETTING_S = 15.0  # for what a replica says to end, and for idle motion that is being coded


async def forgotten(stitch: Any, avatar_id: str) -> list[str]:
    """Have all replicas of Stitch forget an avatar that was removed; the sessions that ended with it.

    A replica that cannot be told finds out by itself (Stitch._forget_removed). stitch: its handle.
    """
    asked = stitch.broadcast("forget_avatar", avatar_id)
    try:
        answers = await within(FORGETTING_S, asked.results_async(return_exceptions=True))
    except TimeoutError:
        answers = []
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    if failed or not answers:
        log.warning("The avatar %s is removed; a replica of Stitch was not told: %s", avatar_id, failed or "no answer")
    return sorted({session_id for answer in answers if isinstance(answer, list) for session_id in answer})
