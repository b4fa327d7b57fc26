"""What `attend` is given: a text, or a request in JSON; itself, in a file, or by standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from attention_service.commands.common import fail

_STDIN = "-"


def request_of(given: str) -> str | bytes:
    """A text, or the bytes of a request in JSON.

    What exists as a file is one, and what begins like an object is a request.

    Raises:
        typer.Exit: it cannot be read; why has been said.
    """
    try:
        if given == _STDIN:
            content = sys.stdin.buffer.read()
        elif given.endswith(".json") or _is_file(given):
            content = Path(given).read_bytes()
        else:
            return given
    except OSError as error:
        raise fail(f"{given} cannot be read: {error.strerror}") from None
    if given.endswith(".json") or content.lstrip().startswith(b"{"):
        return content
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise fail(f"{given} is neither a text in UTF-8 nor a request in JSON") from None


def _is_file(given: str) -> bool:
    try:
        return Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, as texts are
        return False
