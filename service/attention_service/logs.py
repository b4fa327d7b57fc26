"""The log: lines for people, or an object a line for programs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, TextIO

from pythonjsonlogger.orjson import OrjsonFormatter
from typing_extensions import override

LogFormat = Literal["text", "json"]

# What the logger of uvicorn's own lines adds for terminals.
_NOT_TOLD = ["color_message", "taskName"]


def configure(level: str, form: LogFormat) -> None:
    """Log to standard error, from all loggers of this process.

    Args:
        level: the least that is logged.
        form: ``text``, or ``json``: objects with ``timestamp`` (RFC 3339, UTC), ``level``,
            ``logger`` and ``message``, and what else is known, such as ``request_id``.
    """
    # Nothing here tells them, and to find them out takes a third of a record's time.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _Handler()
    if form == "json":
        handler.setFormatter(
            OrjsonFormatter(
                "%(levelname)s %(name)s %(message)s",
                rename_fields={"levelname": "level", "name": "logger"},
                reserved_attrs=[*_standard_fields(), *_NOT_TOLD],
                timestamp=True,
            )
        )
    else:
        handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@contextmanager
def together() -> Iterator[None]:
    """Write what is logged meanwhile in one piece, in the end."""
    with ExitStack() as held:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, _Handler):
                held.enter_context(handler.holding())
        yield


class _Handler(logging.StreamHandler[TextIO]):
    """Writes each line at once, unless it is held."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[str] | None = None

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep the lines until the end; other threads wait for it."""
        self.acquire()
        self._held = []
        try:
            yield
        finally:
            lines, self._held = self._held, None
            if lines:
                self.stream.write("".join(lines))
                self.flush()
            self.release()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if self._held is None:
            super().emit(record)
        else:
            self._held.append(self.format(record) + self.terminator)


class _Lines(logging.Formatter):
    """Lines whose time is written out once a second: a call costs little more than its line."""

    _second = 0
    _text = ""

    @override
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._text},{int(record.msecs):03d}"


def _standard_fields() -> list[str]:
    """The fields that every record has; what a line adds to them is told."""
    return list(vars(logging.makeLogRecord({})))
