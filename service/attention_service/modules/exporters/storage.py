"""Parameters stored as float16: half the file, the same float32 computation.

What the rounding changes is measured on the finished graphs, for no bound holds of every model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.manifest import MODEL_FILE, Manifest
from attention_service.modules.tokens import Tokenizer, TokenizerError
from attention_wire.problems import ProblemError
from attention_wire.tensors import Array

StorageDtype: TypeAlias = Literal["float32", "float16"]

_TEXT = "The animal did not cross the street because it was too tired."
_ROWS = 16  # of query, key and value, where a module takes no text
_LARGEST = float(np.finfo(np.float16).max)


def check(dtype: str) -> None:
    """Refuse a dtype that parameters cannot be stored in.

    Raises:
        ExportError: as said.
    """
    if dtype not in get_args(StorageDtype):
        known = " or ".join(get_args(StorageDtype))
        raise ExportError(f"dtype {dtype!r}: parameters are stored as {known}")


def as_float16(model: ModelProto) -> ModelProto:
    """A copy of a model whose matrices are float16, with a Cast to float32 behind each.

    A matrix keeps its name, and the Cast's output is called ``NAME.float32``. Biases, norms and
    rotary frequencies have one dimension: they stay float32, being small and easily spoilt.

    Raises:
        ExportError: a parameter is too large for float16.
    """
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    casts = {}
    for initializer in graph.initializer:
        if initializer.data_type != TensorProto.FLOAT or len(initializer.dims) < 2:
            continue
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(_half(initializer), name))
        casts[name] = f"{name}.float32"
    for node in graph.node:
        for index, given in enumerate(node.input):
            node.input[index] = casts.get(given, given)
    nodes = [
        helper.make_node("Cast", [name], [cast], name=cast, to=TensorProto.FLOAT)
        for name, cast in casts.items()
    ]
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def _half(initializer: TensorProto) -> Array:
    array = numpy_helper.to_array(initializer)
    largest = float(np.abs(array).max(initial=0))
    if largest > _LARGEST:
        raise ExportError(
            f"{initializer.name!r} holds {largest:.6g}, and float16 ends at {_LARGEST:.0f}: export "
            "with dtype float32"
        )
    return array.astype(np.float16)


class Change(NamedTuple):
    """The largest absolute differences that a change of the storage made.

    Attributes:
        output: of the output.
        weights: of all layers' attention weights.
    """

    output: float
    weights: float

    def __str__(self) -> str:
        return (
            f"float16 storage changes the output by at most {self.output:.1e} and the weights "
            f"by at most {self.weights:.1e}"
        )


def measure(plain: Path, folder: Path, manifest: Manifest) -> Change:
    """What the graph of a folder gives differently than the one before it, on the CPU.

    Args:
        plain: the ONNX file with float32 parameters.
        folder: with the module's files.
        manifest: of both.

    Returns:
        The differences over one short text, or over random rows where the module takes no text.

    Raises:
        ExportError: one of the two does not run, or the tokenizer gives no tokens.
    """
    # Here, for nothing else of an export needs ONNX Runtime.
    from attention_service.attention.engine import Engine, EngineError  # noqa: PLC0415

    feeds = _text(folder, manifest) if manifest.kind == "text" else _rows(manifest)
    output, weights = manifest.outputs.output, manifest.outputs.weights
    engine = Engine("cpu")
    try:
        before, after = (
            engine.load(path).run([output, *weights], feeds)
            for path in (plain, folder / MODEL_FILE)
        )
    except EngineError as error:
        raise ExportError(f"the graph that was written does not run: {error}") from error
    change = {name: float(np.abs(after[name] - before[name]).max()) for name in before}
    return Change(change[output], max(change[name] for name in weights))


def _text(folder: Path, manifest: Manifest) -> dict[str, Array]:
    try:
        tokens = Tokenizer.open(folder).encode(
            _TEXT, None, manifest.max_length, truncate=True, place=("text",)
        )
    except (TokenizerError, ProblemError) as error:
        raise ExportError(f"the tokenizer does not take {_TEXT!r}: {error}") from error
    if not len(tokens):
        raise ExportError(f"tokenizer.json gives no token for {_TEXT!r}: is it that of this model?")
    ids = tokens.ids[None]
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": tokens.type_ids[None],
    }


def _rows(manifest: Manifest) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    widths = {"query": manifest.embed_dim, "key": manifest.key_dim, "value": manifest.value_dim}
    rows = {
        name: rng.standard_normal((1, _ROWS, width), dtype=np.float32)
        for name, width in widths.items()
    }
    bias = np.zeros((1, 1, 1, 1), np.float32)
    scale = np.array(1 / math.sqrt(manifest.head_dim), np.float32)
    return {**rows, "attn_bias": bias, "scale": scale}
