"""Ending a call whose caller has closed the connection."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive

from attention_service.serving.lifetime import Lifetime

# Most calls end sooner, and then nobody needs to look.
_MOMENT_SECONDS = 0.02


class HangUp:
    """While it is entered, a closed connection cancels the task that entered it.

    Args:
        receive: of the request, whose body was read.
        lifetime: of the call, which learns of it first.
    """

    def __init__(self, receive: Receive, lifetime: Lifetime) -> None:
        self._receive = receive
        self._lifetime = lifetime
        self._watch: asyncio.Task[None] | None = None
        self._call: asyncio.Task[object] | None = None

    def __enter__(self) -> None:
        """Begin to look, in a moment."""
        self._call = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_MOMENT_SECONDS, self._begin)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop looking."""
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        # What the watch ends with holds its frames, and these this.
        self._watch = self._call = None

    def _begin(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._lifetime.caller_is_gone = True
        if self._call is not None:
            self._call.cancel()
