"""The command `export`: published weights made into a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from attention_service.commands.common import (
    ModulesOption,
    choice,
    console,
    fail,
    settings_of,
    warn_of_choice,
)


class StorageDtype(StrEnum):
    """What an export stores parameters as."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


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
    dtype: Annotated[
        StorageDtype, choice(StorageDtype, "What parameters are stored as; float16 halves the file")
    ] = StorageDtype.FLOAT32,
    force: Annotated[bool, typer.Option("--force", help="Replace a module of that name")] = False,
) -> None:
    """Make a module of a text model, BERT to Llama, or of PyTorch's nn.MultiheadAttention."""
    # Here, for its libraries take as long to load as all the rest of a start.
    from attention_service.modules import exporters  # noqa: PLC0415

    settings = settings_of(modules=modules)
    try:
        with _progress() as progress:
            folder = exporters.export(
                source,
                name,
                settings.modules,
                num_heads=num_heads,
                license=license_,
                origin=origin,
                expected_sha256=sha256,
                force=force,
                dtype=dtype.value,
                progress=progress,
            )
    except exporters.ExportError as error:
        raise fail(error) from None
    typer.echo(f"exported {name} to {folder}")
    warn_of_choice(settings, name)


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
    with Progress(*columns, console=console(sys.stderr)) as bar:
        yield _Stages(bar)
