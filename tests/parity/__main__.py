"""Compare the running service with transformers and PyTorch, live. Run by `make parity`.

They compute in an environment of their own (`expected`), and hand their values over as files.
The service is a process that is asked over HTTP. Prints a table, then checks the libraries that
draw attention (`libraries`), and ends with 1 where anything differs by more than is allowed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from benchmarks.served import served

from attention_service.modules.exporters import export
from attention_wire import bodies
from attention_wire.tensors import Array
from tests.parity.models import ROOT, Model, models

PYTHON = ROOT / "build" / "transformers" / "bin" / "python"
MULTI_HEAD = "multi_head"
# As tests/modules/test_goldens.py allows for one layer of PyTorch's.
_ONE_LAYER = 1e-5
_TIMEOUT_SECONDS = 300


@dataclass(slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was compared.
        allowed: the largest difference.
        calls: how many were compared.
        worst: of ``output`` and of ``weights``; infinite where a shape or a token differs.
    """

    name: str
    allowed: float
    calls: int
    worst: dict[str, float]

    @classmethod
    def of(cls, name: str, allowed: float) -> Row:
        """Before the first call."""
        return cls(name, allowed, 0, {"output": 0.0, "weights": 0.0})

    @property
    def ok(self) -> bool:
        """Whether all is within what is allowed; NaN is not."""
        return self.calls > 0 and all(worst <= self.allowed for worst in self.worst.values())

    def compare(self, found: Mapping[str, Any], expected: Mapping[str, Array]) -> None:
        """Count one answer, or one text's result."""
        self.calls += 1
        for part in self.worst:
            self.worst[part] = float(np.maximum(self.worst[part], _apart(found, expected, part)))


def _apart(found: Mapping[str, Any], expected: Mapping[str, Array], part: str) -> float:
    same_tokens = "token_ids" not in expected or np.array_equal(
        found["token_ids"], expected["token_ids"]
    )
    if not same_tokens or found[part].shape != expected[part].shape:
        return float("inf")
    return float(np.abs(found[part] - expected[part]).max())


def main() -> None:
    arguments = _arguments()
    names: list[str] = arguments.names
    chosen = [model for model in models() if not names or model.name in names]
    if not arguments.python.is_file():
        sys.exit(f"{arguments.python} is missing: `make parity` builds it, or give --python")
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary:
        expected, modules = Path(temporary) / "expected", Path(temporary) / "modules"
        expected.mkdir()
        _compute(arguments.python, expected, names)
        for model in chosen:
            export(model.folder, model.name, modules)
        foreign = [_exported_by_torch(arguments.python, m, modules) for m in chosen if m.is_traced]
        with_pytorch = not names or MULTI_HEAD in names
        calls = _export_multi_head(expected / MULTI_HEAD, modules) if with_pytorch else []
        with (
            served(modules=modules, log_level="warning") as service,
            httpx.Client(base_url=service.url, timeout=_TIMEOUT_SECONDS) as http,
        ):
            rows = [_text_row(http, model, expected) for model in chosen]
            rows += [_text_row(http, model, expected, name) for model, name in foreign]
            if with_pytorch:
                rows.append(_multi_head_row(http, calls, expected / MULTI_HEAD))
            _print(rows)
            drawn = _libraries(arguments.python) if not names else 0
    sys.exit(bool(drawn) or not all(row.ok for row in rows))


def _compute(python: Path, folder: Path, names: Sequence[str]) -> None:
    command = [str(python), "-m", "tests.parity.expected", str(folder), *names]
    subprocess.run(command, check=True, cwd=ROOT)


# --- Text ----------------------------------------------------------------------------------


def _exported_by_torch(python: Path, model: Model, modules: Path) -> tuple[Model, str]:
    """A module of a model's that PyTorch's own exporter made, and its name."""
    name = f"{model.name}-by-torch"
    command = [python, "-m", "tests.parity.torch_export", model.folder, modules / name]
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)
    return model, name


