"""How long a call is worth going on with: its deadline, and a caller who still waits."""

from __future__ import annotations

from time import monotonic


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
