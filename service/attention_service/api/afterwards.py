"""What is written of calls once they are answered: together, a moment later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec

from attention_service.logs import together

Told = ParamSpec("Told")

# Nobody who reads a log sees this.
_MOMENT_SECONDS = 0.05
_MOST = 64


class Afterwards:
    """Work of the event loop that no caller waits for.

    Done one after the other it takes half the time that it takes in the middle of each call, for
    the processor then has at hand what it needs.
    """

    def __init__(self) -> None:
        self._work: list[Callable[[], object]] = []

    def do(self, work: Callable[Told, object], *args: Told.args, **kwargs: Told.kwargs) -> None:
        """Do it in a moment, in the order in which it was asked for."""
        if not self._work:
            asyncio.get_running_loop().call_later(_MOMENT_SECONDS, self.finish)
        self._work.append(partial(work, *args, **kwargs))
        if len(self._work) >= _MOST:
            self.finish()

    def finish(self) -> None:
        """Do all that is left."""
        work, self._work = self._work, []
        with together():
            for one in work:
                one()
