"""The command line: serve, key, export, modules, check, attend."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from attention_service import logs
from attention_service.api import local
from attention_service.api.server import serve as run_server
from attention_service.api.supervisor import supervise
from attention_service.api.traces import TracesError
from attention_service.attention.check import ALLOWED, CheckResult, check_provider
from attention_service.attention.check import explain as explain_calls
from attention_service.attention.engine import PROVIDERS, Engine, EngineError
from attention_service.modules.folder import ModuleFolder
from attention_service.serving.keys import KeysError, new_key
from attention_service.settings import Settings
from attention_wire import bodies
from attention_wire.problems import ProblemError, dotted

app = typer.Typer(
    name="attention-service",
    help="Attention as a service: outputs and attention weights over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# A table that goes into a pipe or a file has no edge to be fitted to.
_WIDE = 1000
_STDIN = "-"


class TensorFormat(StrEnum):
    """How JSON carries tensors."""

    LIST = "list"
    BASE64 = "base64"


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
            option = f"--{name.replace('_', '-')} or " if name in given else ""
            message = item["msg"].removeprefix("Value error, ")
            _complain(f"{option}ATTENTION_{name.upper()}: {message}")
        raise typer.Exit(2) from None


def _complain(message: object) -> None:
    """One line on standard error, red in a terminal, never folded."""
    typer.secho(f"attention-service: {message}", fg="red", err=True)


def _fail(message: object) -> typer.Exit:
    _complain(message)
    return typer.Exit(1)


def _console(stream: TextIO) -> Console:
    return Console(file=stream, width=None if stream.isatty() else _WIDE)


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
    settings = _settings(
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
        raise _fail(error) from None
    except KeysError as error:
        _complain(f"ATTENTION_API_KEYS_FILE: {error}")
        raise typer.Exit(2) from None


@app.command()
def key(name: Annotated[str, typer.Argument(help="Whose key it is, as the log names it")]) -> None:
    """Make a key: it goes to standard error once, its line for the file to standard output.

    attention-service key alice >> keys
    """
    try:
        made, line = new_key(name)
    except KeysError as error:
        _complain(error)
        raise typer.Exit(2) from None
    typer.echo(line)
    typer.echo(f"the key of {name}, shown this once: {made}", err=True)


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
    force: Annotated[bool, typer.Option("--force", help="Replace a module of that name")] = False,
) -> None:
    """Make a module of a BERT-family model or of PyTorch's nn.MultiheadAttention."""
    # Here, for its libraries take as long to load as all the rest of a start.
    from attention_service.modules import exporters  # noqa: PLC0415

    folder = _settings(modules=modules).modules
    try:
        with _progress() as progress:
            folder = exporters.export(
                source,
                name,
                folder,
                num_heads=num_heads,
                license=license_,
                origin=origin,
                expected_sha256=sha256,
                force=force,
                progress=progress,
            )
    except exporters.ExportError as error:
        raise _fail(error) from None
    typer.echo(f"exported {name} to {folder}")


class _Stages:
    """The progress of an export: a bar in a terminal, elsewhere a line for each stage."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = None if bar is None else bar.add_task("", total=1.0)

    def __call__(self, stage: str, part: float) -> None:
        if self._bar is None or self._task is None:
            typer.echo(f"{part:4.0%} {stage}", err=True)
        else:
            self._bar.update(self._task, description=stage, completed=part)


@contextmanager
def _progress() -> Iterator[_Stages]:
    if not sys.stderr.isatty():
        yield _Stages(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=_console(sys.stderr)) as bar:
        yield _Stages(bar)


@app.command()
def modules(modules: ModulesOption = None) -> None:
    """List the modules of the folder, and why any would be refused."""
    logging.disable()  # what the service would log is printed here
    settings = _settings(modules=modules)
    repository = ModuleFolder(settings.modules, Engine("cpu", settings.threads)).look()
    infos = repository.infos()
    if infos:
        table = Table("name", "kind", "layers", "heads", "size", "longest text", "licence")
        for info in infos:
            longest = "" if info.max_length is None else str(info.max_length)
            sizes = (str(info.num_layers), str(info.num_heads), str(info.embed_dim))
            licence = escape(info.license or "unknown")
            table.add_row(escape(info.name), info.kind, *sizes, longest, licence)
        _console(sys.stdout).print(table)
    else:
        typer.echo(f"There is no module in {settings.modules}.")
    for refused in repository.refused:
        _complain(f"refused {refused.name}: {refused.reason}")
    if repository.refused:
        raise typer.Exit(1)


@app.command()
def check(
    provider: ProviderOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say how calls would be run, and what they cost")
    ] = False,
) -> None:
    """Compute known cases on this machine's providers and say how far each is from float64."""
    settings = _settings(provider=provider)
    try:
        engine = Engine(settings.provider, settings.threads)
        if explain:
            _print_plans(engine)
            return
    except EngineError as error:
        raise _fail(error) from None
    here = [name for name, full in PROVIDERS.items() if full in engine.available]
    wrong = []
    for name in here if settings.provider == "auto" else [settings.provider]:
        try:
            chosen = Engine(name, settings.threads)
        except EngineError as error:
            typer.echo(f"Not verified: {error}")
            continue
        if not _is_right(chosen):
            wrong.append(name)
    missing = ", ".join(name for name in PROVIDERS if name not in here)
    typer.echo(f"Not verified, since not in the installed ONNX Runtime: {missing}.")
    if wrong:
        raise _fail(f"wrong results on {', '.join(wrong)}")


