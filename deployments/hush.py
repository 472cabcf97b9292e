"""Has a session fall silent: what it says, what waits, and answers that would go on. Belongs to the ingress."""

# no `from __future__ import annotations`: part of what serve.ingress looks at

from typing import Any


async def hush(stitch: Any, chat: Any, session_id: str) -> dict[str, Any]:
    """Stop a session's speech at once, then its answers; how much was stopped, when all has left.

    stitch, chat: their handles. Raises SessionNotFound, IdError.
    """
    stitch = stitch.options(session_id=session_id)
    at_once: int = await stitch.cut.remote(session_id)  # what is heard ends now, however long the rest takes
    await chat.interrupt.remote(session_id)
    answer: dict[str, Any] = await stitch.interrupt.remote(session_id)  # an answer may have begun to speak meanwhile
    return {**answer, "interrupted": answer["interrupted"] + at_once}
