"""The envelope of every answer: an id, security headers, and a line in the log."""

from __future__ import annotations

import logging
import os
import re
from itertools import count
from time import perf_counter, time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attention_service.api.afterwards import Afterwards
from attention_service.api.scopes import is_probe, own_path
from attention_service.api.security_headers import security_headers
from attention_service.api.traces import name_request, trace_of_request
from attention_service.serving.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

_LINE = "%(method)s %(path)s %(status)d %(duration_ms).1f ms %(request_id)s"
# What routes leave in the state to be told; a record's own `module` is that of Python.
_NOTED = ("code", "attention_module", "request_bytes", "answer_bytes")
# What lines for people have of all that, in this order.
_MORE = {
    "code": " %s",
    "attention_module": " %s",
    "queue_ms": " queue %.1f ms",
    "compute_ms": " compute %.1f ms",
    "request_bytes": " in %d B",
    "answer_bytes": " out %d B",
}
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Envelope:
    """What every request and every answer has.

    `X-Request-ID` is echoed or made; it stands in the scope's state, the log and the trace. A line
    of the log names the request and its answer, how long phases took and how large bodies were,
    never what they hold. Probes are logged at the level of debugging. Once this process is about to
    end, answers close their connections: whoever keeps one alive asks elsewhere, and finds none
    closed under a request.
    """

    def __init__(
        self, app: ASGIApp, lifecycle: Lifecycle, afterwards: Afterwards, *, is_traced: bool
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._afterwards = afterwards
        self._is_traced = is_traced
        # Ids have to differ, not to be secret: random bytes for each take a system call.
        self._ids = os.urandom(8).hex()
        self._numbers = count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or f"{self._ids}{next(self._numbers):016x}"
        scope.setdefault("state", {})["request_id"] = request_id
        if self._is_traced:
            name_request(request_id, scope["query_string"])
        added = ((b"x-request-id", request_id.encode()), *security_headers(own_path(scope)))
        started = perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *added]
                if self._lifecycle.is_leaving:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            level = logging.DEBUG if is_probe(scope) else logging.INFO
            if logger.isEnabledFor(level):
                duration = perf_counter() - started
                trace = trace_of_request() if self._is_traced else {}
                self._afterwards.do(_log, level, scope, status, duration, time(), trace)


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return None


def _log(
    level: int, scope: Scope, status: int, seconds: float, at: float, trace: dict[str, str]
) -> None:
    """Write a line.

    Args:
        level: of the line.
        scope: of the request.
        status: of its answer.
        seconds: that it took.
        at: when it ended, in seconds since the epoch.
        trace: that it is part of.
    """
    state, client = scope["state"], scope["client"]
    fields = {
        "method": scope["method"],
        "path": scope["raw_path"].decode("latin-1"),  # still escaped: no line can be forged
        "status": status,
        "duration_ms": round(seconds * 1e3, 3),
        "request_id": state["request_id"],
        "caller": state.get("caller") or (client[0] if client else ""),
        **{name: state[name] for name in _NOTED if name in state},
        **(state["watch"].milliseconds() if "watch" in state else {}),
        **trace,
    }
    more = [form % fields[name] for name, form in _MORE.items() if name in fields]
    line = _LINE % fields + "".join(more)
    # Made here: to look up who calls the logger takes as long as all the rest.
    record = logging.LogRecord(logger.name, level, __file__, 0, line, (), None)
    record.created, record.msecs = at, at % 1 * 1e3
    vars(record).update(fields)
    logger.handle(record)
