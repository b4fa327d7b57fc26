"""Whether the service takes calls: starting, ready or draining."""

from __future__ import annotations

from typing import Literal


class Lifecycle:
    """The state that readiness tells. A draining service still answers what reaches it.

    Attributes:
        status: what readiness says.
        is_leaving: whether this process will end, so that connections are better closed.
    """

    def __init__(self) -> None:
        self.status: Literal["starting", "ok", "draining"] = "starting"
        self.is_leaving = False

    @property
    def is_ready(self) -> bool:
        """Whether a load balancer should send calls here."""
        return self.status == "ok"

    def ready(self) -> None:
        """Everything is loaded."""
        if self.status == "starting":
            self.status = "ok"

    def drain(self) -> None:
        """The service is about to end: balancers should look elsewhere."""
        self.status = "draining"
        self.is_leaving = True

    def leave(self) -> None:
        """The process is about to end, and others of the service go on."""
        self.is_leaving = True
