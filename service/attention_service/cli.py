"""The command line: serve, key, export, modules, check, attend."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from attention_service import logs
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
    fail,
    misused,
    settings_of,
)
from attention_service.commands.export import export
from attention_service.serving.keys import KeysError, new_key

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


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [ATTENTION_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one")] = None,
    modules: ModulesOption = None,
    provider: ProviderOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve; default: 1")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; default: the CPU limit")] = None,
    root_path: Annotated[str | None, typer.Option(help="Prefix that a proxy takes off")] = None,
    drain_delay: Annotated[
        float | None, typer.Option(help="Seconds of service after SIGTERM")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
    log_format: Annotated[str | None, typer.Option(help="text, or json: an object a line")] = None,
    traces: Annotated[
        bool | None,
        typer.Option("--traces/--no-traces", help="Send spans to an OpenTelemetry collector"),
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Each option is also a variable ATTENTION_…."""
    settings = settings_of(
        host=host,
        port=port,
        modules=modules,
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
    if settings.workers > 1:
        raise typer.Exit(supervise(settings))
    try:
        run_server(settings)
    except (EngineError, TracesError) as error:
        raise fail(error) from None
    except KeysError as error:
        raise misused(f"ATTENTION_API_KEYS_FILE: {error}") from None


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
