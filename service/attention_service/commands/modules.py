"""The commands `modules list`, `show`, `add` and `remove`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from attention_service.attention.engine import Engine
from attention_service.commands.common import (
    ModulesOption,
    complain,
    console,
    elsewhere,
    fail,
    settings_of,
    warn_of_choice,
)
from attention_service.modules import placing
from attention_service.modules.folder import ModuleFolder
from attention_service.modules.loading import ModuleError, load, read_manifest
from attention_service.modules.manifest import Manifest, sha256
from attention_service.settings import Settings

app = typer.Typer(
    name="modules",
    help="List the modules of the folder; show, add or remove one.",
    invoke_without_command=True,
)

NameArgument = Annotated[str, typer.Argument(help="Name of a module")]

_WHOLE = "whole"


@app.callback()
def main(context: typer.Context, modules: ModulesOption = None) -> None:
    """List the modules of the folder; show, add or remove one."""
    context.obj = modules
    if context.invoked_subcommand is None:
        _list(settings_of(modules=modules))


def _settings(context: typer.Context, modules: Path | None) -> Settings:
    """Settings, where ``--modules`` may stand before the command's name or after it."""
    return settings_of(modules=context.obj if modules is None else modules)


@app.command("list")
def list_(context: typer.Context, modules: ModulesOption = None) -> None:
    """List the modules of the folder, and why any would be refused."""
    _list(_settings(context, modules))


def _list(settings: Settings) -> None:
    logging.disable()  # what the service would log is printed here
    try:
        repository = ModuleFolder(settings.modules, Engine("cpu", settings.threads)).look()
    finally:
        logging.disable(logging.NOTSET)
    infos = repository.infos()
    if infos:
        table = Table("name", "kind", "layers", "heads", "size", "longest text", "licence")
        for info in infos:
            longest = "" if info.max_length is None else str(info.max_length)
            sizes = (str(info.num_layers), str(info.num_heads), str(info.embed_dim))
            licence = escape(info.license or "unknown")
            table.add_row(escape(info.name), info.kind, *sizes, longest, licence)
        console(sys.stdout).print(table)
    else:
        _tell_of_none(settings)
    for refused in repository.refused:
        complain(f"refused {refused.name}: {refused.reason}")
    if repository.refused:
        raise typer.Exit(1)


def _tell_of_none(settings: Settings) -> None:
    if "modules" in settings.model_fields_set and not settings.modules.exists():
        raise fail(f"the folder {settings.modules} does not exist")
    typer.echo(f"There is no module in {settings.modules}.")
    if hint := elsewhere(settings):
        complain(hint)


@app.command()
def show(context: typer.Context, name: NameArgument, modules: ModulesOption = None) -> None:
    """Say what a module is: sizes, licence, source, its files and whether they are whole."""
    settings = _settings(context, modules)
    try:
        folder = placing.existing(settings.modules, name)
        manifest = read_manifest(folder)
    except placing.PlacingError as error:
        raise fail(error) from None
    except ModuleError as error:
        raise fail(f"{settings.modules / name}: {error}") from None
    facts = Table(title=escape(str(folder)), show_header=False)
    for fact, value in _facts(manifest).items():
        facts.add_row(fact, escape(str(value)))
    states = {file: _state(folder, file, digest) for file, digest in manifest.files.items()}
    files = Table("file", "SHA-256", "")
    for file, digest in manifest.files.items():
        files.add_row(escape(file), escape(digest), states[file])
    console(sys.stdout).print(facts, files)
    wrong = [f"{file} is {state}" for file, state in states.items() if state != _WHOLE]
    if wrong:
        raise fail(f"{name} would be refused: {', '.join(wrong)}")


def _facts(manifest: Manifest) -> dict[str, object]:
    """The rows of the table; what does not apply is left out."""
    facts: dict[str, object] = {
        "kind": manifest.kind,
        "layers": manifest.num_layers,
        "heads": f"{manifest.num_heads}, of size {manifest.head_dim}",
        "query size": manifest.embed_dim,
    }
    if manifest.kind == "text":
        longest = "any" if manifest.max_length is None else f"{manifest.max_length} tokens"
        facts["longest text"] = longest
        facts["runs layer by layer"] = (
            "no: its manifest names no layers" if manifest.layers is None else "yes"
        )
    else:
        facts["key size"], facts["value size"] = manifest.key_dim, manifest.value_dim
    return facts | {
        "licence": manifest.license or "unknown",
        "source": manifest.source or "unknown",
        "checksum of the source": manifest.source_sha256 or "unknown",
    }


def _state(folder: Path, file: str, expected: str) -> str:
    """What became of a file since its checksum was written."""
    try:
        path = folder / file
        if path.resolve().parent != folder.resolve():
            return "not in this folder"
        return _WHOLE if sha256(path) == expected else "changed"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"not readable: {error.strerror}"
    except (ValueError, RuntimeError) as error:  # a NUL in the name; a link to itself
        return f"not readable: {error}"


@app.command()
def add(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A finished module folder, with module.json")],
    name: Annotated[
        str | None, typer.Option(help="Name of the module; the folder's by default")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a module of that name")] = False,
    modules: ModulesOption = None,
) -> None:
    """Check a finished module folder, such as one of your own ONNX graph, and put it in place."""
    settings = _settings(context, modules)
    engine = Engine("cpu", settings.threads)
    # Not resolve(), which of a link to itself raises what is no OSError before Python 3.13.
    name = Path(os.path.realpath(source)).name if name is None else name
    try:
        module = placing.add(
            source, name, settings.modules, lambda copy: load(copy, engine), force=force
        )
    except placing.PlacingError as error:
        raise fail(error) from None
    except ModuleError as error:
        raise fail(f"{source} cannot be loaded: {error}") from None
    info = module.info
    sizes = f"{info.kind}, {info.num_layers} layers of {info.num_heads} heads"
    typer.echo(f"added {name} to {settings.modules / name}: {sizes}")
    warn_of_choice(settings, name)


@app.command()
def remove(
    context: typer.Context,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first")] = False,
    modules: ModulesOption = None,
) -> None:
    """Take a module out of the folder and delete its files."""
    folder = _settings(context, modules).modules
    try:
        target = placing.existing(folder, name)
        if not yes:
            _confirm(target)
        placing.remove(folder, name)
    except placing.PlacingError as error:
        raise fail(error) from None
    typer.echo(f"removed {name} from {folder}")


def _confirm(target: Path) -> None:
    """Ask whether to delete it.

    Raises:
        typer.Exit: it is to stay.
    """
    try:
        typer.confirm(f"Delete {target}?", abort=True, err=True)
    except typer.Abort:
        typer.echo(err=True)  # ends the line of the question
        raise fail("nothing was deleted; --yes deletes without asking") from None