def _is_right(engine: Engine) -> bool:
    """Check one provider, print what came out, and say whether all of it is right."""
    table = Table("options", *ALLOWED, caption="largest error of output, weights, lse and entropy")
    results: dict[str, dict[str, CheckResult]] = {}
    for result in check_provider(engine):
        results.setdefault(result.options, {})[result.dtype] = result
    for options, of_dtypes in results.items():
        cells = [f"{r.error:.0e} {'ok' if r.ok else 'WRONG'}" for r in of_dtypes.values()]
        table.add_row(options, *cells)
    table.add_row("allowed", *(f"{allowed:.0e}" for allowed in ALLOWED.values()))
    typer.echo(f"{engine.provider}, {engine.threads} threads")
    _console(sys.stdout).print(table)
    return all(r.ok for of_dtypes in results.values() for r in of_dtypes.values())


def _print_plans(engine: Engine) -> None:
    speed = engine.speed()
    typer.echo(
        f"{engine.provider}, {engine.threads} threads; one computes "
        f"{speed.flops / 1e9:.0f} GFLOP/s in tiles and moves {speed.bytes / 1e9:.0f} GB/s"
    )
    table = Table("call (float32, 8 heads of 64)", "kernel", "tiles", "heads × rows × keys",
                  "GFLOP", "MB moved", "ms", "peak MB")  # fmt: skip
    for name, plan in explain_calls(engine):
        for step in plan.steps:
            shape = " × ".join(map(str, step.tile_shape))
            figures = (f"{step.flops / 1e9:.2f}", f"{step.bytes / 1e6:.0f}")
            whole = (f"{plan.predicted_ms:.2f}", f"{plan.peak_bytes / 1e6:.1f}")
            table.add_row(name, step.kernel, str(step.tiles), shape, *figures, *whole)
    _console(sys.stdout).print(table)


@app.command()
def attend(
    request: Annotated[
        str, typer.Argument(help="A text; or a request: a file *.json, or - for standard input")
    ],
    module: Annotated[str | None, typer.Option(help="Name of a learned module")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Of a text; may be repeated")] = None,
    head: Annotated[list[int] | None, typer.Option(help="Of a text; may be repeated")] = None,
    tensor_format: Annotated[TensorFormat | None, typer.Option(help="Of the answer")] = None,
    modules: ModulesOption = None,
    provider: ProviderOption = None,
) -> None:
    """Answer one request here, without a server, with the JSON that the service would send."""
    settings = _settings(modules=modules, provider=provider)
    try:
        fields = _fields(request)
        given: dict[str, object] = {"layers": layer, "heads": head, "tensor_format": tensor_format}
        if "text" in fields.values:
            given["module"] = module
        fields.values.update({name: value for name, value in given.items() if value})
        answer = local.answer(fields, module, settings)
    except ProblemError as problem:
        _complain(problem.detail)
        for wrong in problem.errors[1:]:
            _complain(f"{dotted(wrong.loc)}: {wrong.msg}")
        raise typer.Exit(1) from None
    except EngineError as error:
        raise _fail(error) from None
    typer.echo(answer)


def _fields(request: str) -> bodies.Fields:
    """The fields of a request that is a text, a file or comes through standard input."""
    if request == _STDIN:
        document = sys.stdin.buffer.read()
    elif request.endswith(".json"):
        try:
            document = Path(request).read_bytes()
        except OSError as error:
            raise _fail(f"{request} cannot be read: {error.strerror}") from None
    else:
        return bodies.Fields({"text": request}, only_numbers=False)
    return bodies.read(bodies.JSON, document, "request")
