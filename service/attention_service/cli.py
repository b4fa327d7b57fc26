"""The command line: serve, key, export, modules, check, attend."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Annotated

import typer

from attention_service import logs
from attention_service.api.server import AddressError
from attention_service.api.server import serve as run_server
from attention_service.api.supervisor import supervise
from attention_service.api.traces import TracesError
from attention_service.attention.engine import EngineError
from attention_service.commands import modules as module_commands
from attention_service.commands.attend import attend
from attention_service.commands.check import check
from attention_service.commands.common import (
    ModulesOption,
    ProviderOption,
    default_of,
    elsewhere,
    fail,
    meaning_of,
    misused,
    setting,
    settings_of,
)
from attention_service.commands.export import export
from attention_service.modules import placing
from attention_service.serving.keys import KeysError, new_key
from attention_service.settings import Settings, unknown_variables, variable

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="attention-service",
    help="Attention as a service: outputs and attention weights over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attention-service {version('attention-service')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Attention as a service: outputs and attention weights over HTTP."""


# Settings that nobody types: from their variables alone.
_VARIABLES_ONLY = (
    "modules_poll",
    "trusted_proxies",
    "max_body_bytes",
    "max_answer_bytes",
    "memory_budget_bytes",
    "batch_bytes",
    "max_running",
    "max_waiting",
    "max_wait",
    "max_timeout",
    "body_timeout",
    "api_keys_file",
)


_ALONE = [f"{variable(name)}{default_of(name)}. {meaning_of(name)}" for name in _VARIABLES_ONLY]


@app.command(epilog="\n\n".join(["These are variables alone:", *_ALONE]))
def serve(
    host: Annotated[str | None, setting("host")] = None,
    port: Annotated[int | None, setting("port")] = None,
    modules: ModulesOption = None,
    text_module: Annotated[str | None, setting("text_module")] = None,
    provider: ProviderOption = None,
    workers: Annotated[int | None, setting("workers")] = None,
    threads: Annotated[int | None, setting("threads")] = None,
    root_path: Annotated[str | None, setting("root_path")] = None,
    drain_delay: Annotated[float | None, setting("drain_delay")] = None,
    log_level: Annotated[str | None, setting("log_level")] = None,
    log_format: Annotated[str | None, setting("log_format")] = None,
    traces: Annotated[bool | None, setting("traces", "--traces/--no-traces")] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Each setting is an option and a variable, or a variable."""
    settings = settings_of(
        host=host,
        port=port,
        modules=modules,
        text_module=text_module,
        provider=provider,
        workers=workers,
        threads=threads,
        root_path=root_path,
        drain_delay=drain_delay,
        log_level=log_level,
        log_format=log_format,
        traces=traces,
    )
    logs.configure(settings.log_level, settings.log_format)
    _tell(settings)
    try:
        if settings.workers > 1:
            raise typer.Exit(supervise(settings))
        run_server(settings)
    except (AddressError, EngineError, TracesError) as error:
        raise fail(error) from None
    except KeysError as error:
        raise misused(f"{variable('api_keys_file')}: {error}") from None


def _tell(settings: Settings) -> None:
    """Log what the service is started with."""
    for message in unknown_variables():
        logger.warning(message)
    logger.info("settings: %s", settings.in_effect())
    if not placing.names(settings.modules) and (hint := elsewhere(settings)):
        logger.warning(hint)


@app.command()
def key(name: Annotated[str, typer.Argument(help="Whose key it is, as the log names it")]) -> None:
    """Make a key: it goes to standard error once, its line for the file to standard output.

    attention-service key alice >> keys
    """
    try:
        made, line = new_key(name)
    except KeysError as error:
        raise misused(error) from None
    typer.echo(line)
    typer.echo(f"the key of {name}, shown this once: {made}", err=True)


app.command()(export)
app.add_typer(module_commands.app)
app.command()(check)
app.command()(attend)
