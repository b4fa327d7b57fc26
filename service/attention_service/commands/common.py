"""What all commands share: settings of options and environment, messages, tables."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from pydantic import ValidationError
from rich.console import Console

from attention_service.modules import placing
from attention_service.modules.loading import text_modules
from attention_service.settings import Settings, variable

# A table that goes into a pipe or a file has no edge to be fitted to.
_WIDE = 1000

# Where `make` puts modules.
_OF_MAKE = Path(".modules")


def meaning_of(name: str) -> str:
    """What a setting means, for ``--help``."""
    return str(Settings.model_fields[name].description).replace("``", "").replace("\n", " ")


def default_of(name: str) -> str:
    """Its default, ready to follow its variable; empty where its meaning says what it is."""
    field = Settings.model_fields[name]
    is_told = field.default_factory is None and field.default not in {None, ""}
    return f"; default: {str(field.default).lower()}" if is_told else ""


def setting(name: str, *words: str) -> Any:
    """The option of a setting; ``words`` where it is not called ``--name``."""
    return typer.Option(
        *(words or [f"--{name.replace('_', '-')}"]),
        help=f"{meaning_of(name)} [{variable(name)}{default_of(name)}]",
    )


ModulesOption = Annotated[Path | None, setting("modules")]
ProviderOption = Annotated[str | None, setting("provider")]


def choice(kind: type[StrEnum], meaning: str) -> Any:
    """An option that takes one of the values of ``kind``."""

    def parse(text: str) -> StrEnum:
        try:
            return kind(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(kind)}") from None

    return typer.Option(parser=parse, metavar=f"<{'|'.join(kind)}>", help=meaning)


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
            complain(f"{option}{variable(name)}: {message}")
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


def elsewhere(settings: Settings) -> str | None:
    """Where modules are, if none are in the folder of the settings but in that of ``make``."""
    try:
        names = placing.names(_OF_MAKE)
    except placing.PlacingError:
        return None
    if not names or _OF_MAKE.resolve() == settings.modules.resolve():
        return None
    return (
        f"the folder {_OF_MAKE} here has {', '.join(names)}: take it with --modules {_OF_MAKE}, or "
        f"{variable('modules')}={_OF_MAKE}"
    )


def warn_of_choice(settings: Settings, name: str) -> None:
    """Say it where a new text module leaves calls that name none without one."""
    names = text_modules(settings.modules)
    if name in names and len(names) > 1 and settings.text_module not in names:
        complain(
            f"the folder has {len(names)} text modules now, {', '.join(names)}: calls have to name "
            f"theirs, unless the service is started with {variable('text_module')}=NAME"
        )
