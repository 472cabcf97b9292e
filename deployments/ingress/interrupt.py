"""Has a session fall silent: what it says, what waits, and answers that would go on. Belongs to the ingress."""

# no `from __future__ import annotations`: part of what serve.ingress looks at

from typing import Any

from ray.exceptions import RayError

from deployments.common.errors import to_warmtalk_error
from models.errors import SessionNotFound


async def hush(stitch: Any, chat: Any, session_id: str) -> dict[str, Any]:
    """Stop a session's speech at once, then its answers; how much was stopped, when all has left.

    A session that a chat opens is not there before its first frame, and what is to be its first answer ends, too.

    stitch, chat: their handles. Raises SessionNotFound where there is neither a session nor an answer, IdError.
    """
    stitch, at_once, missing = stitch.options(session_id=session_id), 0, None
    try:
        at_once = await stitch.cut.remote(session_id)  # what is heard ends now, however long the rest takes
    except (RayError, SessionNotFound) as error:
        missing = to_warmtalk_error(error)
        if not isinstance(missing, SessionNotFound):
            raise
    answers: int = await chat.interrupt.remote(session_id)
    if missing is not None and not answers:
        raise missing
    answer: dict[str, Any] = await stitch.interrupt.remote(session_id)  # an answer may have begun to speak meanwhile
    return {**answer, "interrupted": answer["interrupted"] + at_once}
