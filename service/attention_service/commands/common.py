"""What all commands share: settings of options and environment, messages, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from pydantic import ValidationError
from rich.console import Console

from attention_service.settings import Settings

# A table that goes into a pipe or a file has no edge to be fitted to.
_WIDE = 1000

ModulesOption = Annotated[
    Path | None, typer.Option("--modules", help="Folder of learned modules [ATTENTION_MODULES]")
]
ProviderOption = Annotated[
    str | None,
    typer.Option("--provider", help="auto, cpu, cuda, tensorrt, … [ATTENTION_PROVIDER]"),
]


def settings_of(**given: object) -> Settings:
    """Settings from the options that were given, the environment and the defaults.

    Raises:
        typer.Exit: with status 2, after a message for each that is wrong.
    """
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**options)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            name = str(item["loc"][0])
            option = f"--{name.replace('_', '-')} or " if name in given else ""
            message = item["msg"].removeprefix("Value error, ")
            complain(f"{option}ATTENTION_{name.upper()}: {message}")
        raise typer.Exit(2) from None


def complain(message: object) -> None:
    """One line on standard error, red in a terminal, never folded."""
    typer.secho(f"attention-service: {message}", fg="red", err=True)


def fail(message: object) -> typer.Exit:
    """What to raise where a command cannot do its work, after saying why."""
    complain(message)
    return typer.Exit(1)


def misused(message: object) -> typer.Exit:
    """What to raise where options do not fit, after saying why."""
    complain(message)
    return typer.Exit(2)


def console(stream: TextIO) -> Console:
    """A console of the terminal's width; a wide one where nobody looks."""
    return Console(file=stream, width=None if stream.isatty() else _WIDE)