def _text_row(http: httpx.Client, model: Model, folder: Path, module: str = "") -> Row:
    """Every text alone, then all single texts in one call, and all pairs in another."""
    module = module or model.name
    row = Row.of(module, model.allowed)
    with np.load(folder / f"{model.name}.npz") as arrays:
        expected = [_of_text(arrays, index) for index in range(len(model.texts))]
    for indices, fields in _calls(model):
        results = _post(http, "/v1/text/attention", {**fields, "module": module})["results"]
        for index, result in zip(indices, results, strict=True):
            row.compare(result, expected[index])
    return row


def _of_text(arrays: Mapping[str, Array], index: int) -> dict[str, Array]:
    return {part: arrays[f"{index}.{part}"] for part in ("token_ids", "output", "weights")}


def _calls(model: Model) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Which texts a call holds, and its fields."""
    for index, (text, pair) in enumerate(model.texts):
        yield [index], {"text": text} | ({} if pair is None else {"text_pair": pair})
    for is_pair in (False, True):
        those = [i for i, (_, pair) in enumerate(model.texts) if (pair is not None) == is_pair]
        if len(those) > 1:
            fields = {"text": [model.texts[i][0] for i in those]}
            yield (
                those,
                fields | ({"text_pair": [model.texts[i][1] for i in those]} if is_pair else {}),
            )


def _post(http: httpx.Client, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    body = bodies.write(bodies.SAFETENSORS, fields, "request")
    answer = http.post(path, content=bytes(body), headers={"Content-Type": body.media_type})
    if answer.status_code != httpx.codes.OK:
        sys.exit(f"{path} answered {answer.status_code} to {fields}:\n{answer.text}")
    return bodies.read(bodies.SAFETENSORS, answer.content, "response").values


# --- nn.MultiheadAttention -----------------------------------------------------------------


def _export_multi_head(folder: Path, modules: Path) -> list[dict[str, Any]]:
    """A module of each state dict; the calls that were made of them."""
    calls: list[dict[str, Any]] = json.loads((folder / f"{MULTI_HEAD}.json").read_text())
    for variant, heads in {call["variant"]: call["num_heads"] for call in calls}.items():
        weights = folder / f"{MULTI_HEAD}_{variant}.safetensors"
        export(weights, _module(variant), modules, num_heads=heads)
    return calls


def _multi_head_row(http: httpx.Client, calls: Sequence[dict[str, Any]], folder: Path) -> Row:
    row = Row.of("nn.MultiheadAttention", _ONE_LAYER)
    with np.load(folder / f"{MULTI_HEAD}.npz") as arrays:
        for call in calls:
            given = {name: arrays[f"{call['id']}.{name}"] for name in call["arrays"]}
            expected = {part: given.pop(part) for part in row.worst}
            path = f"/v1/modules/{_module(call['variant'])}/attention"
            row.compare(_post(http, path, {**given, "is_causal": call["is_causal"]}), expected)
    return row


def _module(variant: str) -> str:
    return f"mha-{variant}"


# --- The rest ------------------------------------------------------------------------------


def _libraries(python: Path) -> int:
    """The check of the libraries that draw attention; what it ends with."""
    command = [str(python), "-m", "tests.parity.libraries"]
    return subprocess.run(command, check=False, cwd=ROOT).returncode


def _print(rows: Sequence[Row]) -> None:
    print(f"\n{'':24}{'compared':>9}{'max |Δ output|':>16}{'max |Δ weights|':>17}{'allowed':>9}")
    for row in rows:
        print(
            f"{row.name:24}{row.calls:9}{row.worst['output']:16.1e}{row.worst['weights']:17.1e}"
            f"{row.allowed:9.0e}  {'ok' if row.ok else 'MISS'}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    names = [*(model.name for model in models()), MULTI_HEAD]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or of {', '.join(names)}")
    parser.add_argument("--python", type=Path, default=PYTHON, help="that has transformers")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"there is no {min(unknown)!r}; there are {', '.join(names)}")
    return arguments


if __name__ == "__main__":
    main()
