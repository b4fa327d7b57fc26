"""The command `attend`: one request, answered here without a server."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from attention_service.api import local
from attention_service.attention.engine import EngineError
from attention_service.commands.common import (
    ModulesOption,
    ProviderOption,
    choice,
    complain,
    console,
    elsewhere,
    fail,
    misused,
    settings_of,
)
from attention_service.commands.given import request_of
from attention_service.settings import Settings
from attention_wire import bodies
from attention_wire.answers import TextAnswer, TopK
from attention_wire.maps import WIDTH, attention_map, printable
from attention_wire.problems import Code, ProblemError, dotted
from attention_wire.tensors import Array
from attention_wire.validation import validate

# How options call the fields of a request.
_OPTIONS = {"layers": "--layer", "heads": "--head", "text_pair": "--pair", "unit": "--unit"}


class TensorFormat(StrEnum):
    """How JSON carries tensors."""

    LIST = "list"
    BASE64 = "base64"


class Unit(StrEnum):
    """What rows and columns are."""

    TOKEN = "token"  # noqa: S105 - of a text
    WORD = "word"


def _index(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        message = f"{text!r} is no number; for several, repeat the option"
        raise typer.BadParameter(message) from None


def attend(
    given: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|FILE|-",
            help="A text; or a file or - (standard input), with a text or a request in JSON",
        ),
    ],
    pair: Annotated[str | None, typer.Option(help="The second text of a pair")] = None,
    module: Annotated[str | None, typer.Option(help="Name of a learned module")] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(parser=_index, metavar="<int>", help="Of a text; may be repeated"),
    ] = None,
    head: Annotated[
        list[int] | None,
        typer.Option(parser=_index, metavar="<int>", help="Of a text; may be repeated"),
    ] = None,
    unit: Annotated[
        Unit | None,
        choice(Unit, "What rows and columns of a text are"),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a text that is longer than the module takes")
    ] = False,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="List what each row attends to most, so many keys")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Write the map as a picture; more than ASCII takes the fonts DejaVu or Noto on "
            "this machine, which the container image has not: it writes code points",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON that the service would send")
    ] = False,
    tensor_format: Annotated[
        TensorFormat | None, choice(TensorFormat, "Of the JSON; with a text, implies --json")
    ] = None,
    modules: ModulesOption = None,
    provider: ProviderOption = None,
) -> None:
    """Answer one request here, without a server: a text with a map, tensors with JSON.

    A map is the mean of the layers and heads asked for, all by default.

    attention-service attend "The cat sat." --layer 3 --head 5
    """
    settings = settings_of(modules=modules, provider=provider)
    request = request_of(given)
    is_text = isinstance(request, str)
    as_json = as_json or tensor_format is not None or not is_text
    if as_json and (top_k is not None or png is not None):
        raise misused(
            "--top-k and --png draw a text; --json, --tensor-format and requests in JSON are "
            "answered in JSON"
        )
    if png is not None and png.suffix.lower() != ".png":
        raise misused(f"--png writes a PNG, which {png.name!r} is not called: name a file *.png")
    if pair is not None and not is_text:
        raise misused('--pair goes with a text; write "text_pair" into a request in JSON')
    options: dict[str, Any] = {
        "layers": layer,
        "heads": head,
        "unit": unit,
        "tensor_format": tensor_format,
        "text_pair": pair,
        "truncate": truncate or None,
    }
    if as_json:
        typer.echo(_answer(request, module, options, settings))
        return
    drawn = {"return": {"output": False, "weights": {"reduce": "mean"}}, "tensor_format": "base64"}
    answer = _answer(request, module, options | drawn, settings)
    matrix = _Matrix.of(answer, f"{_named('layer', layer)}, {_named('head', head)}")
    if png is not None:
        _write(png, matrix)
    if top_k is not None:
        console(sys.stdout).print(_table(matrix, top_k))
    if png is None and top_k is None:
        typer.echo(_drawn(matrix))


# --- Requests --------------------------------------------------------------------------


def _answer(
    request: str | bytes, module: str | None, options: dict[str, Any], settings: Settings
) -> bytes:
    """The answer as JSON.

    Args:
        request: a text, or a request in JSON.
        module: its name; of a request that holds tensors no field, but a part of the route.
        options: fields of options; None and empty ones were not given.
        settings: of the engine and the modules.

    Raises:
        typer.Exit: the request is refused; why has been said.
    """
    try:
        if isinstance(request, str):
            fields = bodies.Fields({"text": request}, only_numbers=False)
        else:
            fields = bodies.read(bodies.JSON, request, "request")
        if "text" in fields.values:
            options = {**options, "module": module}
        fields.values.update(
            {name: value for name, value in options.items() if value is not None and value != []}
        )
        return local.answer(fields, module, settings)
    except ProblemError as problem:
        for line in _refusal(problem, settings, is_text=isinstance(request, str)):
            complain(line)
        raise typer.Exit(1) from None
    except EngineError as error:
        raise fail(error) from None


def _refusal(problem: ProblemError, settings: Settings, *, is_text: bool) -> Iterator[str]:
    """What is wrong, and what to do: of a text in the words of this command, not of JSON."""
    if not problem.errors:
        yield problem.detail
    for wrong in problem.errors:
        name = dotted(wrong.loc)
        yield f"{_OPTIONS.get(name, name) if is_text else name}: {wrong.msg}"
    if problem.code == Code.MODULE_NOT_CHOSEN and is_text:
        yield "--module chooses one"
    if problem.code == Code.UNKNOWN_MODULE and (hint := elsewhere(settings)):
        yield hint


# --- Maps ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Matrix:
    """What is drawn.

    Attributes:
        labels: U tokens or words.
        special: bool [U], true for special tokens.
        weights: float64 [U, U], the mean of the layers and heads asked for.
        caption: which these are.
    """

    labels: list[str]
    special: Array
    weights: Array
    caption: str

    @classmethod
    def of(cls, answer: bytes, caption: str) -> _Matrix:
        """The mean of the weights in an answer about one text."""
        fields = bodies.read(bodies.JSON, answer, "response")
        result = validate(TextAnswer, fields).results[0]
        weights, words = result.weights, result.words
        if weights is None or isinstance(weights, TopK):
            raise AssertionError("weights were asked for, and all of them")
        return cls(
            labels=result.tokens if words is None else words.text,
            special=np.array(
                result.special_tokens_mask if words is None else words.special_mask, bool
            ),
            weights=weights.mean((0, 1), dtype=np.float64),
            caption=caption,
        )


def _named(name: str, numbers: Sequence[int] | None) -> str:
    """Which layers or heads are drawn, for the first line."""
    if not numbers:
        return f"mean of all {name}s"
    if len(numbers) == 1:
        return f"{name} {numbers[0]}"
    return f"mean of {name}s {', '.join(map(str, numbers))}"


def _drawn(matrix: _Matrix) -> str:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    return attention_map(
        matrix.labels, matrix.weights, special=matrix.special, caption=matrix.caption, width=width
    )


def _table(matrix: _Matrix, top_k: int) -> Table:
    """For each row its most attended keys, falling; of equal weights the first key first."""
    count = min(top_k, len(matrix.labels))
    table = Table("", *(str(rank + 1) for rank in range(count)), title=Text(matrix.caption))
    best = np.argsort(-matrix.weights, axis=-1, kind="stable")[:, :count]
    for label, row, keys in zip(matrix.labels, matrix.weights, best, strict=True):
        cells = [f"{printable(matrix.labels[key])} {row[key]:.3f}" for key in keys]
        table.add_row(Text(printable(label)), *map(Text, cells))
    return table


def _write(path: Path, matrix: _Matrix) -> None:
    try:
        # Here, for no other command needs Pillow.
        from attention_service.commands.heat_map import heat_map  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "PIL":
            raise
        raise fail("--png needs the package 'pillow': pip install pillow") from None
    picture = heat_map(
        matrix.labels, matrix.weights, special=matrix.special, caption=matrix.caption
    )
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise fail(f"--png: {path} cannot be written: {error.strerror}") from None
    typer.echo(f"wrote {path}", err=True)
