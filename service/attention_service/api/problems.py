"""Problems → HTTP: the one table from codes to statuses, and the answers made from it."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import cast

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from attention_service.api.scopes import own_path
from attention_service.api.security_headers import security_headers
from attention_service.api.traces import name_problem
from attention_wire.bodies import JSON, PROBLEM
from attention_wire.problems import TYPE_PREFIX, Code, ProblemDetails, ProblemError, dotted

logger = logging.getLogger(__name__)

_INFERENCE = "/v2"

STATUS: dict[Code, HTTPStatus] = {
    Code.MALFORMED_BODY: HTTPStatus.BAD_REQUEST,
    Code.MALFORMED_JSON: HTTPStatus.BAD_REQUEST,
    Code.MALFORMED_TENSOR: HTTPStatus.BAD_REQUEST,
    Code.TOO_DEEP: HTTPStatus.BAD_REQUEST,
    Code.DUPLICATE_FIELD: HTTPStatus.BAD_REQUEST,
    Code.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.UNKNOWN_MODULE: HTTPStatus.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    Code.BODY_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Code.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.ANSWER_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.MEMORY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.UNSUPPORTED_ENCODING: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.INVALID_FIELD: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNKNOWN_FIELD: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.MISSING_FIELD: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.INVALID_TENSOR: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.NON_FINITE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.OVERFLOW: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.TEXT_TOO_LONG: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.MODULE_KIND: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.MODULE_NOT_CHOSEN: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.QUEUE_FULL: HTTPStatus.TOO_MANY_REQUESTS,
    Code.NOT_READY: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DEADLINE: HTTPStatus.GATEWAY_TIMEOUT,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def problem_response(problem: ProblemError, request: Request) -> Response:
    """The answer to a problem: `application/problem+json`, or under `/v2` what its clients read."""
    status = STATUS[problem.code]
    name_problem(problem.code)
    state = request.scope.setdefault("state", {})
    state["code"] = str(problem.code)
    details = ProblemDetails(
        type=TYPE_PREFIX + problem.code,
        title=_title(problem.code),
        status=status,
        detail=problem.detail,
        code=problem.code,
        request_id=state.get("request_id"),
        errors=list(problem.errors),
    )
    headers = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(problem.retry_after))
    if problem.code is Code.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    # Names that a caller made up are echoed, and may hold what UTF-8 cannot.
    if own_path(request.scope).startswith(_INFERENCE):
        return Response(orjson.dumps({"error": _told(problem)}), status, headers, JSON)
    body = orjson.dumps(details.model_dump())
    return Response(body, status, headers, PROBLEM)


def _title(code: Code) -> str:
    words = code.replace("_", " ").capitalize()
    return words.replace("json", "JSON").replace("Non finite", "Non-finite")


def _told(problem: ProblemError) -> str:
    """All that is to be said of a problem, where one text is all that is read."""
    if len(problem.errors) < 2:
        return problem.detail
    return "; ".join(f"{dotted(field.loc)}: {field.msg}" for field in problem.errors)


async def _on_problem(request: Request, error: Exception) -> Response:
    return problem_response(cast(ProblemError, error), request)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The framework's own 404 and 405, in the form of all other problems."""
    error = cast(HTTPException, error)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _allowed((error.headers or {}).get("Allow", ""))
        response = problem_response(
            ProblemError(
                Code.METHOD_NOT_ALLOWED,
                f"{request.method} is not taken at {request.url.path}; use {allowed}.",
            ),
            request,
        )
        response.headers["Allow"] = allowed
        return response
    detail = f"There is nothing at {request.url.path}. /docs lists what there is."
    return problem_response(ProblemError(Code.NOT_FOUND, detail), request)


def _allowed(methods: str) -> str:
    """The methods of an `Allow`, with HEAD wherever GET is taken."""
    names = {name.strip() for name in methods.split(",") if name.strip()}
    return ", ".join(sorted(names | ({"HEAD"} if "GET" in names else set())))


async def _on_error(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = "The service failed on this request. The request id leads to its log."
    response = problem_response(ProblemError(Code.INTERNAL, detail), request)
    # Starlette sends this one past every middleware, so past the one that sets these.
    response.headers["X-Request-ID"] = request.scope.get("state", {}).get("request_id", "")
    response.raw_headers.extend(security_headers(request.scope["path"]))
    return response


def install(app: Starlette) -> None:
    """Answer every problem of an app as problem+json."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_error)
