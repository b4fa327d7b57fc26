"""The process that serves: uvicorn around the app, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from typing_extensions import override

from attention_service.api.app import create_app
from attention_service.heap import give_back_freed
from attention_service.priority import take_all_files
from attention_service.serving.lifecycle import Lifecycle
from attention_service.settings import Settings

logger = logging.getLogger(__name__)

# Longer than load balancers keep an idle connection (60 s as a rule): the side that
# closes first must be theirs, or they send a request into a closed connection.
KEEP_ALIVE_SECONDS = 75
# How long a process that another takes the place of waits for kept-alive connections to ask once
# more, and be told that theirs closes.
LEAVE_SECONDS = 5.0
_LOOK_SECONDS = 0.05


class AddressError(Exception):
    """The address is another's."""


class Server(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM.

    Readiness ends at once; the service goes on for ``drain_delay`` while balancers notice, each
    answer closing its connection, then finishes what it has taken and ends with status 0. SIGINT
    (Ctrl-C) does the same without the delay. A second signal kills it, whatever it is computing.

    Args:
        config: what is served, and where.
        lifecycle: its state.
        drain_delay: seconds.
        is_ready: called once it serves.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        drain_delay: float,
        is_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_delay = drain_delay
        self._tell_ready = is_ready
        self._was_told = False

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._tell_ready()

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn on SIGTERM and SIGINT."""
        if self._was_told:
            # As if nothing caught it: Python's own ways to end wait for the threads.
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._was_told = True
        # Not here: a signal may come while the log is being written, which is not reentrant.
        asyncio.get_running_loop().call_soon_threadsafe(
            self.drain if sig == signal.SIGTERM else self.stop
        )

    def drain(self) -> None:
        """Say that this is not ready, go on for the delay, and end."""
        if not self._lifecycle.is_ready:
            self.stop()
            return
        logger.info("draining for %.1f s", self._drain_delay)
        self._lifecycle.drain()
        asyncio.get_running_loop().call_later(self._drain_delay, self.stop)

    def stop(self) -> None:
        """Finish what was taken, and end."""
        self.should_exit = True


class Worker(Server):
    """A server that is one of several over one socket; its supervisor tells it what to do."""

    _leaving: asyncio.Task[None] | None = None

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn. Ctrl-C reaches every process of a terminal, the supervisor too."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    def leave(self) -> None:
        """Take no more connections, answer those there are, and end: others go on."""
        self._lifecycle.leave()
        for server in self.servers:
            server.close()
        self._leaving = asyncio.get_running_loop().create_task(self._wait_for_connections())

    async def _wait_for_connections(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                while self.server_state.connections:  # noqa: ASYNC110  uvicorn tells nobody
                    await asyncio.sleep(_LOOK_SECONDS)
        self.stop()


def config_of(settings: Settings, lifecycle: Lifecycle) -> uvicorn.Config:
    """How uvicorn serves the app of these settings.

    Raises:
        EngineError: the execution provider is not installed.
        KeysError: the file of keys cannot be used.
        TracesError: traces are asked for and cannot be sent.
    """
    return uvicorn.Config(
        create_app(settings, lifecycle),
        host=settings.host,
        port=settings.port,
        loop="auto",
        http="auto",
        log_config=None,
        access_log=False,  # ours has the request's id
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        server_header=False,
        # Whom to believe is the operator's choice; uvicorn would read it of a variable of its own.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
    )


def check_address(host: str, port: int) -> None:
    """See that the address is free, before modules are loaded for it.

    Raises:
        AddressError: another process serves it. What else is wrong with it shows when it is served.
    """
    with suppress(socket.gaierror):
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressError(
                        f"port {port} of {host} is in use: take another with --port or "
                        "ATTENTION_PORT, as in make serve PORT=8081"
                    ) from None


def tell_page(host: str, port: int) -> None:
    """Say where the page is."""
    logger.info("the page: http://%s:%d/", f"[{host}]" if ":" in host else host, port)


def serve(settings: Settings) -> None:
    """Serve in this process until a signal ends it.

    Raises:
        AddressError: another process serves the address.
        EngineError: the execution provider is not installed.
        KeysError: the file of keys cannot be used.
        TracesError: traces are asked for and cannot be sent.
    """
    take_all_files()
    if not give_back_freed():
        logger.info("memory that large calls took may stay with the process: not glibc")
    lifecycle = Lifecycle()

    def is_ready() -> None:
        tell_page(settings.host, server.servers[0].sockets[0].getsockname()[1])

    server = Server(config_of(settings, lifecycle), lifecycle, settings.drain_delay, is_ready)
    check_address(settings.host, settings.port)
    signal.signal(signal.SIGHUP, _explain)
    with suppress(SystemExit):  # how uvicorn ends where it cannot start
        server.run()
    if not server.started:
        sys.exit(1)  # why is in the log


def _explain(_: int, __: FrameType | None) -> None:
    """SIGHUP would end a process that does not handle it."""
    asyncio.get_running_loop().call_soon_threadsafe(
        logger.warning, "SIGHUP restarts workers one after the other; this is the only one"
    )
