"""The log: lines for people, or an object a line for programs."""

from __future__ import annotations

import logging
from typing import Literal

from pythonjsonlogger.orjson import OrjsonFormatter

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
    handler = logging.StreamHandler()
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
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _standard_fields() -> list[str]:
    """The fields that every record has; what a line adds to them is told."""
    return list(vars(logging.makeLogRecord({})))
