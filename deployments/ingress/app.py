"""The FastAPI application: error responses, middlewares, and the routes that need no stage.

`deployment.py` adds the routes of `routes/` and passes the app to serve.ingress, which copies it at import. Everything
that belongs to the app must be added before that.
"""

# no `from __future__ import annotations`: FastAPI must see the real types

import asyncio
import difflib
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from deployments.common.errors import is_own_cancellation, replica_lost_error, to_warmtalk_error
from deployments.common.requests import sent_error
from deployments.ingress.body_limit import BodyLimit
from deployments.ingress.request_ids import RequestIds
from deployments.ingress.security.allowed_hosts import AllowedHosts
from deployments.ingress.security.auth import Access, serve_login
from deployments.ingress.security.origins import CrossOrigin
from deployments.ingress.settings import replica_settings
from deployments.ingress.static_page import serve_page
from models.errors import BusyError, InputError, WarmTalkError
from models.runtime.disk_full import disk_full_error
from models.runtime.ids import MAX_QUOTED_CHARS

CLIENT_CLOSED_REQUEST = 499  # nginx's status for its log: the client never sees it
MESSAGES = {404: "There is nothing at this path.", 405: "This path does not accept that method."}
REMEDIES = {
    400: "See /docs for the form of the request.",
    404: "See /docs for the available paths.",
    405: "See /docs for the available paths.",
    408: "Send it again, without a pause.",
    413: "Send less at a time.",
}
MAX_DETAILS = 5  # validation errors that one response lists


class Route(APIRoute):
    """Maps errors of Serve to WarmTalkError, and refuses a POST with an unknown query option.

    Serve has its own handlers for some of its errors, which answer in plain text. A misspelt option of a POST would
    otherwise be ignored in silence, for instance `sesion_id`, and the speech would go to another session.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        options = [name for entry in self.dependant.query_params for name in _option_names(entry)]

        async def handle(http: Request) -> Response:
            try:
                if http.method == "POST":
                    _refuse_unknown_options(http.query_params, options)
                return await handler(http)
            except (RayError, RayServeException) as error:
                raise to_warmtalk_error(error) from error
            except OSError as error:
                if (full := disk_full_error(error)) is None:
                    raise
                raise full from error
            except asyncio.CancelledError as error:
                if is_own_cancellation():
                    raise
                raise replica_lost_error() from error

        return handle


def _option_names(entry: Any) -> list[str]:
    """The names in a query that belong to one parameter of a route. A model stands for all its fields."""
    kind = entry.field_info.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [entry.alias] if entry.alias != "self" else []  # the self of a method, until Serve binds it


def _refuse_unknown_options(query: Mapping[str, str], options: list[str]) -> None:
    """Raises InputError for a query option that the route does not have."""
    for name in query:
        if name not in (*options, "token"):  # security/auth.py reads `token`
            known = f"The options are {', '.join(options)}." if options else "This request has no options."
            near = difflib.get_close_matches(name, options, n=1)
            remedy = f"Did you mean {near[0]!r}? {known}" if near else known
            raise InputError(f"This request has no option {name[:MAX_QUOTED_CHARS]!r}.", remedy)


api = FastAPI(
    title="WarmTalk",
    version="0.1.0",
    summary="Text or speech in, a talking-head video stream out.",
    description='Every error is JSON: `{"error": {"code", "message", "remedy", "request_id"}}`.',
)
api.router.route_class = Route
# The middleware that is added last runs first.
api.add_middleware(BodyLimit, settings=replica_settings)
api.add_middleware(Access, settings=replica_settings)
api.add_middleware(CrossOrigin, settings=replica_settings)
api.add_middleware(AllowedHosts, settings=replica_settings)
api.add_middleware(RequestIds)
serve_page(api)
serve_login(api, replica_settings)

# --- error responses


def error_response(error: WarmTalkError) -> JSONResponse:
    headers = {"Retry-After": f"{math.ceil(error.retry_after_s)}"} if isinstance(error, BusyError) else None
    return JSONResponse({"error": sent_error(error)}, error.status, headers)


@api.exception_handler(WarmTalkError)
async def _on_error(http: Request, error: Exception) -> JSONResponse:
    return error_response(to_warmtalk_error(error))


@api.exception_handler(RequestValidationError)
async def _on_invalid(http: Request, error: RequestValidationError) -> JSONResponse:
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        at, why = found[0]["loc"][-1], found[0].get("ctx", {}).get("error", "it cannot be read")
        return error_response(InputError(f"The body is not JSON: {why} at character {at}.", REMEDIES[400]))
    if found[0]["type"] == "model_attributes_type" and len(found[0]["loc"]) == 1:
        remedy = f"Send a JSON object with Content-Type: application/json. {REMEDIES[400]}"
        return error_response(InputError("The body is not a JSON object.", remedy))
    details = "; ".join(_detail(item) for item in found[:MAX_DETAILS])
    more = f"; and {len(found) - MAX_DETAILS} more" if len(found) > MAX_DETAILS else ""
    return error_response(InputError(f"The request is not valid: {details}{more}.", REMEDIES[400]))


def _detail(item: dict[str, Any]) -> str:
    """The place and the kind of a validation error; a long name in the request is cut short."""
    place = ".".join(map(str, item["loc"][1:]))
    place = place if len(place) <= MAX_QUOTED_CHARS else f"{place[:MAX_QUOTED_CHARS]}…"
    return f"{place}: {item['msg']}".lstrip(": ")


@api.exception_handler(HTTPException)
async def _on_http(http: Request, error: HTTPException) -> JSONResponse:
    status = error.status_code
    if status == 400:  # FastAPI: Python's JSON reader gave up, because of deep nesting or a very long number
        return error_response(InputError("The body cannot be read as JSON.", REMEDIES[400]))
    message = MESSAGES.get(status, str(error.detail))
    answer = {"code": f"http_{status}", "message": message, "remedy": REMEDIES.get(status, "")}
    return JSONResponse({"error": sent_error(answer)}, status, error.headers)


@api.exception_handler(ClientDisconnect)
async def _on_disconnect(http: Request, error: Exception) -> Response:
    """The client left while it sent its body: nobody reads the response, and it is not an error of the server."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


@api.exception_handler(Exception)
async def _on_bug(http: Request, error: Exception) -> JSONResponse:
    return error_response(to_warmtalk_error(error))
