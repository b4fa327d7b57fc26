"""How long a call is worth going on with: its deadline, and a caller who still waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from time import monotonic
from typing import Any, TypeVar

Result = TypeVar("Result")


class Lifetime:
    """Looked at between the tiles of a call, by the threads that compute them.

    Args:
        seconds: from now to the deadline.

    Attributes:
        seconds: as given.
        caller_is_gone: whether the connection was closed.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.caller_is_gone = False
        self._end = monotonic() + seconds

    def shorten(self, seconds: float | None) -> None:
        """Let it end sooner, if it would not: so many seconds after it began."""
        if seconds is not None and seconds < self.seconds:
            self._end -= self.seconds - seconds
            self.seconds = seconds

    @property
    def left(self) -> float:
        """Seconds from now to the deadline."""
        return self._end - monotonic()

    def is_over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.caller_is_gone or monotonic() >= self._end


async def until(end: float, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work that is given up at some time, by ``monotonic``.

    Work that never waits gets no timer: of a small call it would take longer than to read its
    body or to send its answer.

    Raises:
        TimeoutError: it waited, and the time came.
    """
    try:
        awaited = work.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    async with asyncio.timeout(end - monotonic()):
        return await _Begun(work, awaited)


class _Begun(Generator[Any, Any, Result]):
    """The rest of a coroutine that waits for something."""

    def __init__(self, work: Coroutine[Any, Any, Result], awaited: object) -> None:
        self._work = work
        self._first = [awaited]

    def __await__(self) -> Generator[Any, Any, Result]:
        return self

    def send(self, value: Any) -> Any:
        return self._first.pop() if self._first else self._work.send(value)

    def throw(self, *error: Any) -> Any:
        try:
            return self._work.throw(*error)
        finally:
            # The error holds this frame, which would hold the error, and all that it passed.
            del error
