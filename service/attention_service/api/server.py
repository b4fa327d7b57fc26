"""The process: uvicorn around the app, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from typing_extensions import override

from attention_service.api.app import create_app
from attention_service.heap import give_back_freed
from attention_service.serving.lifecycle import Lifecycle
from attention_service.settings import Settings

logger = logging.getLogger(__name__)

# Longer than load balancers keep an idle connection (60 s as a rule): the side that
# closes first must be theirs, or they send a request into a closed connection.
KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM.

    Readiness ends at once; the service goes on for ``drain_delay`` while balancers notice,
    then finishes what it has taken and ends with status 0; SIGINT (Ctrl-C) does the same
    without the delay. A second signal kills it, whatever it is computing.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, drain_delay: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_delay = drain_delay
        self._was_told = False

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn on SIGTERM and SIGINT."""
        if self._was_told:
            # As if nothing caught it: Python's own ways to end wait for the threads.
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._was_told = True
        # Not here: a signal may come while the log is being written, which is not reentrant.
        asyncio.get_running_loop().call_soon_threadsafe(self._end, sig)

    def _end(self, sig: int) -> None:
        if sig == signal.SIGTERM and self._lifecycle.is_ready:
            logger.info("draining for %.1f s", self._drain_delay)
            self._lifecycle.drain()
            asyncio.get_running_loop().call_later(self._drain_delay, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        EngineError: the execution provider is not installed.
        KeysError: the file of keys cannot be used.
        TracesError: traces are asked for and cannot be sent.
    """
    if not give_back_freed():
        logger.info("memory that large calls took may stay with the process: not glibc")
    lifecycle = Lifecycle()
    config = uvicorn.Config(
        create_app(settings, lifecycle),
        host=settings.host,
        port=settings.port,
        loop="auto",
        http="auto",
        log_config=None,
        access_log=False,  # ours has the request's id
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        server_header=False,
        # Trusting X-Forwarded-* is the operator's choice, and nothing here needs it.
        proxy_headers=False,
    )
    server = Server(config, lifecycle, settings.drain_delay)
    with suppress(SystemExit):  # how uvicorn ends where it cannot start
        server.run()
    if not server.started:
        sys.exit(1)  # why is in the log
