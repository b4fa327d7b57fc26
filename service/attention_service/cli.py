"""The command line: serve, export, modules, check."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from attention_service.api.server import serve as run_server
from attention_service.attention.check import check_provider
from attention_service.attention.engine import Engine, EngineError
from attention_service.modules.repository import Repository
from attention_service.settings import Settings

app = typer.Typer(
    name="attention-service",
    help="Attention as a service: outputs and attention weights over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console()
_err = Console(stderr=True)

ModulesOption = Annotated[
    Path | None, typer.Option("--modules", help="Folder of learned modules [ATTENTION_MODULES]")
]
ProviderOption = Annotated[
    str | None,
    typer.Option("--provider", help="auto, cpu, cuda, tensorrt, … [ATTENTION_PROVIDER]"),
]


def _settings(**given: object) -> Settings:
    """Settings from the options that were given, the environment and the defaults."""
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**options)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            name = str(item["loc"][0])
            _err.print(f"--{name.replace('_', '-')} (ATTENTION_{name.upper()}): {item['msg']}")
        raise typer.Exit(2) from None


def _fail(message: object) -> typer.Exit:
    _err.print(f"attention-service: {message}", style="red", soft_wrap=True, markup=False)
    return typer.Exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [ATTENTION_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one")] = None,
    modules: ModulesOption = None,
    provider: ProviderOption = None,
    threads: Annotated[int | None, typer.Option(help="Threads; default: the CPU limit")] = None,
    root_path: Annotated[str | None, typer.Option(help="Prefix that a proxy takes off")] = None,
    drain_delay: Annotated[
        float | None, typer.Option(help="Seconds of service after SIGTERM")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
) -> None:
    """Serve until SIGTERM or Ctrl-C. Each option is also a variable ATTENTION_…."""
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings = _settings(
        host=host,
        port=port,
        modules=modules,
        provider=provider,
        threads=threads,
        root_path=root_path,
        drain_delay=drain_delay,
    )
    try:
        run_server(settings)
    except EngineError as error:
        raise _fail(error) from None


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="Folder or file of safetensors weights, or Hub id")],
    name: Annotated[str, typer.Option(help="Name of the module")],
    modules: ModulesOption = None,
    num_heads: Annotated[
        int | None, typer.Option(help="Heads of a PyTorch state dict, which does not say")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="SPDX id, where the source does not say")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="What the module says its weights come from")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="Refuse weights with another checksum")] = None,
    force: Annotated[bool, typer.Option(help="Replace a module of that name")] = False,
) -> None:
    """Make a module of a BERT-family model or of PyTorch's nn.MultiheadAttention."""
    # Here, for its libraries take as long to load as all the rest of a start.
    from attention_service.modules import exporters  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    try:
        with Progress(*columns, console=_err) as progress:
            task = progress.add_task("starting", total=1.0)
            folder = exporters.export(
                source,
                name,
                _settings(modules=modules).modules,
                num_heads=num_heads,
                license=license_,
                origin=origin,
                expected_sha256=sha256,
                force=force,
                progress=lambda stage, part: progress.update(
                    task, description=stage, completed=part
                ),
            )
    except exporters.ExportError as error:
        raise _fail(error) from None
    _out.print(f"exported {name} to {folder}", soft_wrap=True, highlight=False)


@app.command()
def modules(modules: ModulesOption = None) -> None:
    """List the modules of the folder, and why any would be refused."""
    settings = _settings(modules=modules)
    repository = Repository.open(settings.modules, Engine("cpu", settings.threads))
    table = Table("name", "kind", "layers", "heads", "size", "longest text", "licence")
    for info in repository.infos():
        longest = "" if info.max_length is None else str(info.max_length)
        sizes = (str(info.num_layers), str(info.num_heads), str(info.embed_dim))
        table.add_row(info.name, info.kind, *sizes, longest, info.license or "unknown")
    _out.print(table)
    for refused in repository.refused:
        _err.print(f"refused {refused.name}: {refused.reason}", style="red", markup=False)
    if repository.refused:
        raise typer.Exit(1)


@app.command()
def check(provider: ProviderOption = None) -> None:
    """Compute known cases on this machine and say how far each is from float64."""
    settings = _settings(provider=provider)
    try:
        engine = Engine(settings.provider, settings.threads)
    except EngineError as error:
        raise _fail(error) from None
    table = Table("dtype", "options", "provider", "largest error", "allowed", "verdict")
    results = check_provider(engine)
    for result in results:
        verdict = "ok" if result.ok else "WRONG"
        figures = (f"{result.error:.1e}", f"{result.allowed:.0e}", verdict)
        table.add_row(result.dtype, result.options, result.provider, *figures)
    _out.print(f"{engine.provider}, {engine.threads} threads")
    _out.print(table)
    if not all(result.ok for result in results):
        raise typer.Exit(1)
