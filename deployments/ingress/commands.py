"""Commands that involve more than one stage: interrupt a session, and remove an avatar from all Stitch replicas."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import logging
from typing import Any

from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from deployments.common.errors import is_moved, to_warmtalk_error
from models.errors import MovedError, SessionNotFound

log = logging.getLogger("ray.serve")

MOVING_S, MAX_MOVES = 0.05, 40  # between two attempts while the session moves to another replica: two seconds
REMOVAL_TIMEOUT_S = 15.0  # for running speech to end, and for idle motion that is being encoded


async def interrupt_session(stitch: DeploymentHandle, chat: DeploymentHandle, session_id: str) -> dict[str, Any]:
    """Stop the speech of a session at once, then its chat answers. Return how many utterances were stopped.

    The session of a new chat does not exist before its first frame, but its first answer is stopped, too.
    Raises SessionNotFound if there is neither a session nor an answer.
    """
    stitch, stopped, missing = stitch.options(session_id=session_id), 0, None
    try:
        stopped = await stitch.interrupt_nowait.remote(session_id)  # first, because it is audible
    except (RayError, SessionNotFound) as error:
        missing = to_warmtalk_error(error)
        if not isinstance(missing, SessionNotFound):
            raise
    answers: int = await chat.interrupt.remote(session_id)
    if missing is not None and not answers:
        raise missing
    result = await _interrupt_at_owner(stitch, session_id)  # an answer may have begun to speak meanwhile
    return {**result, "interrupted": result["interrupted"] + stopped}


async def _interrupt_at_owner(stitch: DeploymentHandle, session_id: str) -> dict[str, Any]:
    """Interrupt, and wait until the session is silent. While it moves between replicas, try again."""
    for _ in range(MAX_MOVES):
        try:
            result: dict[str, Any] = await stitch.interrupt.remote(session_id)
            return result
        except (RayError, MovedError) as error:
            if not is_moved(error):
                raise
        await asyncio.sleep(MOVING_S)
    raise MovedError(f"The session {session_id!r} moves between replicas.", "Send the interrupt again.")


async def broadcast_avatar_removal(stitch: DeploymentHandle, avatar_id: str) -> list[str]:
    """Make all Stitch replicas drop a removed avatar. Return the sessions that ended because of it.

    A replica that does not answer notices the removal later by itself (Stitch._forget_removed).
    """
    call = stitch.broadcast("forget_avatar", avatar_id)
    answers: list[Any] = []
    try:
        async with asyncio.timeout(REMOVAL_TIMEOUT_S):
            answers = await call.results_async(return_exceptions=True)
    except TimeoutError:
        pass
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    if failed or not answers:
        log.warning("Avatar %s is removed, but a Stitch replica did not confirm it: %s", avatar_id, failed or "timeout")
    return sorted({session_id for answer in answers if isinstance(answer, list) for session_id in answer})
