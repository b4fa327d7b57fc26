"""Several workers over one socket, and the process that looks after them.

The supervisor binds the socket and serves nothing itself. Workers are fresh processes that share
the socket, and nothing else: settings are divided among them. Over a pipe each says that it is
ready, and is told to drain, to stop, or to leave its place to another. Where the pipe ends, the
supervisor is gone, and the worker drains.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from attention_service.api.server import Worker, check_address, config_of, tell_page
from attention_service.api.traces import TracesError
from attention_service.attention.engine import EngineError
from attention_service.heap import give_back_freed
from attention_service.logs import configure
from attention_service.priority import take_all_files
from attention_service.serving.keys import KeysError
from attention_service.serving.lifecycle import Lifecycle
from attention_service.settings import Settings

logger = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")
_READY = "ready"
Order = Literal["drain", "stop", "leave"]

# A worker that does not get ready in this time is taken for one that does not start.
START_SECONDS = 300.0
# What a worker that leaves may take longer than its longest call.
GRACE_SECONDS = 15.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class _Hand:
    """A worker, as its supervisor sees it.

    Args:
        settings: its own.
        sock: what it serves.

    Attributes:
        process: it.
        ready: done once it serves, or has ended before; the result says whether it serves.
        ended: set once its process has.
    """

    def __init__(self, settings: Settings, sock: socket.socket) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(settings, sock, theirs), name="worker")
        self.process.start()
        theirs.close()
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[bool] = self._loop.create_future()
        self.ended = asyncio.Event()
        self._loop.add_reader(self._pipe.fileno(), self._hear)
        self._loop.add_reader(self.process.sentinel, self._end)

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"worker {self.process.pid}"

    def tell(self, order: Order) -> None:
        """Tell it what to do; one that is gone hears nothing."""
        with suppress(OSError):
            self._pipe.send(order)

    async def serves(self) -> bool:
        """Wait until it serves, and say whether it does; one that takes too long is killed."""
        try:
            async with asyncio.timeout(START_SECONDS):
                return await asyncio.shield(self.ready)
        except TimeoutError:
            self.process.kill()
            await self.ended.wait()
            return False

    def _hear(self) -> None:
        try:
            self._pipe.recv()
        except (EOFError, OSError):  # it is ending
            self._loop.remove_reader(self._pipe.fileno())
        else:
            self._settle(serves=True)

    def _end(self) -> None:
        self._loop.remove_reader(self.process.sentinel)
        self._loop.remove_reader(self._pipe.fileno())
        self.process.join()
        self._pipe.close()
        self._settle(serves=False)
        self.ended.set()

    def _settle(self, *, serves: bool) -> None:
        if not self.ready.done():
            self.ready.set_result(serves)


class _Seat:
    """A place that always has a worker, once it could start."""

    def __init__(self) -> None:
        self.hand: _Hand | None = None


class Supervisor:
    """Keeps as many workers as the settings say.

    SIGTERM and SIGINT are passed on, and a second one ends everything at once; SIGHUP restarts the
    workers one after the other.

    Args:
        settings: of the whole service.
        sock: bound to its address.
        metrics_folder: where the workers keep what they count.
    """

    def __init__(self, settings: Settings, sock: socket.socket, metrics_folder: Path) -> None:
        self._settings = settings
        self._sock = sock
        self._metrics_folder = metrics_folder
        self._seats = [_Seat() for _ in range(settings.workers)]
        self._hands: set[_Hand] = set()
        self._order: Order | None = None
        self._stopping = asyncio.Event()
        self._restart = asyncio.Event()
        self._ever_served = False

    async def run(self) -> int:
        """Supervise until a signal ends it.

        Returns:
            The status of the process: 1 where no worker could ever serve.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_signal, signal.SIGTERM, "drain")
        loop.add_signal_handler(signal.SIGINT, self._on_signal, signal.SIGINT, "stop")
        loop.add_signal_handler(signal.SIGHUP, self._restart.set)
        tasks = [asyncio.create_task(self._keep(seat)) for seat in self._seats]
        tasks.append(asyncio.create_task(self._restarts()))
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        for hand in self._hands:
            hand.tell(self._order or "stop")
        while self._hands:
            await next(iter(self._hands)).ended.wait()
            await asyncio.sleep(0)
        return 0 if self._ever_served else 1

    def _on_signal(self, sig: signal.Signals, order: Order) -> None:
        if self._stopping.is_set():
            for hand in self._hands:
                hand.process.kill()
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._order = order
        self._stopping.set()

    async def _keep(self, seat: _Seat) -> None:
        """Let a seat have a worker, another one if it dies."""
        while True:
            hand = seat.hand = seat.hand or await self._first_that_serves()
            await hand.ended.wait()
            if seat.hand is hand:  # or another took its place
                logger.error("%s ended with status %s", hand.name, hand.process.exitcode)
                seat.hand = None

    async def _first_that_serves(self) -> _Hand:
        pause = _FIRST_PAUSE
        while True:
            hand = self._begin()
            if await hand.serves():
                return hand
            if not self._ever_served:
                logger.error("no worker can start; why stands above")
                self._stopping.set()
            logger.error("%s could not start; the next try is in %.1f s", hand.name, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _begin(self) -> _Hand:
        hand = _Hand(self._settings.of_a_worker(), self._sock)
        self._hands.add(hand)
        hand.ready.add_done_callback(partial(self._note_ready, hand))
        asyncio.ensure_future(hand.ended.wait()).add_done_callback(partial(self._note_end, hand))
        return hand

    def _note_ready(self, hand: _Hand, ready: asyncio.Future[bool]) -> None:
        if ready.result():
            logger.info("%s serves", hand.name)
            if not self._ever_served:
                tell_page(self._settings.host, self._sock.getsockname()[1])
            self._ever_served = True

    def _note_end(self, hand: _Hand, _: object) -> None:
        self._hands.discard(hand)
        mark_process_dead(hand.process.pid, str(self._metrics_folder))  # type: ignore[no-untyped-call]

    async def _restarts(self) -> None:
        while True:
            await self._restart.wait()
            self._restart.clear()
            logger.info("restarting the workers")
            for seat in self._seats:
                if seat.hand is not None and not await self._renew(seat, seat.hand):
                    logger.error("a new worker could not start; the old ones go on")
                    break
            else:
                logger.info("restarted")

    async def _renew(self, seat: _Seat, old: _Hand) -> bool:
        """Put a new worker in the place of an old one, and say whether it could start."""
        new = self._begin()
        if not await new.serves():
            return False
        seat.hand = new
        old.tell("leave")
        try:
            async with asyncio.timeout(self._settings.max_timeout + GRACE_SECONDS):
                await old.ended.wait()
        except TimeoutError:
            logger.error("%s did not end in time and is killed", old.name)
            old.process.kill()
        return True


def supervise(settings: Settings) -> int:
    """Serve by several workers until a signal ends it.

    Returns:
        The status of the process.

    Raises:
        AddressError: another process serves the address.
    """
    check_address(settings.host, settings.port)
    # It logs the address, as it does without workers, and why else it cannot be had.
    sock = uvicorn.Config("", host=settings.host, port=settings.port, log_config=None).bind_socket()
    with tempfile.TemporaryDirectory(prefix="attention-metrics-") as folder:
        # Before the workers import the library, which reads it once.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder

        async def run() -> int:
            return await Supervisor(settings, sock, Path(folder)).run()

        return asyncio.run(run())


def _work(settings: Settings, sock: socket.socket, pipe: Connection) -> None:
    """A worker's process."""
    configure(settings.log_level, settings.log_format)
    take_all_files()
    give_back_freed()
    lifecycle = Lifecycle()
    try:
        config = config_of(settings, lifecycle)
    except (EngineError, KeysError, TracesError) as error:
        logger.error("%s", error)
        sys.exit(1)
    server: Worker

    def is_ready() -> None:
        asyncio.get_running_loop().add_reader(pipe.fileno(), obey)
        pipe.send(_READY)

    def obey() -> None:
        try:
            order: Order = pipe.recv()
        except (EOFError, OSError):
            logger.error("the supervisor is gone")
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            order = "drain"
        getattr(server, order)()

    server = Worker(config, lifecycle, settings.drain_delay, is_ready)
    with suppress(SystemExit):  # how uvicorn ends where it cannot start
        server.run(sockets=[sock])
    if not server.started:
        sys.exit(1)  # why is in the log
