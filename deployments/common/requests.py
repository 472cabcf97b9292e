"""What belongs to one request while it passes the stages: its id and trace for logs and spans, and its errors.

Serve sends the request id with every call of a handle. Its logs contain it, as text and as JSON.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from ray.serve import context as serve_context

from deployments.common.errors import cause_of
from deployments.common.metrics import increment
from models.errors import InterruptedSpeech, MovedError, WarmTalkError

log = logging.getLogger("ray.serve")

REQUEST_ID = re.compile(r"[!-~]{1,128}")  # visible ASCII: what logs and headers can carry
TRACE_PARENT_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
KEPT_ERRORS = 50
LEAST_STATUS = 429  # of kept errors: overload and failures, not what callers did wrong
NORMAL = (MovedError, InterruptedSpeech)  # no failures: their callers expect them

TRACE_PARENT: contextvars.ContextVar[str] = contextvars.ContextVar("trace_parent", default="")  # W3C Trace Context
SESSION: contextvars.ContextVar[str] = contextvars.ContextVar("session", default="")  # id, for logs
RECENT_ERRORS: deque[dict[str, Any]] = deque(maxlen=KEPT_ERRORS)  # of this process

Method = TypeVar("Method", bound=Callable[..., Any])


def request_id() -> str:
    """The id of the request that this task serves; "" outside of one."""
    return str(serve_context._get_serve_request_context().request_id)


def use_request_id(value: str) -> None:
    """Let this task, and the calls that it makes, have this request id."""
    serve_context._serve_request_context.set(replace(serve_context._get_serve_request_context(), request_id=value))


def detached() -> contextvars.Context:
    """A new context for work that outlives its request: it keeps the id and the trace of the request.

    Serve cancels calls that are made in a request's own context when that request ends.
    """
    context = contextvars.Context()
    context.run(serve_context._serve_request_context.set, serve_context._RequestContext(request_id=request_id()))
    context.run(TRACE_PARENT.set, TRACE_PARENT.get())
    return context


def record_error(stage: str, error: WarmTalkError | BaseException) -> None:
    """Count an error by its code, and keep it for the page of the operator."""
    known = error if isinstance(error, WarmTalkError) else WarmTalkError(type(error).__name__)
    increment("warmtalk_errors_total", stage=stage, code=known.code)
    if known.status >= LEAST_STATUS:
        facts = {"time_s": time.time(), "stage": stage, "code": known.code, "message": str(known)}
        RECENT_ERRORS.append(facts | {"request_id": request_id(), "session_id": SESSION.get()})


def sent_error(error: WarmTalkError | Mapping[str, str]) -> dict[str, str]:
    """An error as a client of the ingress gets it, with the id of its request; also recorded."""
    if isinstance(error, WarmTalkError):
        record_error("Ingress", error)
        error = error.to_dict()
    else:
        increment("warmtalk_errors_total", stage="Ingress", code=error["code"])
    return {**error, "request_id": request_id()}


def stage_call(method: Method) -> Method:
    """Decorates a public method of a stage: counts its errors, and puts the session id into the logs of the call.

    The session id is the argument `session_id`, or that of a first argument which is a message.
    """
    names = list(inspect.signature(method).parameters)

    @contextmanager
    def recorded(given: tuple[Any, ...], named: dict[str, Any]) -> Iterator[None]:
        arguments = dict(zip(names, given, strict=False)) | named
        message = arguments.get(names[1]) if len(names) > 1 else None
        SESSION.set(str(arguments.get("session_id") or getattr(message, "session_id", "")))
        try:
            yield
        except Exception as error:
            if not isinstance(cause := cause_of(error), NORMAL):
                record_error(given[0].stage, cause)
            raise

    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def items(*given: Any, **named: Any) -> AsyncGenerator[Any, None]:
            with recorded(given, named):
                async with aclosing(method(*given, **named)) as found:
                    async for item in found:
                        yield item

        return items  # type: ignore[return-value]

    @functools.wraps(method)
    async def answer(*given: Any, **named: Any) -> Any:
        with recorded(given, named):
            return await method(*given, **named)

    return answer  # type: ignore[return-value]


class _SessionFilter(logging.Filter):
    """Adds the session id to the records of a call; Serve's JSON format shows it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if session_id := SESSION.get():
            record.session_id = session_id
        return True


log.addFilter(_SessionFilter())
